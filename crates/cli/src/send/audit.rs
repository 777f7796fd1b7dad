//! The audit: once the VM stands, its memory is compared with what the destination has.
//!
//! What differs was written without QEMU's noticing, and would be lost. It is found on all
//! processors, a portion at a time, so that the peer hears of us meanwhile.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use migrate::Expected;
use qemu_stream::{BlockId, RamBlock};

use super::session::Session;
use super::{Failure, failed};
use crate::args::AuditArg;
use crate::guest_ram::{Block, GuestRam, PAGE};
use crate::report::{Audited, Event};

/// Bytes that are read and compared at once.
const CHUNK: usize = 1 << 20;
/// Chunks between two looks at everything else.
const PORTION: usize = 256;

/// An audit to come, or under way.
pub(super) struct Auditor {
    repairs: bool,
    threads: usize,
    /// Present while it is under way.
    walk: Option<Walk>,
}

/// How far it is.
struct Walk {
    begun: Instant,
    chunks: Vec<Chunk>,
    next: usize,
    found: Found,
}

/// A piece of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chunk {
    block: BlockId,
    offset: u64,
    length: usize,
}

/// What has been found.
#[derive(Debug, Default)]
struct Found {
    pages: u64,
    bytes_read: u64,
    differing: Vec<(BlockId, u64)>,
}

impl Auditor {
    pub(super) fn new(how: AuditArg) -> Self {
        Auditor {
            repairs: how == AuditArg::Repair,
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            walk: None,
        }
    }

    /// The VM stands, and all of its memory is sent. Yields the names of blocks that are left out.
    fn begin(&mut self, ram: &GuestRam, stream: &[RamBlock]) -> Vec<String> {
        let (mut chunks, mut left_out) = (Vec::new(), Vec::new());
        for (number, block) in (0u16..).zip(stream) {
            match ram.block(BlockId(number)) {
                Some(_) => chunks.extend(pieces(BlockId(number), block.used_length)),
                None => left_out.push(block.name.clone()),
            }
        }
        self.walk = Some(Walk {
            begun: Instant::now(),
            chunks,
            next: 0,
            found: Found::default(),
        });
        left_out
    }

    /// Compares one portion; true when there is no other.
    fn go_on(&mut self, ram: &GuestRam, expected: Expected<'_>) -> io::Result<bool> {
        let Some(walk) = &mut self.walk else {
            return Ok(true);
        };
        let upto = (walk.next + PORTION).min(walk.chunks.len());
        let portion = &walk.chunks[walk.next..upto];
        walk.next = upto;
        let taken = AtomicUsize::new(0);
        let work = || -> io::Result<Found> {
            let mut found = Found::default();
            let mut buffer = vec![0; CHUNK];
            while let Some(chunk) = portion.get(taken.fetch_add(1, Ordering::Relaxed)) {
                if let Some(block) = ram.block(chunk.block) {
                    found.look(expected, *chunk, block, &mut buffer)?;
                }
            }
            Ok(found)
        };
        let results: Vec<io::Result<Found>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (1..self.threads).map(|_| scope.spawn(work)).collect();
            let mut results = vec![work()];
            results.extend(threads.into_iter().map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("a thread of the audit has failed")))
            }));
            results
        });
        for result in results {
            walk.found.add(result?);
        }
        Ok(walk.next == walk.chunks.len())
    }
}

impl Found {
    fn look(
        &mut self,
        expected: Expected<'_>,
        chunk: Chunk,
        ram: &Block,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        let Chunk {
            block,
            offset,
            length,
        } = chunk;
        let first = offset / PAGE as u64;
        let mut differing = Vec::new();
        let compared = if ram.is_hole(offset, length as u64) {
            let pages = first..first + (length / PAGE) as u64;
            expected.compare_zeros(block, pages, &mut differing)
        } else {
            let buffer = &mut buffer[..length];
            ram.read(offset, buffer)?;
            self.bytes_read += length as u64;
            expected.compare(block, first, buffer, &mut differing)
        };
        self.pages += compared.map_err(io::Error::other)?;
        self.differing
            .extend(differing.into_iter().map(|index| (block, index)));
        Ok(())
    }

    fn add(&mut self, other: Found) {
        self.pages += other.pages;
        self.bytes_read += other.bytes_read;
        self.differing.extend(other.differing);
    }
}

fn pieces(block: BlockId, length: u64) -> impl Iterator<Item = Chunk> {
    (0..length).step_by(CHUNK).map(move |offset| Chunk {
        block,
        offset,
        length: usize::try_from(length - offset).unwrap_or(CHUNK).min(CHUNK),
    })
}

impl Session<'_> {
    /// The VM's memory is to be audited, if there is an auditor.
    pub(super) fn audit_with(&mut self, auditor: Option<Auditor>) {
        if auditor.is_some() {
            self.engine.want_audit();
        }
        self.auditor = auditor;
    }

    /// Everything is sent and the VM stands: the audit begins.
    pub(super) fn begin_audit(&mut self) -> Result<(), Failure> {
        let (Some(auditor), Some(qemu)) = (&mut self.auditor, &self.qemu) else {
            return Ok(());
        };
        // Whoever repaired by other memory would ruin the VM.
        let Some(ram) = self.ram.as_ref().filter(|ram| ram.is_proven()) else {
            return Err(Failure::Failed(
                "the VM cannot be audited: what is read as its memory is not what QEMU has sent"
                    .into(),
            ));
        };
        let left_out = auditor.begin(ram, qemu.blocks());
        if !left_out.is_empty() {
            self.report.tell(&Event::Note {
                text: format!(
                    "not audited, since this QEMU does not tell where they are: {}",
                    left_out.join(", ")
                ),
            });
        }
        Ok(())
    }

    /// Whether an audit is under way: then nothing else is waited for.
    pub(super) fn is_auditing(&self) -> bool {
        self.auditor
            .as_ref()
            .is_some_and(|auditor| auditor.walk.is_some())
    }

    /// Goes on with an audit that is under way.
    pub(super) fn audit(&mut self) -> Result<(), Failure> {
        let (Some(auditor), Some(ram), Some(expected)) =
            (&mut self.auditor, &self.ram, self.engine.expected())
        else {
            return Ok(());
        };
        if auditor.walk.is_none() {
            return Ok(());
        }
        let over = auditor.go_on(ram, expected);
        if !over.map_err(|error| cannot_read(&error))? {
            return Ok(());
        }
        let Some(walk) = auditor.walk.take() else {
            return Ok(());
        };
        let mut repaired = 0;
        if auditor.repairs {
            let mut page = [0; PAGE];
            for (number, index) in &walk.found.differing {
                let Some(block) = ram.block(*number) else {
                    continue;
                };
                block
                    .read(index * PAGE as u64, &mut page)
                    .map_err(|error| cannot_read(&error))?;
                self.engine
                    .repair(*number, *index, &page, self.output.tail())
                    .map_err(|error| failed(&error))?;
                repaired += 1;
            }
        }
        let took = walk.begun.elapsed();
        let audited = Audited {
            pages: walk.found.pages,
            differing: walk.found.differing.len() as u64,
            repaired,
            ms: took.as_secs_f64() * 1000.0,
            bytes_per_s: rate(walk.found.bytes_read, took),
            shared: ram.is_shared(),
        };
        self.report.tell(&Event::Audited(audited));
        self.audited = Some(audited);
        self.engine.audited(self.output.tail());
        Ok(())
    }
}

fn cannot_read(error: &io::Error) -> Failure {
    Failure::Failed(format!(
        "the VM's memory could not be read for the audit: {error}"
    ))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a rate for people"
)]
fn rate(bytes: u64, time: Duration) -> u64 {
    (bytes as f64 / time.as_secs_f64().max(1e-6)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_block_once() {
        let length = 2 * CHUNK as u64 + 8192;
        let pieces: Vec<Chunk> = pieces(BlockId(3), length).collect();
        let mut at = 0;
        for piece in &pieces {
            assert_eq!((piece.block, piece.offset), (BlockId(3), at));
            at += piece.length as u64;
        }
        assert_eq!((at, pieces.len()), (length, 3));
    }
}
