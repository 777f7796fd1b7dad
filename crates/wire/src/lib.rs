//! Version 1 of the protocol that the two halves of a relay speak: a sans-IO codec.
//!
//! One TCP connection, each side sending a [`Preamble`] and then frames:
//!
//! ```text
//! preamble  "UNMOOR\r\n"  be16 oldest version  be16 newest version  be32 0
//! frame     u8 kind  u8 0  be16 0  be32 length  payload
//!
//! kind 1  control   a `Message` in postcard encoding
//! kind 2  pages     be16 block, then (be32 page index, page content) repeated
//! kind 3  zeros     be16 block, then (be32 first index, be32 count) repeated
//! kind 4  device    bytes of QEMU's opaque device part
//! kind 5  packed    u8 method, u8 form, be16 0, be32 plain length, then content, as it is (method 0),
//!                   as an LZ4 block (1) or as a Zstandard frame (2): the payload of a `pages` frame
//!                   (form 0), or pages told by what the peer has already (form 1, see crate `pack`)
//! ```
//!
//! The course of a migration:
//!
//! ```text
//! source                                      destination
//!   Hello (session, seed, VM facts)     ──►
//!                                       ◄──   Accept (VM facts)
//!   Head, RamSetup                      ──►
//!   pages, zeros … PassEnd … pages      ──►   every page hashed into the table
//!   RamEnd, device …, DeviceEnd(digest) ──►   digest compared, QEMU asked for a PONG
//!                                       ◄──   Ready(digest)
//!   (commit recorded with the guardian)
//!   Commit                              ──►   QEMU gets its end mark and runs the VM
//!                                       ◄──   Committed
//!   Bye                                 ──►
//! ```
//!
//! A connection may be lost at any time before `Commit`: see [`Ledger`]. The destination has given a
//! ticket after `Accept`; the source connects again and begins with `Resume` (session, ticket, how far
//! it has received), which is answered by `Resumed`; then both go on where the other has come to,
//! in the middle of a frame if it must be. Preamble, `Resume` and `Resumed` do not count; everything
//! else does, from the first preamble on.
//!
//! A session may use several connections. The source opens more of them with `Join` (session, ticket),
//! answered by `Joined`, and then one with `ResumeOver`, which says how many there are: from then on
//! its stream comes in chunks on all of them, in any order:
//!
//! ```text
//! chunk  be64 position in the stream  be32 length  bytes
//! ```
//!
//! and is put together again by [`Assembler`]; the destination's stream stays on the last one opened.
//! If any connection of them is lost, all are, and it is resumed as above.
//!
//! If both can, part of the memory may follow after the switchover (post-copy). The source says so
//! with `MayFollow` before `Head`, and which pages with `Follows` before `RamEnd`; if it names none,
//! all is as above. Otherwise:
//!
//! ```text
//!   Commit                              ──►   QEMU gets the devices and runs the VM
//!                                       ◄──   Committed
//!   pages, each of them once            ──►
//!                                       ◄──   Needs, for what the VM waits for
//!   AllSent(digest of what followed)    ──►   QEMU gets its end mark
//!                                       ◄──   Arrived
//!   Bye                                 ──►
//! ```
//!
//! Such a session is resumed after `Commit` as well. Whoever connects anew instead, with a `Verdict`,
//! is told with `Missing` which pages have not come, and sends those.
//!
//! A source's QEMU that has a return path of its own may wait for the word of the destination's QEMU
//! before it switches over (QEMU's capability `switchover-ack`, which libvirt switches on from release 10
//! on). If both can, the destination passes that word on with `SwitchoverAck` when its QEMU has given
//! it, at any time from `Head` on; a second one says nothing new.
//!
//! Two releases need not be the same. Of the capabilities in `Hello` and `Accept` a release ignores
//! those that it does not know in `offers`, and refuses the session for one in `requires`: so the
//! destination answers with what both have, and the session has nothing else. A message whose number a
//! release does not know does not decode, which ends the session (`BadMessage`), before the commit with
//! the VM at the source. So a message is sent only where both have its capability, and what is new
//! is never required.
//!
//! Either side may send `Abort` until `Commit` has been sent; `KeepAlive` at any time. A source
//! that lost the connection after its decision was recorded connects again and sends a `Verdict`
//! in place of `Hello`.
//!
//! Everything that a length field announces is bounded by [`MAX_PAYLOAD`] before a byte of it is
//! buffered; bulk content is borrowed from the caller's buffer.

mod batch;
mod decode;
mod error;
#[cfg(feature = "test-support")]
pub mod fuzz_entry;
mod ledger;
mod message;
mod packed;
mod preamble;
mod stripes;

pub use batch::{BatchWriter, PageRun, PagesFrame, ZERO_PAGES_MAX, ZerosFrame};
pub use decode::{Decoder, Frame, OwnFrame, own_frames, put_control, put_device};
pub use error::WireError;
pub use ledger::Ledger;
pub use message::{
    AbortCode, Accept, Block, Capabilities, Digest, Followed, Hello, Message, PageRuns, RamSetup,
    Started, Thawed,
};
pub use packed::{Form, PackedFrame, put_packed};
pub use preamble::{Preamble, VERSION_NEWEST, VERSION_OLDEST};
pub use stripes::{Assembler, CHUNK_HEADER, CHUNK_MAX, chunk_header};

/// Length of a frame's header in bytes.
pub const FRAME_HEADER: usize = 8;

/// The largest payload of a frame in bytes: neither side sends more, and a larger length field
/// ends the session before anything is allocated for it.
pub const MAX_PAYLOAD: usize = 2 << 20;

/// Most bytes of page contents that a peer may have to be kept for `packed` frames of form 1.
pub const HISTORY_MAX: usize = 256 << 20;

/// Content bytes after which a batch of pages is closed; keeps a frame well below
/// [`MAX_PAYLOAD`] and lets the receiver work while the rest is on its way.
pub const BATCH_BYTES: usize = 256 << 10;
