//! Control of a QEMU through QMP: what a migration through a relay needs of it, and no more.
//!
//! ```text
//! codec       bytes ⇄ messages, sans-IO
//! client      one monitor connection: commands that wait, and ones that do not
//! vm          typed questions and orders
//! settings    capabilities and parameters, changed for a migration and put back
//! check       can this VM be moved, and do two QEMUs fit each other
//! memory_map  where the guest's page frames are in QEMU's RAM blocks
//! host_ram    where these are in QEMU's own memory
//! post_copy   can this QEMU run a VM before all of its memory is there
//! recover     the source VM runs again, the destination QEMU goes away
//! ```
//!
//! QEMU serves one client at a time on a monitor socket. Answers are read with tolerance: fields
//! that are not known here are ignored, for QEMU 6.2 to 10.2 differ.

mod check;
mod client;
mod codec;
mod error;
mod facts;
#[cfg(any(test, feature = "test-support"))]
pub mod fuzz_entry;
mod host_ram;
mod load;
mod memory_map;
mod post_copy;
mod recover;
mod settings;
mod vm;

pub use check::{Finding, Level, Report, check_destination, check_source, compare};
pub use client::{Client, Id, Incoming};
pub use codec::{Codec, Event, Message};
pub use error::Error;
pub use facts::{Version, VmFacts};
pub use host_ram::HostRam;
pub use memory_map::RamPiece;
pub use recover::{Recovered, discard_destination, recover_source};
pub use settings::{Saved, Wanted};
pub use vm::{MigrationInfo, MigrationStatus, RamInfo, RunState, Vm};
