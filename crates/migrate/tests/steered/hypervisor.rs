//! QEMU at the source: walks over its dirty pages, and completes when what is left fits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use qemu_stream::Event;
use qemu_stream::test_support::StreamBuilder;

use crate::guest::{FRAMES, Guest};

pub(crate) const PAGE: usize = 4096;
/// Pages that it writes without anybody reading.
const SOCKET_PAGES: usize = 24;
/// Between two looks at whether it may complete.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The source QEMU.
pub(crate) struct Hypervisor {
    builder: StreamBuilder,
    /// Pages that this walk has still to send.
    bitmap: BTreeSet<usize>,
    cursor: usize,
    begun: bool,
    /// What was sent last of each frame.
    pub(crate) sent: BTreeMap<usize, u64>,
    pub(crate) output: Vec<u8>,
    pub(crate) downtime_limit: Duration,
    /// Told; what it has measured otherwise.
    pub(crate) link: Option<u64>,
    measured: u64,
    drained: u64,
    looked: Duration,
    /// When it has synchronised its bitmap, since it was asked last.
    pub(crate) synchronised: Vec<Duration>,
    pub(crate) stopped: bool,
    pub(crate) completed: bool,
}

impl Hypervisor {
    pub(crate) fn new() -> Self {
        Hypervisor {
            builder: StreamBuilder::new("pc-q35-10.0"),
            bitmap: (0..FRAMES).collect(),
            cursor: 0,
            begun: false,
            sent: BTreeMap::new(),
            output: Vec::new(),
            downtime_limit: Duration::from_millis(1),
            link: None,
            measured: 0,
            drained: 0,
            looked: Duration::ZERO,
            synchronised: Vec::new(),
            stopped: false,
            completed: false,
        }
    }

    /// So much of its stream was read.
    pub(crate) fn read(&mut self, bytes: usize) {
        self.drained += bytes as u64;
    }

    /// Writes as much as somebody reads.
    pub(crate) fn writes(&mut self, guest: &mut Guest, now: Duration) {
        if !self.begun {
            self.begun = true;
            let length = (FRAMES * PAGE) as u64;
            self.builder
                .ram_start(&[StreamBuilder::block("pc.ram", length)]);
            self.synchronises(guest, now);
        }
        if self.completed {
            return;
        }
        if now >= self.looked + LOOK_EVERY {
            let passed = (now - self.looked).as_millis() as u64;
            self.measured = self.drained * 1000 / passed;
            self.drained = 0;
            self.looked = now;
            self.completes_if_it_fits(guest, now);
            if self.completed {
                self.output.extend(self.builder.take());
                return;
            }
        }
        let section_id = 2;
        self.builder.event(&Event::RamPart { section_id });
        let mut count = self.output.len() / PAGE;
        while count < SOCKET_PAGES {
            let next = self.bitmap.range(self.cursor..).next().copied();
            let Some(frame) = next else {
                if self.cursor == 0 {
                    break;
                }
                self.cursor = 0;
                self.synchronises(guest, now);
                if self.bitmap.is_empty() {
                    break;
                }
                continue;
            };
            count += self.send(guest, frame);
        }
        self.builder.event(&Event::RamEos { section_id });
        self.output.extend(self.builder.take());
    }

    fn synchronises(&mut self, guest: &mut Guest, now: Duration) {
        self.bitmap.append(&mut guest.log);
        self.synchronised.push(now);
    }

    fn completes_if_it_fits(&mut self, guest: &mut Guest, now: Duration) {
        let rate = self.link.unwrap_or(self.measured);
        let fits = rate as f64 * self.downtime_limit.as_secs_f64();
        let left = |bitmap: &BTreeSet<usize>| (bitmap.len() * PAGE) as f64;
        if left(&self.bitmap) > fits {
            return;
        }
        self.synchronises(guest, now);
        if left(&self.bitmap) > fits {
            return;
        }
        self.stopped = true;
        self.bitmap.append(&mut guest.log);
        let section_id = 2;
        self.builder.event(&Event::RamEnd { section_id });
        while let Some(frame) = self.bitmap.first().copied() {
            self.send(guest, frame);
        }
        self.builder.event(&Event::RamEos { section_id });
        self.builder.device(7, "timer", &[1, 2, 3]);
        self.builder.event(&Event::End { vmdesc: None });
        self.completed = true;
    }

    /// Yields how many pages' room it takes.
    fn send(&mut self, guest: &Guest, frame: usize) -> usize {
        self.bitmap.remove(&frame);
        self.cursor = frame + 1;
        let (offset, holds) = ((frame * PAGE) as u64, guest.memory[frame]);
        self.sent.insert(frame, holds);
        if holds == 0 {
            self.builder.zero(0, offset);
            return 0;
        }
        let mut page = [0; PAGE];
        fill(&mut page, holds);
        self.builder.page(0, offset, &page);
        1
    }
}

/// What a frame that holds this looks like.
pub(crate) fn fill(page: &mut [u8], holds: u64) {
    for word in page.chunks_mut(8) {
        word.copy_from_slice(&holds.to_be_bytes());
    }
}
