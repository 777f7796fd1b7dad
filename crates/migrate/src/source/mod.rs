//! The source half: QEMU's stream in, frames out, and the decision to commit.

mod audit;
mod following;
mod keeping;
mod memory;
mod return_path;
mod watchdog;

use std::collections::VecDeque;

use qemu_stream::{BlockId, Emitter, Event, RamBlock};
use wire::{
    AbortCode, Accept, Block, Capabilities, Digest, Followed, Frame, Hello, Message, Preamble,
    RamSetup, Started, Thawed, put_control, put_device,
};

use crate::{Fault, PageTable};
use audit::Audit;
pub use audit::Expected;
use following::Following;
use memory::Memory;
pub use memory::{GuestMemory, KeepBack, NoGuestMemory, WalkPosition};
use return_path::ReturnPath;
use watchdog::Watchdog;

/// Bytes of the stream's head (magic and configuration) that are kept until it is complete.
const HEAD_MAX: usize = 64 << 10;

/// QEMU's command that announces the switchover (machine types from 10.0 on): the one command
/// that may stand in a plain pre-copy stream without a return path.
const SWITCHOVER_START: u16 = 11;

/// The source half of a migration.
///
/// ```text
/// Greeting ─Accept─► Setup ─RAM blocks─► Memory ─RAM end─► Devices ─End─► Loading
///                                                                            │ Ready, equal digests,
///                                                                            ▼ and QEMU has completed
///                                Finished ◄─Committed─ Committed ◄─recorded─ Deciding
///                                    ▲                     │
///                                 Arrived              Committed, and memory follows
///                                    └──── Following ◄─────┘
/// ```
///
/// `Commit` is put on the wire in [`Source::commit_recorded`] alone, which only [`SourceAction::Decide`]
/// leads to. Before that every failure leaves the VM to the source; after it the source never
/// runs the VM again.
#[derive(Debug)]
pub struct Source {
    phase: SourcePhase,
    session: [u8; 16],
    seed: u64,
    actions: VecDeque<SourceAction>,
    emitter: Emitter,
    head: Option<Vec<u8>>,
    ram: Option<RamHead>,
    keep_back: KeepBack,
    memory: Option<Memory>,
    audit: Audit,
    following: Following,
    ready: Option<Digest>,
    qemu_completed: bool,
    /// Where QEMU has one.
    return_path: Option<ReturnPath>,
    watchdog: Watchdog,
    uses: Capabilities,
    thawed: Option<Thawed>,
    stats: SourceStats,
}

/// Where the source half stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourcePhase {
    /// Waiting for the destination to accept.
    Greeting,
    /// Waiting for QEMU to name its RAM blocks.
    Setup,
    /// Memory travels; the VM runs, or has just been stopped.
    Memory,
    /// Device state travels; the VM is stopped.
    Devices,
    /// Everything is sent; waiting for the destination to have loaded it.
    Loading,
    /// The destination is ready; the commit is about to be recorded.
    Deciding,
    /// The commit was sent; waiting to hear that the VM runs.
    Committed,
    /// The VM has been started at the destination, and needs memory that is still here.
    Following,
    /// The VM has been started at the destination, which has everything.
    Finished,
}

impl SourcePhase {
    /// What the half is doing, for people.
    pub fn describe(self) -> &'static str {
        match self {
            SourcePhase::Greeting => "greeting the destination",
            SourcePhase::Setup => "waiting for QEMU's RAM blocks",
            SourcePhase::Memory => "sending memory",
            SourcePhase::Devices => "sending device state",
            SourcePhase::Loading => "waiting for the destination to load",
            SourcePhase::Deciding => "about to commit",
            SourcePhase::Committed => "waiting for the VM to run at the destination",
            SourcePhase::Following => "sending the memory that follows",
            SourcePhase::Finished => "finished",
        }
    }
}

/// What only the outside can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceAction {
    /// The destination takes part: compare the VMs, then let QEMU start.
    Start(Accept),
    /// All memory is sent, and was to be audited: compare it with [`Source::expected`], call
    /// [`Source::repair`] where it differs, and then [`Source::audited`].
    Audit,
    /// Everything is proven equal and QEMU has completed: record the commit where it survives
    /// this process, then call [`Source::commit_recorded`].
    Decide,
    /// The VM has been started at the destination.
    Finish(Started),
    /// The VM has been started at the destination, and memory follows.
    Runs(Started),
    /// All of it has arrived.
    Arrived(Followed),
}

/// What has been done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceStats {
    /// Pages sent with their content.
    pub pages_sent: u64,
    /// Pages sent as a reference to zeros.
    pub pages_zero: u64,
    /// Pages that QEMU sent and the destination already had.
    pub pages_dropped: u64,
    /// Bytes of device state.
    pub device_bytes: u64,
    /// Of the pages sent, those of frozen processes.
    pub pages_paused: u64,
    /// Of the pages sent, those that had been held until they changed no more.
    pub pages_cooled: u64,
    /// Of the pages sent, those that had been held and had to go.
    pub pages_flushed: u64,
    /// Pages that were to follow after the switchover when the VM stopped.
    pub pages_following: u64,
    /// Of the pages sent, those that have followed,
    pub pages_followed: u64,
    /// and those that the VM had asked for.
    pub pages_asked: u64,
    /// Pages that did not travel since the guest had declared them free.
    pub pages_free: u64,
    /// Most pages held at once.
    pub held_peak_pages: u64,
    /// Walks of QEMU over its dirty pages, the present one included.
    pub walks: u32,
    /// Pages that QEMU has brought and that were moved live, pages of zeros aside.
    pub live_pages: u64,
    /// Pages that QEMU has brought and that were held.
    pub held_arrivals: u64,
    /// Guest memory that the stream describes, in bytes.
    pub ram_bytes: u64,
}

#[derive(Debug)]
struct RamHead {
    section_id: u32,
    instance_id: u32,
    version_id: u32,
}

impl Source {
    /// A source half for the given session; `seed` is the random seed of the page hashes.
    pub fn new(session: [u8; 16], seed: u64) -> Self {
        Source {
            phase: SourcePhase::Greeting,
            session,
            seed,
            actions: VecDeque::new(),
            emitter: Emitter::new(),
            head: Some(Vec::new()),
            ram: None,
            keep_back: KeepBack::default(),
            memory: None,
            audit: Audit::Off,
            following: Following::default(),
            ready: None,
            qemu_completed: false,
            return_path: None,
            watchdog: Watchdog::default(),
            uses: Capabilities::default(),
            thawed: None,
            stats: SourceStats::default(),
        }
    }

    /// Where the half stands.
    pub fn phase(&self) -> SourcePhase {
        self.phase
    }

    /// What has been done so far.
    pub fn stats(&self) -> SourceStats {
        self.stats
    }

    /// Digest of all memory that was sent.
    pub fn digest(&self) -> Digest {
        self.memory
            .as_ref()
            .map(|memory| memory.table.digest())
            .unwrap_or_default()
    }

    /// Whether the destination says when it has thawed what was frozen.
    pub fn hears_of_thaw(&self) -> bool {
        self.uses.has(Capabilities::THAWED)
    }

    /// What the destination said of it.
    pub fn thawed(&self) -> Option<Thawed> {
        self.thawed
    }

    /// Whether a lost connection can be resumed.
    pub fn can_resume(&self) -> bool {
        self.uses.has(Capabilities::RESUME)
    }

    /// Whether the destination keeps pages, so that others can be told by them.
    pub fn can_recall(&self) -> bool {
        self.can_pack() && self.uses.has(Capabilities::RECALLED)
    }

    /// Whether the session may use several connections.
    pub fn can_use_several(&self) -> bool {
        self.can_resume() && self.uses.has(Capabilities::SEVERAL)
    }

    /// Whether the destination unpacks batches of pages that were compressed.
    pub fn can_pack(&self) -> bool {
        self.uses.has(Capabilities::PACKED)
    }

    /// Takes the next thing that only the outside can do.
    pub fn next_action(&mut self) -> Option<SourceAction> {
        self.actions.pop_front()
    }

    /// Opens the session: call once, when connected.
    pub fn greet(&self, software: &str, vm_facts: String, out: &mut Vec<u8>) {
        Preamble::OURS.put(out);
        let hello = Hello {
            session: self.session,
            seed: self.seed,
            software: software.to_owned(),
            offers: self.offers(),
            requires: Capabilities::REQUIRED,
            vm_facts,
        };
        put_control(&Message::Hello(hello), out);
    }

    /// Asks for the outcome on a new connection, after the first was lost in phase `Committed` or
    /// `Following`.
    pub fn ask_outcome(&mut self, out: &mut Vec<u8>) {
        self.forget_what_was_sent();
        put_verdict(self.session, true, out);
    }

    /// Takes a frame from the destination.
    pub fn frame(&mut self, frame: Frame<'_>, out: &mut Vec<u8>) -> Result<(), Fault> {
        let message = match frame {
            Frame::Preamble(preamble) => {
                Preamble::OURS.choose(preamble)?;
                return Ok(());
            }
            Frame::Control(message) => message,
            Frame::Pages(_) | Frame::Packed(_) | Frame::Zeros(_) | Frame::Device(_) => {
                return Err(self.out_of_order("memory"));
            }
        };
        match (self.phase, message) {
            (_, Message::KeepAlive) => Ok(()),
            (_, Message::Abort { code, reason }) => Err(Fault::PeerAborted { code, reason }),
            (SourcePhase::Greeting, Message::Accept(accept)) => {
                let ours = self.offers();
                self.uses = ours.negotiate(accept.uses, Capabilities::REQUIRED)?;
                self.phase = SourcePhase::Setup;
                self.actions.push_back(SourceAction::Start(accept));
                Ok(())
            }
            (phase, Message::SwitchoverAck)
                if phase > SourcePhase::Greeting && self.hears_of_agreement() =>
            {
                self.is_agreed();
                Ok(())
            }
            (SourcePhase::Loading, Message::Ready(theirs)) if self.ready.is_none() => {
                let ours = self.digest();
                if ours != theirs {
                    return Err(Fault::DigestMismatch { ours, theirs });
                }
                self.ready = Some(theirs);
                self.decide_if_all_is_said();
                Ok(())
            }
            (SourcePhase::Committed, Message::Committed(started)) if self.follows() => {
                self.phase = SourcePhase::Following;
                self.actions.push_back(SourceAction::Runs(started));
                Ok(())
            }
            (SourcePhase::Committed, Message::Committed(started)) => {
                self.phase = SourcePhase::Finished;
                self.has_loaded();
                put_control(&Message::Bye, out);
                self.actions.push_back(SourceAction::Finish(started));
                Ok(())
            }
            // The destination started the VM just as it was asked for the outcome on a new
            // connection: it says so by itself, and once more as its answer.
            (SourcePhase::Following | SourcePhase::Finished, Message::Committed(_)) => Ok(()),
            (SourcePhase::Following | SourcePhase::Finished, Message::Thawed(thawed)) => {
                self.thawed = Some(thawed);
                Ok(())
            }
            (SourcePhase::Committed | SourcePhase::Following, message) if self.follows() => {
                self.hear_of_following(message, out)
            }
            (_, message) => Err(self.out_of_order(message.name())),
        }
    }

    /// Takes an event of QEMU's stream; `blocks` are those of the parser.
    #[inline]
    pub fn event(
        &mut self,
        event: &Event<'_>,
        blocks: &[RamBlock],
        page_size: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        match *event {
            Event::Page {
                block,
                offset,
                data,
                ..
            } => self.page(block, offset, Some(data), out),
            Event::Zero {
                block,
                offset,
                fill: 0,
                ..
            } => self.page(block, offset, None, out),
            _ => {
                // The caller should have pumped already, in portions.
                if self.must_drain() {
                    self.pump(usize::MAX, &mut NoGuestMemory, out)?;
                }
                self.rare_event(event, blocks, page_size, out)
            }
        }
    }

    /// QEMU says that its migration has completed (or has closed the stream after its end).
    pub fn qemu_completed(&mut self) {
        self.qemu_completed = true;
        self.decide_if_all_is_said();
    }

    /// The commit has been recorded: tells the destination. There is no way back from here.
    ///
    /// # Panics
    /// If it was not asked for by [`SourceAction::Decide`].
    pub fn commit_recorded(&mut self, out: &mut Vec<u8>) {
        assert_eq!(self.phase, SourcePhase::Deciding, "commit out of turn");
        self.phase = SourcePhase::Committed;
        put_control(&Message::Commit, out);
        self.let_follow();
    }

    /// Closes open batches: call before sending `out`.
    #[inline]
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        if let Some(memory) = &mut self.memory {
            memory.batch.flush(out);
        }
    }

    /// Tells the destination that this side gives up. Nothing is put once the commit was sent.
    pub fn abort(&mut self, code: AbortCode, reason: &str, out: &mut Vec<u8>) {
        if self.phase < SourcePhase::Committed {
            self.flush(out);
            let reason = reason.to_owned();
            put_control(&Message::Abort { code, reason }, out);
        }
    }

    #[inline]
    fn page(
        &mut self,
        block: BlockId,
        offset: u64,
        content: Option<&[u8]>,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let Some(memory) = &mut self.memory else {
            return Err(self.out_of_order("a page before the RAM blocks"));
        };
        memory.arrive(block, offset, content, &mut self.stats, out)
    }

    fn rare_event(
        &mut self,
        event: &Event<'_>,
        blocks: &[RamBlock],
        page_size: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        if self.is_auditing() {
            return Err(self.out_of_order("more of QEMU's stream"));
        }
        match *event {
            Event::FileHeader
            | Event::Configuration { .. }
            | Event::TargetPageBits(_)
            | Event::Capabilities(_)
            | Event::Uuid(_) => {
                let Some(head) = &mut self.head else {
                    return Err(self.out_of_order("configuration in the middle of the stream"));
                };
                self.emitter.emit(event, head);
                if head.len() > HEAD_MAX {
                    return Err(Fault::Unsupported {
                        feature: "a configuration section of more than 64 KiB",
                        remedy: "this is not a stream that QEMU writes",
                    });
                }
                Ok(())
            }
            Event::RamStart {
                section_id,
                instance_id,
                version_id,
            } => {
                self.send_head(out);
                self.ram = Some(RamHead {
                    section_id,
                    instance_id,
                    version_id,
                });
                Ok(())
            }
            Event::RamBlocks => self.ram_blocks(blocks, page_size, out),
            Event::RamPart { .. } => {
                self.watchdog.part_begins(self.position());
                Ok(())
            }
            Event::MultifdFlush => Ok(()),
            Event::RamEnd { .. } => {
                if let Some(memory) = &mut self.memory {
                    memory.ending = true;
                }
                Ok(())
            }
            Event::RamEos { .. } => {
                self.watchdog.part_ends(self.position());
                let may_follow = self.may_follow();
                if let Some(memory) = &mut self.memory
                    && memory.ending
                {
                    match may_follow {
                        true => memory.holds.rest_follows(),
                        false => memory.holds.all_due(),
                    }
                    memory.draining = true;
                    self.end_ram_if_drained(out);
                }
                Ok(())
            }
            Event::Command { id, .. } if id == SWITCHOVER_START => {
                self.through(event, out);
                Ok(())
            }
            Event::Command { id, payload } => self.command(id, payload),
            Event::EarlyFull { .. } => {
                self.send_head(out);
                self.through(event, out);
                Ok(())
            }
            Event::Device(bytes) => {
                self.stats.device_bytes += bytes.len() as u64;
                put_device(bytes, out);
                Ok(())
            }
            Event::End { .. } => {
                if self.phase != SourcePhase::Devices {
                    return Err(self.out_of_order("the end of the stream"));
                }
                let message = Message::DeviceEnd {
                    bytes: self.stats.device_bytes,
                    digest: self.digest(),
                };
                put_control(&message, out);
                self.phase = SourcePhase::Loading;
                Ok(())
            }
            Event::Zero { .. } => Err(Fault::Unsupported {
                feature: "pages filled with a byte other than zero",
                remedy: "no QEMU since 1.0 writes them",
            }),
            Event::Xbzrle { .. } => Err(Fault::Unsupported {
                feature: "XBZRLE",
                remedy: "switch the capability `xbzrle` off at the source",
            }),
            // Taken in `event` already, for speed.
            Event::Page {
                block,
                offset,
                data,
                ..
            } => self.page(block, offset, Some(data), out),
        }
    }

    fn ram_blocks(
        &mut self,
        blocks: &[RamBlock],
        page_size: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let (Some(ram), None, SourcePhase::Setup) = (&self.ram, &self.memory, self.phase) else {
            return Err(self.out_of_order("a second list of RAM blocks"));
        };
        self.check_return_path()?;
        let lengths = blocks.iter().map(|block| block.used_length);
        self.stats.ram_bytes = lengths.clone().sum();
        self.stats.walks = 1;
        // The list is that of our own QEMU: no bound but its own.
        let table = PageTable::new(self.seed, page_size, lengths, u64::MAX)?;
        self.memory = Some(Memory::new(table, &self.keep_back, blocks));
        let setup = RamSetup {
            section_id: ram.section_id,
            instance_id: ram.instance_id,
            version_id: ram.version_id,
            page_size: u32::try_from(page_size).unwrap_or(u32::MAX),
            blocks: blocks
                .iter()
                .map(|block| Block {
                    name: block.name.clone(),
                    used_length: block.used_length,
                    page_size: block.page_size,
                    region_addr: block.region_addr,
                })
                .collect(),
        };
        put_control(&Message::RamSetup(setup), out);
        self.phase = SourcePhase::Memory;
        Ok(())
    }

    fn send_head(&mut self, out: &mut Vec<u8>) {
        if let Some(head) = self.head.take() {
            put_control(&Message::Head(head), out);
        }
    }

    fn through(&mut self, event: &Event<'_>, out: &mut Vec<u8>) {
        self.flush(out);
        let mut bytes = Vec::new();
        self.emitter.emit(event, &mut bytes);
        put_control(&Message::Through(bytes), out);
    }

    fn decide_if_all_is_said(&mut self) {
        let qemu_is_done = self.qemu_completed || self.qemu_waits();
        if self.phase == SourcePhase::Loading && self.ready.is_some() && qemu_is_done {
            self.phase = SourcePhase::Deciding;
            self.actions.push_back(SourceAction::Decide);
        }
    }

    fn out_of_order(&self, message: &'static str) -> Fault {
        Fault::OutOfOrder {
            message,
            phase: self.phase.describe(),
        }
    }
}

/// Opens a connection that tells the destination the decision of a session: preamble and verdict.
pub fn put_verdict(session: [u8; 16], commit: bool, out: &mut Vec<u8>) {
    Preamble::OURS.put(out);
    put_control(&Message::Verdict { session, commit }, out);
}
