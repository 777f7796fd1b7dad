//! Memory that follows after the switchover: post-copy, which the source QEMU knows nothing of.
//!
//! ```text
//! let_memory_follow() ── MayFollow ─► … RAM ends: Follows ─► … Commit ─► pages, Needs first ─► AllSent
//!                                                                                              │
//!                                                           Finished ◄─────── Arrived ◄────────┘
//! ```
//!
//! Each page goes once: the destination QEMU takes none twice. Until all have arrived the VM needs
//! this host.

use qemu_stream::RamBlock;
use roaring::RoaringBitmap;
use wire::{Capabilities, Digest, Followed, Message, PageRun, PageRuns, put_control};

use super::memory::{KeepBack, Memory};
use super::{Source, SourceAction, SourcePhase};
use crate::{Fault, PageTable};

/// What is known of the memory that follows.
#[derive(Debug, Default)]
pub(super) struct Following {
    /// Whether any may.
    allowed: bool,
    /// Whether any does.
    any: bool,
    /// All memory as it was when the first of it was sent.
    before: Digest,
    all_sent: bool,
    /// What the destination says that it has not got, until it has said all.
    missing: Option<RoaringBitmap>,
    /// How it has come.
    pub(super) followed: Option<Followed>,
}

impl Source {
    /// Whether the destination can take memory after the switchover.
    pub fn can_follow(&self) -> bool {
        self.uses.has(Capabilities::FOLLOWING)
    }

    /// Lets memory that is held when QEMU has sent its last page follow. Call before QEMU begins.
    ///
    /// # Panics
    /// If the destination [cannot](Source::can_follow).
    pub fn let_memory_follow(&mut self, out: &mut Vec<u8>) {
        assert!(self.can_follow(), "the destination cannot take it");
        self.following.allowed = true;
        put_control(&Message::MayFollow, out);
    }

    /// Whether held memory may follow.
    pub fn may_follow(&self) -> bool {
        self.following.allowed
    }

    /// Whether memory follows, or has: known from the end of the RAM section on.
    pub fn follows(&self) -> bool {
        self.following.any
    }

    /// How it has come; nothing before it has.
    pub fn followed(&self) -> Option<Followed> {
        self.following.followed
    }

    /// From now on everything that QEMU sends is held, whosever it is, but for what stands: it
    /// follows, and QEMU may complete.
    pub fn hold_everything(&mut self) {
        self.with_holds(crate::holds::Holds::hold_everything);
    }

    /// A source half in place of one that has died after its commit: it tells the commit again and
    /// sends what has not arrived, all of which is read from the guest.
    pub fn in_place_of(
        session: [u8; 16],
        seed: u64,
        page_size: usize,
        blocks: &[RamBlock],
    ) -> Result<Self, Fault> {
        let mut source = Source::new(session, seed);
        let lengths = blocks.iter().map(|block| block.used_length);
        let table = PageTable::new(seed, page_size, lengths, u64::MAX)?;
        let mut memory = Memory::new(table, &KeepBack::default(), blocks);
        memory.holds.leave_in_guest();
        source.memory = Some(memory);
        source.phase = SourcePhase::Committed;
        source.following = Following {
            allowed: true,
            any: true,
            ..Following::default()
        };
        Ok(source)
    }

    /// What the page hashes begin with.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The end of the RAM section: tells what follows, if anything does.
    pub(super) fn tell_what_follows(&mut self, out: &mut Vec<u8>) {
        let Some(memory) = &mut self.memory else {
            return;
        };
        let slots = memory.holds.to_follow();
        memory.batch.flush(out);
        for pages in memory.table.layout().page_runs(&slots) {
            put_control(&Message::Follows(pages), out);
        }
        for slot in &slots {
            memory.table.forget(slot as usize);
        }
        self.stats.pages_following = slots.len();
        self.following.any = !slots.is_empty();
        self.following.before = memory.table.digest();
    }

    /// The commit is on its way: what follows may go.
    pub(super) fn let_follow(&mut self) {
        if self.following.any {
            self.with_holds(crate::holds::Holds::let_follow);
        }
    }

    /// On a new connection the destination says first what it has not got.
    pub(super) fn forget_what_was_sent(&mut self) {
        if self.following.any {
            self.following.missing = Some(RoaringBitmap::new());
            self.with_holds(crate::holds::Holds::interrupt);
        }
    }

    /// What the destination says of it.
    pub(super) fn hear_of_following(
        &mut self,
        message: Message,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        match message {
            Message::Needs { block, run } => self.needs(block, run),
            Message::Missing { pages, last } => self.misses(&pages, last),
            // Said before it has heard the question: it will say so again.
            Message::Arrived(_) if self.following.missing.is_some() => Ok(()),
            // It may have been told all before the connection was lost.
            Message::Arrived(followed)
                if self.phase == SourcePhase::Following && self.has_put_all() =>
            {
                self.following.followed = Some(followed);
                self.phase = SourcePhase::Finished;
                put_control(&Message::Bye, out);
                self.actions.push_back(SourceAction::Arrived(followed));
                Ok(())
            }
            message => Err(self.out_of_order(message.name())),
        }
    }

    fn needs(&mut self, block: u16, run: PageRun) -> Result<(), Fault> {
        if let Some(memory) = &mut self.memory {
            let slots = memory.table.layout().slots(block, run)?;
            memory.holds.ask_for(slots);
        }
        Ok(())
    }

    fn misses(&mut self, pages: &PageRuns, last: bool) -> Result<(), Fault> {
        let (Some(memory), Some(missing)) = (&mut self.memory, &mut self.following.missing) else {
            return Err(self.out_of_order("missing pages"));
        };
        for run in &pages.runs {
            missing.insert_range(memory.table.layout().slots(pages.block, *run)?);
        }
        if last {
            let missing = self.following.missing.take().unwrap_or_default();
            for slot in &missing {
                memory.table.forget(slot as usize);
            }
            self.following.before = memory.table.digest();
            self.following.all_sent = false;
            if !memory.holds.follow_with(&missing) {
                return Err(Fault::GuestMemory(
                    "the destination lacks pages that were sent and are not kept here".into(),
                ));
            }
        }
        Ok(())
    }

    /// All that follows has been put: says so, once.
    pub(super) fn say_if_all_is_sent(&mut self, out: &mut Vec<u8>) {
        let under_way = matches!(self.phase, SourcePhase::Committed | SourcePhase::Following);
        let all = under_way && self.has_put_all() && !self.following.all_sent;
        if let Some(memory) = &mut self.memory
            && all
        {
            memory.batch.flush(out);
            let digest = memory.table.digest_since(self.following.before);
            put_control(&Message::AllSent(digest), out);
            self.following.all_sent = true;
        }
    }

    fn has_put_all(&self) -> bool {
        let memory = self.memory.as_ref();
        let none_left = memory.is_some_and(|memory| memory.holds.held_pages() == 0);
        self.following.any && self.following.missing.is_none() && none_left
    }
}
