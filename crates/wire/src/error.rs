//! What can be wrong with a peer's bytes.

/// A violation of the protocol by the peer, or a peer that cannot be talked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The first bytes are not a preamble.
    #[error(
        "the peer does not speak unmoor's protocol: check that the address is that of `unmoor receive`, and that both sides or neither were started with --insecure"
    )]
    NotOurProtocol,
    /// The peer claims to have received what was never sent, or less than it had.
    #[error(
        "the peer has lost count of what was sent: run the same release of unmoor on both hosts"
    )]
    BadPosition,
    /// No common protocol version.
    #[error(
        "the peer speaks protocol versions {peer_oldest} to {peer_newest}, this side {ours_oldest} to {ours_newest}: install the same release of unmoor on both hosts"
    )]
    Version {
        /// Oldest version that the peer offers.
        peer_oldest: u16,
        /// Newest version that the peer offers.
        peer_newest: u16,
        /// Oldest version spoken here.
        ours_oldest: u16,
        /// Newest version spoken here.
        ours_newest: u16,
    },
    /// The peer requires capabilities that this side does not have.
    #[error(
        "the peer requires capabilities unknown to this release (bits {0:#x}): install the same release of unmoor on both hosts"
    )]
    MissingCapabilities(u64),
    /// A frame kind that version 1 does not have.
    #[error("the peer sent a frame of unknown kind {0}: the connection is corrupt")]
    UnknownKind(u8),
    /// A header whose reserved bytes are not zero.
    #[error("the peer sent a malformed frame header: the connection is corrupt")]
    BadHeader,
    /// A length beyond [`MAX_PAYLOAD`](crate::MAX_PAYLOAD).
    #[error("the peer announced a frame of {0} bytes, more than the protocol allows")]
    TooLong(u32),
    /// A control message that does not decode.
    #[error("the peer sent a control message that does not decode")]
    BadMessage,
    /// A pages or zeros frame whose length does not fit its entries.
    #[error("the peer sent a malformed batch of pages")]
    BadBatch,
}
