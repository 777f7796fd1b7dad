//! Reasons, for people to read.

use serde::{Deserialize, Serialize};

use crate::class::Source;
use crate::ids::{Direction, ObjectId, ProcessId, Relation};

/// The shortest chain of flows from a process to the outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// From the process on, each nearer to the outside; empty for one in direct contact.
    pub links: Vec<Link>,
    /// Why the last one is dependent.
    pub source: Source,
}

/// One flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// What connects the two.
    pub via: Via,
    /// The one nearer to the outside.
    pub toward: ProcessId,
}

/// What connects a process with one that is nearer to the outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Via {
    /// An object.
    Object {
        /// Which.
        object: ObjectId,
        /// What the process does to it.
        ours: Direction,
        /// What the other one does to it.
        theirs: Direction,
    },
    /// Something that one of them did to the other.
    Relation {
        /// What was done.
        relation: Relation,
        /// The process did it to the other one, rather than the other one to it.
        by_us: bool,
    },
}
