//! What unmoor on the host and its agent in the guest say to each other over the virtio-serial
//! port [`PORT`].
//!
//! ```text
//! frame    00  COBS( postcard(message) crc32 )  00
//! host     { session, id, request }      the session is a number that the host chose
//! agent    { session, id, answer }       to the request of that id; the last one says so
//! ```
//!
//! A byte 00 occurs nowhere but between frames. Whoever comes anew to the port, after a peer that
//! broke off in the middle of a frame, is therefore understood from its first frame on; what is
//! left of the old one fails its checksum and is skipped. Answers to a session of the past are
//! told by their number.
//!
//! The guest is not trusted: a frame is bounded, and so is the whole answer to a request
//! ([`Host`]).

mod frame;
#[cfg(feature = "test-support")]
pub mod fuzz_entry;
mod host;
mod lost;
mod message;
mod pages;
mod rule;

pub use frame::{Decoder, FRAME_MAX, TooLarge, encode};
pub use host::{ANSWER_FRAMES_MAX, Host, ProtocolError, UNASKED};
pub use lost::{LossCause, LossEffect, LostProbe, ProbeState};
pub use message::{
    Answer, Armed, Candidate, Capabilities, Decided, Failure, FrozenReport, Losses, ProcessRecord,
    Reason, Refusal, Request, Summary, ThawReason, Tier, ToAgent, ToHost, Welcome, shortened,
};
pub use pages::{PageSet, PageSetBuilder, PageSetError, Run};
pub use rule::{PauseLimit, Rule, RuleError, Specificity, Subject, Traits, Treatment, rules};

/// Name of the virtio-serial port.
pub const PORT: &str = "org.unmoor.0";

/// Version of the protocol. A change that an older side would misread makes a new one.
pub const VERSION: u16 = 3;
/// The oldest version that both sides still speak. With a peer that speaks this one nothing is said
/// that came later.
pub const VERSION_OLDEST: u16 = 2;
