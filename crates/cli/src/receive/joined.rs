//! Connections of a session that are to be used together, and are not yet.

use wire::{Message, Preamble, put_control};

use crate::buffer::Output;
use crate::net::Link;

/// Most that may wait.
const JOINED_MAX: usize = 15;

/// Those of the newest attempt.
#[derive(Debug, Default)]
pub(super) struct Joined {
    attempt: u32,
    links: Vec<Link>,
}

impl Joined {
    /// One more, which is told that it is kept.
    pub(super) fn add(&mut self, attempt: u32, mut link: Link) {
        if attempt != self.attempt {
            self.attempt = attempt;
            self.links.clear();
        }
        if self.links.len() >= JOINED_MAX {
            return;
        }
        let mut answer = Output::default();
        Preamble::OURS.put(answer.tail());
        put_control(&Message::Joined, answer.tail());
        // So little goes at once, or this connection is lost like any other.
        if link.send(&mut answer, usize::MAX).is_ok() && answer.is_empty() {
            self.links.push(link);
        }
    }

    /// All of that attempt, if there are so many.
    pub(super) fn take(&mut self, attempt: u32, count: usize) -> Option<Vec<Link>> {
        if count == 0 {
            self.links.clear();
        }
        let fits = self.links.len() == count && (count == 0 || self.attempt == attempt);
        fits.then(|| std::mem::take(&mut self.links))
    }
}
