//! What the engine says, on its way to the link.
//!
//! ```text
//! engine ──frames──► packing ──frames, in order──► output ──► channel
//!                     │    ▲
//!                     ▼    │
//!                    threads
//! ```
//!
//! Without compression the engine writes into the output itself.

mod packing;
mod shares;
mod workers;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use pack::{Chooser, History};
use wire::own_frames;

use super::meter::LinkRate;
use crate::args::CompressArg;
use crate::buffer::Output;
use crate::net::Channel;
use packing::Packing;
pub(crate) use packing::Tally;
use shares::Shares;

/// The way from the engine to the link.
#[derive(Debug, Default)]
pub(crate) struct Outlet {
    /// Whole frames that are to be packed.
    frames: Vec<u8>,
    packing: Option<Packing>,
    output: Output,
    shares: Shares,
    /// What the link carries, in bytes as they are on the link.
    link: LinkRate,
}

/// What went out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Bytes on the link.
    pub(crate) wire: usize,
    /// Bytes as the engine had put them.
    pub(crate) plain: usize,
}

impl Outlet {
    /// From here on batches are compressed, if that pays: between two frames.
    pub(crate) fn pack(
        &mut self,
        how: CompressArg,
        history: Option<History>,
        threads: usize,
    ) -> io::Result<()> {
        let chooser = match how {
            CompressArg::None => return Ok(()),
            CompressArg::Auto => Chooser::new(threads),
            CompressArg::Always(method) => Chooser::fixed(method),
        };
        // What is there already is as it was put.
        self.shares.add(self.output.len(), self.output.len());
        self.packing = Some(Packing::start(chooser, history, threads)?);
        Ok(())
    }

    /// What compressing has brought.
    pub(crate) fn tally(&self) -> Option<Tally> {
        self.packing.as_ref().map(|packing| packing.tally)
    }

    /// What was said is lost, and with it what is known of what the peer keeps: from here on nothing
    /// is compressed.
    pub(crate) fn begin_anew(&mut self) {
        *self = Outlet::default();
    }

    /// Where the engine appends.
    pub(crate) fn tail(&mut self) -> &mut Vec<u8> {
        match &self.packing {
            Some(_) => &mut self.frames,
            None => self.output.tail(),
        }
    }

    /// Bytes that wait, as many as they are now.
    pub(crate) fn len(&self) -> usize {
        self.frames.len() + self.compressing() + self.output.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes on the link that so many bytes will be, if what follows is like what has been.
    pub(crate) fn on_the_wire(&self, plain: u64) -> u64 {
        let ratio = self.packing.as_ref().map_or(1.0, Packing::ratio);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an estimate"
        )]
        let wire = (plain as f64 * ratio) as u64;
        wire
    }

    /// What the link carries, in bytes as they are on the link, once something has waited for it.
    pub(crate) fn link_rate(&self) -> Option<u64> {
        self.link.rate()
    }

    /// Whether anything waits for the link alone.
    pub(crate) fn waits_for_link(&self) -> bool {
        !self.output.is_empty()
    }

    /// Bytes that are on their way through the threads.
    fn compressing(&self) -> usize {
        self.packing.as_ref().map_or(0, Packing::waiting)
    }

    /// Bytes that have to wait here beyond those for the link, for the threads to have enough to do.
    pub(crate) fn appetite(&self) -> usize {
        self.packing.as_ref().map_or(0, Packing::appetite)
    }

    /// Readable when a thread has compressed something.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.packing.as_ref().map(Packing::fd)
    }

    /// Brings what the engine has put on its way; open batches are closed.
    pub(crate) fn advance(&mut self) {
        let Some(packing) = &mut self.packing else {
            return;
        };
        for frame in own_frames(&self.frames) {
            packing.take(frame, self.link.rate());
        }
        self.frames.clear();
        packing.pass(&mut self.output, &mut self.shares);
    }

    /// Writes at most `limit` bytes, without waiting.
    pub(crate) fn send(&mut self, channel: &mut Channel, limit: usize) -> io::Result<Sent> {
        let wire = channel.send(&mut self.output, limit)?;
        let waits = self.waits_for_link() && channel.is_up();
        self.link.sent(Instant::now(), wire as u64, waits);
        let plain = match &self.packing {
            Some(_) => self.shares.sent(wire),
            None => wire,
        };
        Ok(Sent { wire, plain })
    }

    /// Writes everything, waiting up to `limit` for the peer to take it.
    pub(crate) fn send_all(&mut self, channel: &mut Channel, limit: Duration) -> io::Result<()> {
        self.advance();
        if let Some(packing) = &mut self.packing {
            packing.finish(&mut self.output, &mut self.shares);
        }
        channel.send_all(&mut self.output, limit)
    }
}
