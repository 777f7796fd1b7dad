//! The engine: what a migration does with QEMU's stream, as two pure state machines.
//!
//! ```text
//! QEMU ─► qemu-stream ─► Source ─► wire ═══ network ═══ wire ─► Destination ─► qemu-stream ─► QEMU
//!                          │                                         │
//!                          └──────────── PageTable, digest ──────────┘
//! ```
//!
//! Nothing here opens a socket or reads a clock: events and frames come in, bytes go out into the
//! caller's buffers, and what only the outside can do is asked for as an action. The shells
//! around the halves own sockets, QMP, time and signals.
//!
//! **Invariant.** When the RAM section has ended, every page at the destination has the content
//! that QEMU sent for it last; the digests prove it before the VM may run there.

mod destination;
mod fault;
pub mod forecast;
#[cfg(any(test, feature = "test-support"))]
pub mod fuzz_entry;
mod guest_map;
mod holds;
mod keepalive;
mod layout;
pub mod pilot;
mod source;
mod table;

pub use destination::{
    Destination, DestinationAction, DestinationPhase, FaultNews, Outputs, Remains,
};
pub use fault::Fault;
pub use guest_map::MappedRam;
pub use holds::{Group, GroupFigures, Left, Treatment};
pub use keepalive::{KeepAlive, Liveness};
pub use source::{
    Expected, GuestMemory, KeepBack, NoGuestMemory, Source, SourceAction, SourcePhase, SourceStats,
    WalkPosition, put_verdict,
};
pub use table::{BYTES_PER_PAGE, Change, PageTable, TableError};
