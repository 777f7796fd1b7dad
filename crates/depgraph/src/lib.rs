//! Which processes of a guest depend on the world outside it.
//!
//! ```text
//! outside ──flow──► process ──writes──► object ──reads──► process ──signals──► process ...
//!   0                 1                                      2                   3
//! ```
//!
//! Events and standing facts go into a [`Graph`]; a [`Class`] for every process comes out, and
//! the shortest [`Chain`] of flows to the outside as its reason. Distances are kept up to date as
//! events come in, so that asking costs nothing. Pure: no clock, no I/O.
//!
//! What connects (the rules are those of the design, section 3):
//! - an object connects everybody who wrote it with everybody else who read it, in both senses:
//!   a reader that stands still stalls the writer, too. Two readers are not connected, nor are
//!   two writers of something that nobody reads. A shared mapping counts as reading and, where it
//!   can be written, as writing;
//! - so do a fork, a signal, a wake-up, a trace; an exit if the parent cares;
//! - a sink (a hub such as the journal) takes dependency from nobody and passes it on to nobody;
//! - what is uncertain is dependent.

mod chain;
mod class;
mod graph;
mod ids;

pub use chain::{Chain, Link, Via};
pub use class::{Class, Mark, Source, Uncertainty};
pub use graph::{Graph, Limits};
pub use ids::{Direction, External, Interface, ObjectId, ObjectKind, ProcessId, Relation};
