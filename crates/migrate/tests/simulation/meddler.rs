//! An agent, and a pilot that believes it, at their worst: pages are held, frozen, turned live and
//! declared free at any moment, with or without reason.

use std::collections::BTreeSet;

use guest_proto::Run;
use migrate::{Group, GuestMemory, KeepBack, MappedRam, Source, Treatment};
use qemu_stream::Event;

use crate::qemu::PAGE;
use crate::random::Random;

/// Pages of the block that holds the guest's frames, its first.
const FRAMES: u64 = 24;

/// A page, as the fake QEMUs name it.
type Key = (u16, u64);

/// Steers the source half at random.
pub(crate) struct Meddler {
    random: Random,
    groups: Vec<Group>,
    left_behind: BTreeSet<Key>,
    held_max: u64,
    /// At some moment copies are made no more.
    reads: bool,
}

impl Meddler {
    /// The one of a seed; half of the VMs have none. It has choices of its own, so that the rest of
    /// a run stays as it was.
    pub(crate) fn of_seed(seed: u64) -> Option<Self> {
        let mut random = Random::new(seed ^ 0x6d65_6464_6c65);
        let held_max = 2 + random.below(40) as u64;
        random.one_in(2).then(|| Meddler {
            random,
            groups: Vec::new(),
            left_behind: BTreeSet::new(),
            held_max,
            reads: seed.is_multiple_of(3),
        })
    }

    pub(crate) fn keep_back(&self) -> KeepBack {
        KeepBack {
            limit: self.held_max * PAGE as u64,
            ram: vec![MappedRam {
                address: 0,
                length: FRAMES * PAGE as u64,
                block: "pc.ram".to_owned(),
                offset: 0,
            }],
        }
    }

    /// Says something, sometimes.
    pub(crate) fn act(
        &mut self,
        source: &mut Source,
        guest: &mut dyn GuestMemory,
        out: &mut Vec<u8>,
        seen: &mut BTreeSet<&'static str>,
    ) {
        if !source.knows_memory() || !self.random.one_in(3) {
            return;
        }
        let runs = self.runs();
        let group = self.groups.get(self.random.below(self.groups.len().max(1)));
        match (self.random.below(9), group.copied()) {
            (7, _) if self.reads => {
                seen.insert("left in the guest");
                source.leave_in_guest();
            }
            (0, _) => {
                seen.insert("held");
                self.groups.extend(source.hold(&runs));
            }
            (1, Some(group)) => source.only_hot(group, &runs),
            (2, Some(group)) => {
                let treatments = [
                    (Treatment::Live, "turned live"),
                    (Treatment::Held, "held again"),
                    (Treatment::Following, "told to follow"),
                    (Treatment::Stopping, "frozen"),
                    (Treatment::Standing, "frozen"),
                ];
                let (treatment, name) = treatments[self.random.below(treatments.len())];
                seen.insert(name);
                source.treat(group, treatment);
            }
            (3, _) => {
                seen.insert("declared free");
                source.may_be_free(&runs);
            }
            (4, _) => {
                source.ask_again();
                for run in source.are_free(&runs) {
                    let frames = run.first..run.first + run.count;
                    self.left_behind.extend(frames.map(|frame| (0, frame)));
                }
            }
            (5, _) => source.none_is_free(),
            (6, _) => {
                let full = self.random.one_in(2);
                if full {
                    seen.insert("link full");
                }
                source.link_is_full(full);
            }
            _ => {
                let room = self.random.below(3 * PAGE);
                source.pump(out.len() + room, guest, out).unwrap();
            }
        }
        if !source.has_room() {
            seen.insert("no room to hold");
        }
        assert!(source.held_bytes() <= self.held_max * PAGE as u64);
    }

    /// QEMU sends a page: whatever was said of it is over.
    pub(crate) fn sees(&mut self, event: &Event<'_>, page_size: u64) {
        if let Event::Page { block, offset, .. } | Event::Zero { block, offset, .. } = event {
            self.left_behind.remove(&(block.0, offset / page_size));
        }
    }

    /// Pages that need not have travelled.
    pub(crate) fn left_behind(&self) -> impl Iterator<Item = &Key> {
        self.left_behind.iter()
    }

    /// Some frames, of which the guest may not have all.
    fn runs(&mut self) -> Vec<Run> {
        let count = 1 + self.random.below(3);
        let mut runs = Vec::new();
        for _ in 0..count {
            runs.push(Run {
                first: self.random.below(30) as u64,
                count: 1 + self.random.below(12) as u64,
            });
        }
        runs
    }
}
