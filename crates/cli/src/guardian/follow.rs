//! The source half has died while memory follows: the guardian reads it from the stopped VM, and
//! sends it. The destination says what has not come.

use std::io;
use std::time::{Duration, Instant};

use hypervisor::Vm;
use migrate::pilot::ASSUMED_LINK;
use migrate::{Fault, Source, SourceAction, put_verdict};
use qemu_stream::RamBlock;
use wire::{AbortCode, Frame, Message, put_control};

use super::{Follow, QMP_LIMIT, Watch};
use crate::buffer::{Filled, Input, Output};
use crate::control::{Kept, keep_in_doubt};
use crate::guest_ram::GuestRam;
use crate::net::{Channel, Connector, Hurry, Link};
use crate::poll::wait;
use crate::report::session_name;
use crate::send::{self, WAITING_IN_A_HURRY};

/// Longest try to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Between two tries.
const AGAIN: Duration = Duration::from_millis(250);
/// A destination that says nothing for so long is not there.
const SILENCE: Duration = Duration::from_secs(20);

/// Sends all that is missing, however long that takes.
pub(super) fn go_on(watch: &Watch, follow: &Follow) -> io::Result<()> {
    let peer = watch.peer;
    if !follow.readable {
        eprintln!(
            "unmoor guardian: the relay died while memory followed the VM to {peer}, and QEMU's memory cannot be read here: what had not arrived is lost, and with it the VM at {peer}. The VM here is as it was at the switchover"
        );
        tell_that_it_is_lost(watch);
        return Ok(());
    }
    eprintln!(
        "unmoor guardian: the relay died while memory followed the VM to {peer}: going on with it from QEMU's memory"
    );
    let mut sender = Sender::open(watch, follow).inspect_err(|why| {
        eprintln!(
            "unmoor guardian: that is not possible: {why}. What had not arrived at {peer} is lost, and with it the VM there"
        );
        tell_that_it_is_lost(watch);
    })?;
    crate::hurry();
    let mut kept = None;
    let ended = try_until_it_is_over(&mut sender, watch, follow, &mut kept);
    if let Some(kept) = kept {
        kept.forget();
    }
    ended
}

fn try_until_it_is_over(
    sender: &mut Sender,
    watch: &Watch,
    follow: &Follow,
    kept: &mut Option<Kept>,
) -> io::Result<()> {
    let peer = watch.peer;
    let mut told = false;
    loop {
        match sender.session(watch, follow) {
            Ok(()) => {
                eprintln!(
                    "unmoor guardian: all memory has arrived at {peer}, where the VM runs; what rests here can be ended"
                );
                return Ok(());
            }
            Err(End::Final(why)) => {
                eprintln!("unmoor guardian: {why}: what had not arrived at {peer} is lost");
                tell_that_it_is_lost(watch);
                return Err(io::Error::other(why));
            }
            Err(End::Again(why)) if !told => {
                told = true;
                eprintln!(
                    "unmoor guardian: {why}; trying again until the VM has its memory, or `unmoor resolve {}` decides",
                    session_name(watch.session)
                );
                *kept = keep_in_doubt(watch).ok();
            }
            Err(End::Again(_)) => {}
        }
        if kept.as_ref().is_some_and(Kept::is_decided) {
            eprintln!("unmoor guardian: `unmoor resolve` has decided: not trying any more");
            return Ok(());
        }
        // The end of QEMU is the end of its memory.
        if sender.vm.wait_event(Instant::now() + AGAIN).is_err() {
            eprintln!("unmoor guardian: the QEMU here has ended: what had not arrived is lost");
            tell_that_it_is_lost(watch);
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
}

/// The destination need not wait any longer. Best effort: there an operator can say so as well.
fn tell_that_it_is_lost(watch: &Watch) {
    let told = Connector::new(&watch.protection, &watch.host, watch.from)
        .map_err(io::Error::other)
        .and_then(|connector| {
            let link = connector.connect_to(watch.peer, CONNECT_LIMIT, None);
            let mut output = Output::default();
            put_verdict(watch.session, true, output.tail());
            let abort = Message::Abort {
                code: AbortCode::Qemu,
                reason: "what has not come is lost there".into(),
            };
            put_control(&abort, output.tail());
            let mut link = link.map_err(io::Error::other)?;
            link.send_all(&mut output, CONNECT_LIMIT)?;
            Ok(link)
        });
    match told {
        // It is read before the connection is seen to close.
        Ok(link) => drop(link),
        Err(error) => eprintln!(
            "unmoor guardian: the destination at {} could not be told ({error}): `unmoor resolve {} --give-up` there ends its waiting",
            watch.peer,
            session_name(watch.session)
        ),
    }
}

enum End {
    /// The connection was lost.
    Again(String),
    Final(String),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        End::Again(error.to_string())
    }
}

struct Sender {
    vm: Vm,
    ram: GuestRam,
    connector: Connector,
    blocks: Vec<RamBlock>,
}

impl Sender {
    fn open(watch: &Watch, follow: &Follow) -> io::Result<Self> {
        let mut vm = Vm::connect(&watch.qmp, QMP_LIMIT).map_err(io::Error::other)?;
        let blocks: Vec<RamBlock> = follow
            .blocks
            .iter()
            .map(|(name, length)| RamBlock::plain(name, *length))
            .collect();
        let mut ram = GuestRam::open(&mut vm, follow.qemu_pid).map_err(io::Error::other)?;
        ram.lay_out(&blocks).map_err(io::Error::other)?;
        let connector = Connector::new(&watch.protection, &watch.host, watch.from);
        Ok(Sender {
            vm,
            ram,
            connector: connector.map_err(io::Error::other)?,
            blocks,
        })
    }

    /// One connection, until all has arrived or it is lost.
    fn session(&mut self, watch: &Watch, follow: &Follow) -> Result<(), End> {
        let page_size = usize::try_from(follow.page_size).unwrap_or(0);
        let source = Source::in_place_of(watch.session, follow.seed, page_size, &self.blocks);
        let mut source = source.map_err(|fault| End::Final(fault.to_string()))?;
        let link = self
            .connector
            .connect_to(watch.peer, CONNECT_LIMIT, None)
            .map_err(|error| End::Again(error.to_string()))?;
        let mut conversation = Conversation::new(link);
        source.ask_outcome(conversation.output.tail());
        loop {
            conversation.hear(&mut source)?;
            while let Some(action) = source.next_action() {
                if let SourceAction::Arrived(_) = action {
                    // Best effort: the destination has everything.
                    let _ = conversation
                        .channel
                        .send_all(&mut conversation.output, CONNECT_LIMIT);
                    return Ok(());
                }
            }
            let out = conversation.output.tail();
            source
                .pump(WAITING_IN_A_HURRY, &mut self.ram, out)
                .map_err(|fault| End::Final(fault.to_string()))?;
            source.flush(out);
            conversation.send()?;
            let idle = conversation.output.is_empty() && source.due_bytes() > 0;
            if !idle {
                conversation.wait()?;
            }
        }
    }
}

/// What is spoken over one connection.
struct Conversation {
    channel: Channel,
    input: Input,
    output: Output,
    decoder: wire::Decoder,
    heard: Instant,
}

impl Conversation {
    fn new(link: Link) -> Self {
        let mut channel = Channel::new(link, send::ledger());
        channel.hurry(Hurry { rate: ASSUMED_LINK });
        Conversation {
            channel,
            input: Input::default(),
            output: Output::default(),
            decoder: wire::Decoder::new(),
            heard: Instant::now(),
        }
    }

    fn hear(&mut self, source: &mut Source) -> Result<(), End> {
        match self.channel.receive(&mut self.input)? {
            Filled::Some(_) => self.heard = Instant::now(),
            Filled::WouldBlock => {}
            Filled::Closed => return Err(End::Again("the destination has hung up".into())),
        }
        while let Some((used, frame)) = self
            .decoder
            .next(self.input.unread())
            .map_err(|error| End::Again(error.to_string()))?
        {
            if let Frame::Control(Message::Ack(upto)) = frame {
                let acknowledged = self.channel.acknowledged(upto);
                acknowledged.map_err(|error| End::Again(error.to_string()))?;
            } else {
                source
                    .frame(frame, self.output.tail())
                    .map_err(|fault| match fault {
                        Fault::GuestMemory(_) => End::Final(fault.to_string()),
                        fault => End::Again(fault.to_string()),
                    })?;
            }
            self.input.consume(used);
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), End> {
        if let Some(upto) = self.channel.owes() {
            put_control(&Message::Ack(upto), self.output.tail());
        }
        self.channel.send(&mut self.output, usize::MAX)?;
        Ok(())
    }

    fn wait(&mut self) -> Result<(), End> {
        let until = self.heard + SILENCE;
        let mut fds: Vec<_> = self.channel.poll(true, !self.output.is_empty()).collect();
        if wait(&mut fds, Some(until))? == 0 && Instant::now() >= until {
            return Err(End::Again("the destination says nothing".into()));
        }
        Ok(())
    }
}
