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
            return self.give(plain, Batch::Recalled(batch, plain));
        }
        match self.method.and_then(|_| self.scout.look(pages)) {
            Some(why) => self.give(plain, Batch::Pages(frame.bytes.to_vec(), why)),
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

    /// Has a batch compressed, as it was chosen; where nothing pays by itself, what is told by others
    /// is all but zeros, and takes LZ4 hardly any time.
    fn give(&mut self, plain: usize, batch: Batch) {
        let number = self.first + self.line.len() as u64;
        self.line.push_back(Piece {
            plain,
            frames: None,
        });
        self.workers.give(Job {
            number,
            method: self.method.unwrap_or(Method::Lz4),
            is_chosen: self.method.is_some(),
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
            is_chosen,
            why,
            plain,
            frame,
            took,
        } = done;
        if let Some(why) = why {
            self.scout.tried(why, plain, frame.len());
        }
        // What cannot be made smaller is the scout's business.
        if is_chosen && frame.len() < plain {
            self.chooser.learnt(method, plain, frame.len(), took);
        }
        self.count(plain, frame.len());
        let at = usize::try_from(number - self.first).unwrap_or(usize::MAX);
        if let Some(piece) = self.line.get_mut(at) {
            piece.frames = Some(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use pack::{Decompressor, Recollection};
    use wire::{
        BatchWriter, Decoder, Frame, Message, PagesFrame, Preamble, own_frames, put_control,
    };

    use super::*;

    const PAGE: usize = 4096;

    /// Batches of pages that are compressible, noise, repeated or written again, with messages in
    /// between.
    fn frames() -> Vec<u8> {
        let mut frames = Vec::new();
        let mut batch = BatchWriter::new(PAGE);
        let mut state = 88_172_645_463_325_252u64;
        for round in 0..40u32 {
            for index in 0..(1 + round % 5 * 16) {
                let mut page = vec![1; PAGE];
                for word in page
                    .chunks_exact_mut(8)
                    .take(PAGE / 8 * usize::from(round % 3 == 1))
                {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    word.copy_from_slice(&state.to_le_bytes());
                }
                page[..4].copy_from_slice(&(index % 7 * round).to_le_bytes());
                batch.page(0, index, &page, &mut frames);
            }
            batch.flush(&mut frames);
            put_control(&Message::PassEnd(round), &mut frames);
        }
        frames
    }

    /// What the destination makes of frames, in order: pages, and messages.
    fn told(bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut preamble = Vec::new();
        Preamble::OURS.put(&mut preamble);
        let mut decoder = Decoder::new();
        decoder.next(&preamble).unwrap();
        let mut decompressor = Decompressor::default();
        let mut recollection = Recollection::default();
        let mut told = Vec::new();
        let pages = |pages: PagesFrame<'_>, told: &mut Vec<(u32, Vec<u8>)>| {
            for (index, page) in pages.iter(PAGE).unwrap() {
                told.push((index, page.to_vec()));
            }
        };
        let mut at = 0;
        while let Some((used, frame)) = decoder.next(&bytes[at..]).unwrap() {
            at += used;
            match frame {
                Frame::Control(message) => told.push((u32::MAX, format!("{message:?}").into())),
                Frame::Pages(frame) => pages(frame, &mut told),
                Frame::Packed(packed) => {
                    let plain = decompressor.unpack(&packed).unwrap();
                    let mut recalled = Vec::new();
                    let payload = match packed.form {
                        Form::Pages => plain,
                        Form::Recalled => {
                            recollection.recall(plain, PAGE, &mut recalled).unwrap();
                            &recalled
                        }
                    };
                    pages(PagesFrame::parse(payload).unwrap(), &mut told);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(at, bytes.len());
        told
    }

    #[test]
    fn what_comes_out_is_what_went_in_and_in_its_order() {
        let frames = frames();
        for history in [None, Some(History::new(PAGE, 1 << 20))] {
            let has_history = history.is_some();
            let mut packing = Packing::start(Chooser::new(4), history, 4).unwrap();
            let (mut output, mut shares) = (Output::default(), Shares::default());
            for (number, frame) in own_frames(&frames).enumerate() {
                // Now slow, now so fast that nothing pays.
                let link = if number % 40 < 30 {
                    1_000_000
                } else {
                    u64::MAX
                };
                packing.take(frame, Some(link));
                packing.pass(&mut output, &mut shares);
            }
            packing.finish(&mut output, &mut shares);
            assert_eq!(packing.waiting(), 0);
            assert_eq!(shares.sent(output.len()), frames.len());
            // A third is noise, and a quarter is left as it is.
            assert!(output.len() < frames.len() / 3 * 2, "{}", output.len());
            assert!(
                told(output.front()) == told(&frames),
                "history: {has_history}"
            );
            assert_eq!(packing.tally.differing > 0, has_history);
            assert_eq!(packing.tally.same > 0, has_history);
        }
    }
}
