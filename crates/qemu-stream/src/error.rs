//! What can be wrong with a stream.

/// A stream that cannot be read. Offsets are in bytes from the start of the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The first bytes are not QEMU's.
    #[error("this is not a QEMU migration stream")]
    NotAStream,
    /// The first bytes are a TLS handshake.
    #[error("QEMU encrypts its stream: clear the migration parameter `tls-creds`")]
    Tls,
    /// The first bytes are a multifd channel's.
    #[error("QEMU opened a multifd channel: switch the capability `multifd` off")]
    Multifd,
    /// A file version other than 3.
    #[error("the stream has file version {0}, and only version 3 is known")]
    Version(u32),
    /// A feature that cannot be relayed.
    #[error("the stream uses {feature} at offset {offset}: {remedy}")]
    Unsupported {
        /// Where.
        offset: u64,
        /// What was met.
        feature: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Bytes that no QEMU writes.
    #[error("the stream is corrupt at offset {offset}: {what}")]
    Corrupt {
        /// Where.
        offset: u64,
        /// What was met.
        what: String,
    },
    /// More bytes after the end.
    #[error("the stream goes on after its end at offset {offset}")]
    TrailingData {
        /// Where.
        offset: u64,
    },
    /// The stream was closed too early.
    #[error("the stream broke off at offset {offset}, in {part}")]
    Truncated {
        /// Where.
        offset: u64,
        /// In which part.
        part: &'static str,
    },
}
