//! Batches of pages made smaller: how, and whether it pays.
//!
//! ```text
//! pages frame ──► Chooser::choose ──► Compressor ──► packed frame ──► Decompressor ──► pages frame
//!                    ▲                    │
//!                    └── sizes and times ─┘
//! ```
//!
//! Everything here is pure: the caller measures times and the link's rate.

#![cfg_attr(test, expect(clippy::unwrap_used, reason = "a panic is how a test fails"))]

mod chooser;
mod codec;
mod method;

pub use chooser::Chooser;
pub use codec::{Compressor, Decompressor, PackError, looks_compressible};
pub use method::Method;
