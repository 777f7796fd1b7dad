//! Why a half gives up.

use pack::PackError;
use wire::{AbortCode, Digest, WireError};

use crate::TableError;

/// A reason to end the migration before its commit. The VM goes on at the source.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Fault {
    /// QEMU's stream, or its return path, cannot be read.
    #[error(transparent)]
    Stream(#[from] qemu_stream::ParseError),
    /// The peer's bytes cannot be read.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A compressed batch cannot be unpacked.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The stream names memory that does not exist.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The stream uses a feature that cannot be relayed.
    #[error("QEMU's stream uses {feature}: {remedy}")]
    Unsupported {
        /// What was met.
        feature: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// QEMU goes on and on with nothing to send.
    #[error("QEMU does not switch over although everything has been sent: {remedy}")]
    NoSwitchover {
        /// What to do.
        remedy: &'static str,
    },
    /// The peer gave up.
    #[error("the peer gave up: {reason}")]
    PeerAborted {
        /// The kind of reason.
        code: AbortCode,
        /// The peer's words.
        reason: String,
    },
    /// The peer sent something valid at the wrong time.
    #[error(
        "the peer sent {message} while {phase}: the two releases do not fit, or the connection is corrupt"
    )]
    OutOfOrder {
        /// Name of the message.
        message: &'static str,
        /// What this side was doing.
        phase: &'static str,
    },
    /// The guest's memory cannot be read, and what was held of it has no copy.
    #[error("the VM's memory cannot be read: {0}")]
    GuestMemory(String),
    /// The two halves disagree on the memory that was moved.
    #[error(
        "memory at the destination is not what was sent (digest {theirs:?}, expected {ours:?}): the VM was not started there"
    )]
    DigestMismatch {
        /// This side's digest.
        ours: Digest,
        /// The peer's digest.
        theirs: Digest,
    },
    /// Device state was lost on the way.
    #[error("{arrived} of {sent} bytes of device state arrived")]
    DeviceStateLost {
        /// Bytes that the source sent.
        sent: u64,
        /// Bytes that arrived.
        arrived: u64,
    },
    /// The destination QEMU refused the state that it was given.
    #[error("the destination QEMU refused the VM's state (error {0}); its own log says why")]
    Refused(u32),
}

impl Fault {
    /// The kind of reason, for the peer.
    pub fn code(&self) -> AbortCode {
        match self {
            Fault::Stream(_)
            | Fault::Unsupported { .. }
            | Fault::NoSwitchover { .. }
            | Fault::Refused(_)
            | Fault::GuestMemory(_) => AbortCode::Qemu,
            Fault::Wire(_)
            | Fault::Pack(_)
            | Fault::OutOfOrder { .. }
            | Fault::DeviceStateLost { .. } => AbortCode::Protocol,
            Fault::Table(_) => AbortCode::Mismatch,
            Fault::PeerAborted { code, .. } => *code,
            Fault::DigestMismatch { .. } => AbortCode::Digest,
        }
    }
}
