//! The destination half: frames in, a stream that QEMU accepts out.

mod following;

use std::collections::VecDeque;

use pack::{Decompressor, Recollection};
use qemu_stream::{BlockId, Emitter, Event, RamBlock, return_path};
use wire::{
    AbortCode, Accept, Capabilities, Digest, Form, Frame, Hello, Message, PagesFrame, Preamble,
    RamSetup, Started, Thawed, put_control,
};

use crate::{Fault, PageTable};
use following::Following;
pub use following::{FaultNews, Remains};

/// The value of the PING that asks QEMU whether it has loaded everything. Any value that QEMU
/// itself does not use.
const FENCE: u32 = 0x756e_6d72;

/// RAM blocks that a peer may announce. QEMU has a handful.
const BLOCKS_MAX: usize = 4096;

/// The destination half of a migration.
///
/// ```text
/// Greeting ─Hello─► Admitting ─accept()─► Head ─► Setup ─► Memory ─► Devices ─DeviceEnd─► Loading
///                                                                                           │ PONG
///   Finished ◄─Bye─ Started ◄─started()─ Starting ◄─Commit─ Ready ◄─────── equal digests ───┘
/// ```
///
/// If memory follows, it comes in `Starting` and `Started`.
///
/// QEMU's stream is complete but for its end mark until `Commit` arrives, so the VM cannot run
/// before that. The end mark and the empty description after it are written in one piece: a
/// stream that ended between them would start the VM and report failure.
#[derive(Debug)]
pub struct Destination {
    phase: DestinationPhase,
    session: Option<[u8; 16]>,
    seed: u64,
    memory_limit: u64,
    actions: VecDeque<DestinationAction>,
    emitter: Emitter,
    ram: Option<Ram>,
    device_bytes: u64,
    started: Option<Started>,
    uses: Capabilities,
    decompressor: Decompressor,
    recollection: Recollection,
    /// Kept for its memory.
    recalled: Vec<u8>,
    following: Following,
    offers: Capabilities,
}

/// Where the destination half stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DestinationPhase {
    /// Waiting for a source to introduce itself.
    Greeting,
    /// The outside decides whether to take part.
    Admitting,
    /// Waiting for the stream's head.
    Head,
    /// Waiting for the RAM blocks.
    Setup,
    /// Memory arrives.
    Memory,
    /// Device state arrives.
    Devices,
    /// QEMU loads what it was given.
    Loading,
    /// Everything is loaded and proven equal; the VM waits for the commit.
    Ready,
    /// The commit has come; QEMU starts the VM.
    Starting,
    /// The VM has been started; the source may not know yet.
    Started,
    /// The source knows.
    Finished,
}

impl DestinationPhase {
    /// What the half is doing, for people.
    pub fn describe(self) -> &'static str {
        match self {
            DestinationPhase::Greeting => "waiting for a source",
            DestinationPhase::Admitting => "deciding whether to take part",
            DestinationPhase::Head => "waiting for the stream's head",
            DestinationPhase::Setup => "waiting for the RAM blocks",
            DestinationPhase::Memory => "receiving memory",
            DestinationPhase::Devices => "receiving device state",
            DestinationPhase::Loading => "waiting for QEMU to load",
            DestinationPhase::Ready => "ready, waiting for the commit",
            DestinationPhase::Starting => "starting the VM",
            DestinationPhase::Started => "telling the source that the VM runs",
            DestinationPhase::Finished => "finished",
        }
    }

    /// Whether the source may have committed: from here on a lost connection must not discard
    /// the VM.
    pub fn may_be_committed(self) -> bool {
        self >= DestinationPhase::Ready
    }
}

/// What only the outside can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DestinationAction {
    /// A source has introduced itself: compare the VMs, then call [`Destination::accept`].
    Admit(Hello),
    /// Let QEMU start reading: its stream begins.
    OpenQemu,
    /// The commit has come: note the time. QEMU's end mark is in the output.
    Committed,
    /// QEMU has started the VM (or left it paused, if it was told to): find out which and call
    /// [`Destination::started`].
    Started,
    /// QEMU has loaded all that it needs to start the VM, and is about to: wait until it has, or has
    /// left it paused, and call [`Destination::started`]. Memory follows meanwhile.
    Starting,
    /// All memory that followed is there: call [`Destination::arrived`].
    Arrived,
    /// The source knows the outcome.
    Finish,
}

/// The two outputs of the half.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// Bytes for the source.
    pub peer: &'a mut Vec<u8>,
    /// Bytes for QEMU.
    pub qemu: &'a mut Vec<u8>,
}

#[derive(Debug)]
struct Ram {
    section_id: u32,
    page_size: usize,
    /// Names and lengths.
    blocks: Vec<(String, u64)>,
    table: PageTable,
    part_open: bool,
}

impl Default for Destination {
    fn default() -> Self {
        Self::new()
    }
}

impl Destination {
    /// A destination half that waits for a source.
    pub fn new() -> Self {
        Destination {
            phase: DestinationPhase::Greeting,
            session: None,
            seed: 0,
            memory_limit: 0,
            actions: VecDeque::new(),
            emitter: Emitter::new(),
            ram: None,
            device_bytes: 0,
            started: None,
            uses: Capabilities::default(),
            decompressor: Decompressor::default(),
            recollection: Recollection::default(),
            recalled: Vec::new(),
            following: Following::default(),
            offers: Capabilities::OURS,
        }
    }

    /// A destination half that does no more than `offers` of what this release can do.
    pub fn with(offers: Capabilities) -> Self {
        Destination {
            offers,
            ..Destination::new()
        }
    }

    /// Where the half stands.
    pub fn phase(&self) -> DestinationPhase {
        self.phase
    }

    /// Guest pages whose content has arrived.
    pub fn pages(&self) -> u64 {
        self.digest().pages
    }

    /// Takes the next thing that only the outside can do.
    pub fn next_action(&mut self) -> Option<DestinationAction> {
        self.actions.pop_front()
    }

    /// Whether a lost connection can be resumed.
    pub fn can_resume(&self) -> bool {
        self.uses.has(Capabilities::RESUME)
    }

    /// Whether this names the session.
    pub fn is_session(&self, session: [u8; 16]) -> bool {
        self.session == Some(session)
    }

    /// A connection has been made, the first one or another after a loss.
    pub fn connected(&self, peer: &mut Vec<u8>) {
        Preamble::OURS.put(peer);
    }

    /// Takes part. `memory_limit` bounds in bytes what the source may describe as guest memory,
    /// and with it this half's own memory.
    ///
    /// # Panics
    /// If it was not asked for by [`DestinationAction::Admit`].
    pub fn accept(
        &mut self,
        software: &str,
        vm_facts: String,
        memory_limit: u64,
        peer: &mut Vec<u8>,
    ) {
        assert_eq!(
            self.phase,
            DestinationPhase::Admitting,
            "accept out of turn"
        );
        self.memory_limit = memory_limit;
        self.phase = DestinationPhase::Head;
        let accept = Accept {
            software: software.to_owned(),
            uses: self.uses,
            vm_facts,
        };
        put_control(&Message::Accept(accept), peer);
    }

    /// Takes a frame from the source.
    pub fn frame(&mut self, frame: &Frame<'_>, out: &mut Outputs<'_>) -> Result<(), Fault> {
        match frame {
            Frame::Pages(pages) if self.takes_memory() => self.put_pages(*pages, out.qemu),
            Frame::Packed(packed) if self.takes_memory() && self.uses.has(Capabilities::PACKED) => {
                let mut decompressor = std::mem::take(&mut self.decompressor);
                self.put_packed(decompressor.unpack(packed)?, packed.form, out.qemu)?;
                self.decompressor = decompressor;
                Ok(())
            }
            Frame::Zeros(zeros) if self.takes_memory() => {
                let (ram, emitter, following) = self.open_part(out.qemu)?;
                let block = BlockId(zeros.block);
                for run in zeros.iter() {
                    // A run that leaves its block fails at the first page outside it.
                    let first = u64::from(run.first);
                    for index in first..first + u64::from(run.count) {
                        following.comes(ram.table.layout().slot(block, index)?)?;
                        ram.table.put_zero(block, index)?;
                        emitter.zero(block, index * ram.page_size as u64, out.qemu);
                    }
                }
                Ok(())
            }
            Frame::Device(bytes) if self.phase == DestinationPhase::Devices => {
                self.device_bytes += bytes.len() as u64;
                match self.following.is_any() {
                    true => self.following.keep_devices(bytes),
                    false => {
                        out.qemu.extend_from_slice(bytes);
                        Ok(())
                    }
                }
            }
            Frame::Preamble(preamble) => {
                Preamble::OURS.choose(*preamble)?;
                Ok(())
            }
            Frame::Control(message) => self.message(message, out),
            Frame::Pages(_) | Frame::Packed(_) => Err(self.out_of_order("pages")),
            Frame::Zeros(_) => Err(self.out_of_order("zero pages")),
            Frame::Device(_) => Err(self.out_of_order("device state")),
        }
    }

    /// Closes the open RAM section, if any: call before sending to QEMU.
    pub fn flush(&mut self, qemu: &mut Vec<u8>) {
        if let Some(ram) = &mut self.ram
            && std::mem::take(&mut ram.part_open)
        {
            self.emitter.end_section(ram.section_id, qemu);
        }
    }

    /// Takes a message from QEMU's return path.
    pub fn return_path(
        &mut self,
        message: &return_path::Message<'_>,
        out: &mut Outputs<'_>,
    ) -> Result<(), Fault> {
        use return_path::Message as Rp;
        match (*message, self.phase) {
            (Rp::Pong(FENCE), DestinationPhase::Loading) => {
                self.phase = DestinationPhase::Ready;
                put_control(&Message::Ready(self.digest()), out.peer);
                Ok(())
            }
            (message, DestinationPhase::Starting | DestinationPhase::Started)
                if self.following.is_any() =>
            {
                self.return_path_while_memory_follows(message, out)
            }
            (Rp::Shut(0), DestinationPhase::Starting) => {
                self.actions.push_back(DestinationAction::Started);
                Ok(())
            }
            (Rp::Shut(error), _) if error != 0 => Err(Fault::Refused(error)),
            // QEMU says it unasked if its capability is on; a source whose QEMU does not wait for it
            // has not said that it would hear it.
            (Rp::SwitchoverAck, _) => {
                if self.uses.has(Capabilities::SWITCHOVER_ACK) {
                    put_control(&Message::SwitchoverAck, out.peer);
                }
                Ok(())
            }
            (Rp::Shut(_), _) => Err(self.out_of_order("SHUT on QEMU's return path")),
            (Rp::Pong(_), _) => Err(self.out_of_order("PONG on QEMU's return path")),
            _ => Err(self.out_of_order("post-copy requests on QEMU's return path")),
        }
    }

    /// The VM has been started: tells the source.
    ///
    /// # Panics
    /// If it was not asked for by [`DestinationAction::Started`].
    pub fn started(&mut self, started: Started, peer: &mut Vec<u8>) {
        assert_eq!(
            self.phase,
            DestinationPhase::Starting,
            "started out of turn"
        );
        self.phase = DestinationPhase::Started;
        self.started = Some(started);
        put_control(&Message::Committed(started), peer);
        self.say_if_all_is_here();
    }

    /// What was frozen runs again, or its agent could not be asked: tells the source, if it
    /// listens for that.
    pub fn thawed(&self, thawed: Thawed, peer: &mut Vec<u8>) {
        if self.phase >= DestinationPhase::Started && self.uses.has(Capabilities::THAWED) {
            put_control(&Message::Thawed(thawed), peer);
        }
    }

    /// Tells the source that this side gives up; nothing is put once the commit has been heard. So a
    /// source that hears it in answer to its commit knows that the VM does not run here, and will not.
    pub fn abort(&self, code: AbortCode, reason: &str, peer: &mut Vec<u8>) {
        if self.phase <= DestinationPhase::Ready {
            let reason = reason.to_owned();
            put_control(&Message::Abort { code, reason }, peer);
        }
    }

    fn message(&mut self, message: &Message, out: &mut Outputs<'_>) -> Result<(), Fault> {
        use DestinationPhase as P;
        match (self.phase, message) {
            (_, Message::KeepAlive) => {}
            (phase, Message::Abort { code, reason }) if phase < P::Starting => {
                return Err(Fault::PeerAborted {
                    code: *code,
                    reason: reason.clone(),
                });
            }
            // What is missing is lost.
            (_, Message::Abort { code, reason }) if self.following.is_under_way() => {
                return Err(Fault::PeerAborted {
                    code: *code,
                    reason: reason.clone(),
                });
            }
            (P::Greeting, Message::Hello(hello)) => {
                self.uses = self.offers.negotiate(hello.offers, hello.requires)?;
                self.session = Some(hello.session);
                self.seed = hello.seed;
                self.phase = P::Admitting;
                self.actions
                    .push_back(DestinationAction::Admit(hello.clone()));
            }
            (P::Head, Message::Head(bytes)) => {
                self.actions.push_back(DestinationAction::OpenQemu);
                out.qemu.extend_from_slice(bytes);
                // The source's QEMU has none: this half speaks with its own QEMU alone.
                self.emitter.open_return_path(out.qemu);
                self.phase = P::Setup;
            }
            (P::Head, Message::MayFollow) if self.uses.has(Capabilities::FOLLOWING) => {
                self.following.allow();
            }
            (P::Memory, Message::Follows(pages)) if self.following.is_allowed() => {
                self.withhold(pages, out.qemu)?;
            }
            (P::Starting | P::Started, Message::AllSent(digest)) if self.following.is_any() => {
                self.all_is_sent(*digest, out.qemu)?;
            }
            (P::Setup, Message::RamSetup(setup)) => self.ram_setup(setup, out.qemu)?,
            (P::Setup | P::Memory | P::Devices, Message::Through(bytes)) => {
                self.flush(out.qemu);
                out.qemu.extend_from_slice(bytes);
            }
            (P::Memory, Message::PassEnd(_)) => {}
            (P::Memory, Message::RamEnd) => {
                self.flush(out.qemu);
                if self.following.is_any() {
                    self.discard_what_never_came(out.qemu);
                } else if let Some(ram) = &self.ram {
                    let section_id = ram.section_id;
                    self.emitter.emit(&Event::RamEnd { section_id }, out.qemu);
                    self.emitter.end_section(section_id, out.qemu);
                }
                self.phase = P::Devices;
            }
            (P::Devices, Message::DeviceEnd { bytes, digest }) => {
                self.loading(*bytes, *digest, out.qemu)?;
            }
            (P::Ready, Message::Commit) => self.commit(out.qemu),
            (P::Started, Message::Bye) if !self.following.is_under_way() => {
                self.phase = P::Finished;
                self.actions.push_back(DestinationAction::Finish);
            }
            (_, Message::Verdict { session, commit }) => self.verdict(*session, *commit, out)?,
            (_, message) => return Err(self.out_of_order(message.name())),
        }
        Ok(())
    }

    fn ram_setup(&mut self, setup: &RamSetup, qemu: &mut Vec<u8>) -> Result<(), Fault> {
        let page_size = usize::try_from(setup.page_size)
            .ok()
            .filter(|size| size.is_power_of_two() && (1 << 10..=1 << 16).contains(size))
            .filter(|_| setup.blocks.len() <= BLOCKS_MAX)
            .filter(|_| {
                setup
                    .blocks
                    .iter()
                    .all(|b| (1..256).contains(&b.name.len()))
            })
            .ok_or(wire::WireError::BadMessage)?;
        let lengths = setup.blocks.iter().map(|block| block.used_length);
        let table = PageTable::new(self.seed, page_size, lengths, self.memory_limit)?;
        let blocks: Vec<RamBlock> = setup
            .blocks
            .iter()
            .map(|block| RamBlock {
                name: block.name.clone(),
                used_length: block.used_length,
                page_size: block.page_size,
                region_addr: block.region_addr,
            })
            .collect();
        if self.following.is_allowed() {
            self.emitter.postcopy_advise(page_size as u64, qemu);
        }
        self.emitter.ram_start(
            setup.section_id,
            setup.instance_id,
            setup.version_id,
            &blocks,
            qemu,
        );
        self.ram = Some(Ram {
            section_id: setup.section_id,
            page_size,
            blocks: setup
                .blocks
                .iter()
                .map(|block| (block.name.clone(), block.used_length))
                .collect(),
            table,
            part_open: false,
        });
        self.phase = DestinationPhase::Memory;
        Ok(())
    }

    fn put_packed(&mut self, plain: &[u8], form: Form, qemu: &mut Vec<u8>) -> Result<(), Fault> {
        if form == Form::Pages {
            return self.put_pages(PagesFrame::parse(plain)?, qemu);
        }
        if !self.uses.has(Capabilities::RECALLED) {
            return Err(self.out_of_order("recalled pages"));
        }
        let page_size = self.ram.as_ref().map_or(0, |ram| ram.page_size);
        let mut recalled = std::mem::take(&mut self.recalled);
        recalled.clear();
        self.recollection.recall(plain, page_size, &mut recalled)?;
        self.put_pages(PagesFrame::parse(&recalled)?, qemu)?;
        self.recalled = recalled;
        Ok(())
    }

    fn put_pages(&mut self, pages: PagesFrame<'_>, qemu: &mut Vec<u8>) -> Result<(), Fault> {
        let (ram, emitter, following) = self.open_part(qemu)?;
        let block = BlockId(pages.block);
        for (index, content) in pages.iter(ram.page_size)? {
            let index = u64::from(index);
            following.comes(ram.table.layout().slot(block, index)?)?;
            ram.table.put(block, index, content)?;
            emitter.page(block, index * ram.page_size as u64, content, qemu);
        }
        Ok(())
    }

    /// The open RAM section; opens one if need be.
    fn open_part(
        &mut self,
        qemu: &mut Vec<u8>,
    ) -> Result<(&mut Ram, &mut Emitter, &mut Following), Fault> {
        let Some(ram) = &mut self.ram else {
            return Err(Fault::OutOfOrder {
                message: "pages",
                phase: self.phase.describe(),
            });
        };
        if !ram.part_open {
            self.emitter.begin_part(ram.section_id, qemu);
            ram.part_open = true;
        }
        Ok((ram, &mut self.emitter, &mut self.following))
    }

    /// Whether pages may come.
    fn takes_memory(&self) -> bool {
        match self.phase {
            DestinationPhase::Memory => true,
            DestinationPhase::Starting | DestinationPhase::Started => self.following.is_any(),
            _ => false,
        }
    }

    fn loading(&mut self, bytes: u64, theirs: Digest, qemu: &mut Vec<u8>) -> Result<(), Fault> {
        if bytes != self.device_bytes {
            return Err(Fault::DeviceStateLost {
                sent: bytes,
                arrived: self.device_bytes,
            });
        }
        let ours = self.digest();
        if ours != theirs {
            return Err(Fault::DigestMismatch { ours, theirs });
        }
        self.emitter.ping(FENCE, qemu);
        self.phase = DestinationPhase::Loading;
        Ok(())
    }

    fn commit(&mut self, qemu: &mut Vec<u8>) {
        match self.following.is_any() {
            true => self.run_before_all_is_here(qemu),
            false => qemu.extend_from_slice(&Emitter::END_WITHOUT_DESCRIPTION),
        }
        self.phase = DestinationPhase::Starting;
        self.actions.push_back(DestinationAction::Committed);
    }

    fn verdict(
        &mut self,
        session: [u8; 16],
        commit: bool,
        out: &mut Outputs<'_>,
    ) -> Result<(), Fault> {
        use DestinationPhase as P;
        if self.session != Some(session) {
            return Err(self.out_of_order("a verdict on another session"));
        }
        match (self.phase, commit, self.started) {
            (P::Ready, true, _) => {
                self.commit(out.qemu);
                self.tell_what_is_missing(out.peer);
            }
            (phase, true, _) if phase < P::Ready => {
                return Err(self.out_of_order("a commit of what has not come"));
            }
            (phase, false, _) if phase <= P::Ready => {
                return Err(Fault::PeerAborted {
                    code: AbortCode::Cancelled,
                    reason: "the source has not committed and runs the VM".into(),
                });
            }
            (_, true, Some(started)) => {
                self.phase = P::Started;
                put_control(&Message::Committed(started), out.peer);
                self.tell_what_is_missing(out.peer);
            }
            // The answer follows when QEMU has started the VM.
            (_, true, None) => self.tell_what_is_missing(out.peer),
            (_, false, _) => return Err(self.out_of_order("the revocation of a commit")),
        }
        Ok(())
    }

    fn digest(&self) -> Digest {
        self.ram
            .as_ref()
            .map(|ram| ram.table.digest())
            .unwrap_or_default()
    }

    fn out_of_order(&self, message: &'static str) -> Fault {
        Fault::OutOfOrder {
            message,
            phase: self.phase.describe(),
        }
    }
}
