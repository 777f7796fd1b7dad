//! QEMU's migration stream: a sans-IO, incremental parser and emitter of the pre-copy format.
//!
//! ```text
//! header, CONFIGURATION (+ subsections)
//! START ram: list of RAM blocks                 early FULL sections (virtio-mem)
//! PART ram: page records …                      (any number)
//! END ram: the last pages
//! FULL section of every device                  opaque here
//! EOF, VMDESCRIPTION
//! ```
//!
//! [`Parser`] takes bytes in pieces of any size and hands out [`Event`]s that borrow from them;
//! [`Emitter`] writes events back. The format depends on the machine type more than on the
//! version of QEMU; this covers machine types from 2.4 on, of QEMU 6.2 to 10.2, without multifd,
//! legacy compression and post-copy, each of which is refused by the name of its capability.
//! [`return_path`] has the messages that a destination QEMU sends back.
//!
//! All numbers on the wire are big-endian.
#![forbid(unsafe_code)]

mod emitter;
mod error;
mod event;
#[cfg(feature = "test-support")]
pub mod fuzz_entry;
mod parser;
mod reader;
pub mod return_path;
#[cfg(feature = "test-support")]
pub mod test_support;

pub use emitter::Emitter;
pub use error::ParseError;
pub use event::{BlockId, Event, RamBlock, command};
pub use parser::{MAX_LOOKAHEAD, MAX_VMDESC, Parser};
