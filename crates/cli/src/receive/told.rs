//! What somebody on this host asks of `unmoor receive`.

use migrate::{DestinationPhase, Outputs};
use wire::{Frame, Message};

use super::Receiver;
use super::session::{Session, Stop};
use crate::control::{Answer, Request, Role, Status};
use crate::report::{Event, session_name};
use crate::send::{Failure, failed};

impl Receiver<'_> {
    /// While no source has come.
    pub(super) fn hear_while_idle(&mut self) {
        let status = self.status();
        self.control.serve(|request| match request {
            Request::Status => Answer::Status(Box::new(status.clone())),
            Request::Tune { .. } => sources_business(),
            Request::Resolve { .. } => Answer::Refused {
                why: "no source has come yet".into(),
            },
        });
    }

    fn status(&self) -> Status {
        Status {
            role: Role::Receive,
            pid: std::process::id(),
            qmp: self.args.qmp.display().to_string(),
            session: None,
            peer: None,
            path: None,
            phase: "waiting for a source".into(),
            in_doubt: false,
            runs: false,
            wire_bytes: None,
            rate: None,
            link_bytes_per_s: None,
            bandwidth_bytes_per_s: None,
            lost_probes: Vec::new(),
        }
    }
}

impl Session<'_, '_> {
    /// Answers whoever asks, and does what an operator has decided.
    pub(super) fn hear(&mut self) -> Result<(), Stop> {
        let status = self.status();
        let refusal = self.not_in_doubt();
        let mut decided = None;
        self.receiver.control.serve(|request| match request {
            Request::Status => Answer::Status(Box::new(status.clone())),
            Request::Tune { .. } => sources_business(),
            Request::Resolve { run } => match &refusal {
                Some(why) => Answer::Refused { why: why.clone() },
                None => {
                    decided.get_or_insert(run);
                    Answer::Done
                }
            },
        });
        match decided {
            Some(run) => self.resolve(run),
            None => Ok(()),
        }
    }

    fn status(&self) -> Status {
        let channel = self.link.as_ref().map(|connection| &connection.channel);
        Status {
            session: self.session.map(session_name),
            peer: channel.map(|channel| channel.peer().to_string()),
            path: channel.map(crate::net::Channel::describe),
            phase: self.engine.phase().describe().into(),
            in_doubt: self.not_in_doubt().is_none(),
            runs: self.must_wait_for_the_source(),
            ..self.receiver.status()
        }
    }

    /// Why nobody but the source decides; nothing if it was cut off and may have committed.
    fn not_in_doubt(&self) -> Option<String> {
        if self.must_wait_for_the_source() {
            let connected = self.link.is_some();
            connected.then(|| "the source is connected, and sends what has not come".into())
        } else if self.engine.phase() != DestinationPhase::Ready {
            Some(format!(
                "there is nothing to resolve while {}",
                self.engine.phase().describe()
            ))
        } else if self.link.is_some() {
            Some("the source is connected, and decides".into())
        } else if self.cut.is_some() {
            Some("it waits for the source to come back (--reconnect)".into())
        } else {
            None
        }
    }

    /// An operator has looked at both hosts.
    fn resolve(&mut self, run: bool) -> Result<(), Stop> {
        if !run {
            let given_up = Failure::Cancelled("given up by `unmoor resolve`".into());
            return Err(match self.must_wait_for_the_source() {
                true => Stop::MemoryLost(given_up),
                false => given_up.into(),
            });
        }
        if self.must_wait_for_the_source() {
            self.receiver.report.tell(&Event::Note {
                text: "the VM was started here long ago: `unmoor resolve --give-up` would end the waiting for its memory".into(),
            });
            return Ok(());
        }
        let Some(session) = self.session else {
            return Ok(());
        };
        self.receiver.report.tell(&Event::Note {
            text: "the VM runs here, by `unmoor resolve`".into(),
        });
        let verdict = Frame::Control(Message::Verdict {
            session,
            commit: true,
        });
        let mut outputs = Outputs {
            peer: self.to_peer.tail(),
            qemu: self.to_qemu.tail(),
        };
        self.engine
            .frame(&verdict, &mut outputs)
            .map_err(|fault| failed(&fault).into())
    }
}

fn sources_business() -> Answer {
    Answer::Refused {
        why: "the source decides how much it sends: use `unmoor tune` there".into(),
    }
}
