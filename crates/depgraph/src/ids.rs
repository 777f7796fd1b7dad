//! What the graph's nodes and edges are called.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// A process: the id of its thread group, and when it started, since ids are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Id of the thread group, as the first PID namespace sees it.
    pub pid: u32,
    /// Start, in ticks of 10 ms since the boot.
    pub start: u64,
}

/// Something through which processes can exchange data. What `a` and `b` mean depends on the
/// kind; equal ids are the same object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId {
    /// What it is.
    pub kind: ObjectKind,
    /// First half of its key.
    pub a: u64,
    /// Second half of its key.
    pub b: u64,
}

/// Kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum ObjectKind {
    Pipe,
    UnixSocket,
    Tcp,
    Udp,
    Vsock,
    Netlink,
    Terminal,
    File,
    SharedMemory,
    MessageQueue,
    Semaphore,
    PosixQueue,
    /// An eventfd, an inotify group, or another descriptor without a file.
    Event,
    BlockDevice,
    Device,
}

/// What a process does to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum Direction {
    Reads,
    Writes,
    Both,
}

impl Direction {
    /// Whether data can go from the object to the process.
    pub fn reads(self) -> bool {
        self != Direction::Writes
    }

    /// Whether data can go from the process to the object.
    pub fn writes(self) -> bool {
        self != Direction::Reads
    }
}

/// What one process does to another without an object in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Relation {
    /// Made it.
    Forked,
    /// Traces it, or reads or writes its memory.
    Traced,
    /// Sent it a signal.
    Signalled,
    /// Woke it up from a sleep that a signal could have ended: whatever the exchange was, there
    /// was one.
    Woke,
    /// Ended, which the parent was told.
    Exited,
    /// Ended. Connects only with a parent that waits for its children.
    Ended,
}

/// A contact with the world outside the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct External {
    /// Through what.
    pub interface: Interface,
    /// It is there to be used, rather than seen used.
    pub standing: bool,
    /// The other end, where it is known; for a listening socket the own one.
    pub peer: Option<SocketAddr>,
}

/// Ways out of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum Interface {
    Tcp,
    TcpListening,
    Udp,
    OtherIp { protocol: u8 },
    Packet,
    Vsock,
    OtherSocket { family: u16 },
    Serial { major: u16, minor: u32 },
    Device { major: u16, minor: u32 },
    NetworkFileSystem { magic: u32 },
}
