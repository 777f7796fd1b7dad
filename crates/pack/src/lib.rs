//! Batches of pages made smaller: how, and whether it pays.
//!
//! ```text
//! pages frame ──► Chooser, Scout ──► Compressor ──► packed frame ──► Decompressor ──► pages frame
//!                    ▲                   │
//!                    └── sizes, times ───┘
//! ```
//!
//! Everything here is pure: the caller measures times and the link's rate.

mod chooser;
mod codec;
#[cfg(any(test, feature = "test-support"))]
pub mod fuzz_entry;
mod history;
mod method;
mod scout;

pub use chooser::Chooser;
pub use codec::{Compressor, Decompressor, PackError};
pub use history::{History, Recalled, Recollection};
pub use method::Method;
pub use scout::{Scout, Try};

/// Bytes that nothing makes smaller.
#[cfg(test)]
fn noise(length: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
