//! Frames in order, some of which are being compressed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use pack::{Chooser, History, Method, Recalled, Scout};
use wire::{BATCH_BYTES, FRAME_HEADER, Form, OwnFrame, put_packed};

use super::shares::Shares;
use super::workers::{Batch, Done, Job, Workers};
use crate::buffer::Output;

/// Smaller batches are not worth the way to another thread and back.
const SMALLEST: usize = 8 << 10;
/// On a link that carries less, pages are told by others also where nothing is compressed.
const RECALL_BELOW: u64 = 500_000_000;
/// Longest wait for a thread to compress one batch, at the end.
const BATCH_LIMIT: Duration = Duration::from_secs(5);

/// Compresses what is worth it, and keeps the order.
#[derive(Debug)]
pub(super) struct Packing {
    chooser: Chooser,
    scout: Scout,
    /// What the destination has, if it keeps anything.
    history: Option<History>,
    workers: Workers,
    threads: usize,
    line: VecDeque<Piece>,
    /// Number of the first piece in the line.
    first: u64,
    /// Plain bytes in the line.
    waiting: usize,
    /// The present choice.
    method: Option<Method>,
    pub(super) tally: Tally,
}

/// What compressing has brought.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Bytes of batches of pages before they were compressed or left as they were.
    pub(crate) before: u64,
    /// And after.
    pub(crate) after: u64,
    /// The present choice.
    pub(crate) method: Option<Method>,
    /// Pages told as the same as another.
    pub(crate) same: u64,
    /// Pages told by their difference from what they were.
    pub(crate) differing: u64,
}

#[derive(Debug)]
struct Piece {
    plain: usize,
    /// Absent while it is being compressed.
    frames: Option<Vec<u8>>,
}

impl Packing {
    pub(super) fn start(
        chooser: Chooser,
        history: Option<History>,
        threads: usize,
    ) -> io::Result<Self> {
        Ok(Packing {
            chooser,
            scout: Scout::default(),
            history,
            workers: Workers::start(threads)?,
            threads,
            line: VecDeque::new(),
            first: 0,
            waiting: 0,
            method: None,
            tally: Tally::default(),
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.workers.fd()
    }

    /// Plain bytes that are on their way through.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Plain bytes that have to be here for all threads to have something to do.
    pub(super) fn appetite(&self) -> usize {
        match self.method {
            Some(_) => self.threads * BATCH_BYTES,
            None => 0,
        }
    }

    /// Takes a frame; the link carries so many bytes a second.
    pub(super) fn take(&mut self, frame: OwnFrame<'_>, link: Option<u64>) {
        self.waiting += frame.bytes.len();
        match frame.pages {
            Some(pages) if frame.bytes.len() >= SMALLEST => self.batch(frame, pages, link),
            _ => self.pass_by(frame),
        }
    }

    /// Takes a batch that is large enough to be worth something.
    fn batch(&mut self, frame: OwnFrame<'_>, pages: &[u8], link: Option<u64>) {
        let plain = frame.bytes.len();
        self.method = self.chooser.choose(link);
        self.tally.method = self.method;
        let is_slow = link.is_some_and(|rate| rate < RECALL_BELOW);
        let mut batch = Vec::new();
        let recalled = match &mut self.history {
            Some(history) if self.method.is_some() || is_slow => history.recall(pages, &mut batch),
            _ => None,
        };
        if let Some(Recalled { same, differing }) = recalled {
            self.tally.same += same as u64;
            self.tally.differing += differing as u64;
            if self.method.is_none() && same + differing == 0 {
                // Told only to be kept.
                let mut stored = Vec::with_capacity(batch.len() + 2 * FRAME_HEADER);
                put_packed(0, Form::Recalled, batch.len(), &batch, &mut stored);
                self.line.push_back(Piece {
                    plain,
                    frames: Some(stored),
                });
                return self.count(plain, plain);
            }
            // What is all but zeros takes LZ4 hardly any time.
            let method = self.method.unwrap_or(Method::Lz4);
            return self.give(plain, method, Batch::Recalled(batch, plain));
        }
        let method = self.method;
        match method.and_then(|method| Some((method, self.scout.look(pages)?))) {
            Some((method, why)) => {
                self.give(plain, method, Batch::Pages(frame.bytes.to_vec(), why));
            }
            None => {
                self.count(plain, plain);
                self.pass_by(frame);
            }
        }
    }

    /// Leaves a frame as it is.
    fn pass_by(&mut self, frame: OwnFrame<'_>) {
        let plain = frame.bytes.len();
        match self.line.back_mut() {
            Some(Piece {
                plain: length,
                frames: Some(frames),
            }) if frames.len() == *length => {
                frames.extend_from_slice(frame.bytes);
                *length += plain;
            }
            _ => self.line.push_back(Piece {
                plain,
                frames: Some(frame.bytes.to_vec()),
            }),
        }
    }

    /// Has a batch compressed.
    fn give(&mut self, plain: usize, method: Method, batch: Batch) {
        let number = self.first + self.line.len() as u64;
        self.line.push_back(Piece {
            plain,
            frames: None,
        });
        self.workers.give(Job {
            number,
            method,
            batch,
        });
    }

    fn count(&mut self, before: usize, after: usize) {
        self.tally.before += before as u64;
        self.tally.after += after as u64;
    }

    /// Packed bytes for each plain one, of all batches so far.
    pub(super) fn ratio(&self) -> f64 {
        if self.tally.before == 0 {
            return 1.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let ratio = self.tally.after as f64 / self.tally.before as f64;
        ratio
    }

    /// Passes on what is ready.
    pub(super) fn pass(&mut self, output: &mut Output, shares: &mut Shares) {
        let done: Vec<Done> = self.workers.take().collect();
        for done in done {
            self.done(done);
        }
        while let Some(Piece {
            plain,
            frames: Some(frames),
        }) = self.line.front()
        {
            output.tail().extend_from_slice(frames);
            shares.add(frames.len(), *plain);
            self.waiting -= plain;
            self.line.pop_front();
            self.first += 1;
        }
    }

    /// Passes everything on, waiting for it.
    pub(super) fn finish(&mut self, output: &mut Output, shares: &mut Shares) {
        let deadline = Instant::now() + BATCH_LIMIT;
        self.pass(output, shares);
        while !self.line.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(done) = self.workers.wait(left) else {
                return;
            };
            self.done(done);
            self.pass(output, shares);
        }
    }

    fn done(&mut self, done: Done) {
        let Done {
            number,
            method,
            why,
            plain,
            frame,
            took,
        } = done;
        if let Some(why) = why {
            self.scout.tried(why, plain, frame.len());
        }
        if why.is_some() && frame.len() < plain {
            self.chooser.learnt(method, plain, frame.len(), took);
        }
        self.count(plain, frame.len());
        let at = usize::try_from(number - self.first).unwrap_or(usize::MAX);
        if let Some(piece) = self.line.get_mut(at) {
            piece.frames = Some(frame);
        }
    }
}
