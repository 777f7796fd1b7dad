//! After the commit, the connection is lost: what has become of the VM?

use std::time::{Duration, Instant};

use migrate::SourceAction;
use rustix::event::{PollFd, PollFlags};
use wire::Started;

use super::session::Session;
use super::{Failure, failed};
use crate::buffer::{Filled, Input, Output};
use crate::net::Link;
use crate::poll::wait;
use crate::report::Event;

/// How long to go on asking. The destination waits for the question.
const ASK_FOR: Duration = Duration::from_secs(60);
/// Pause between two attempts, and the limit of each.
const ATTEMPT: Duration = Duration::from_secs(3);

/// What was found out.
pub(super) enum Settled {
    Moved(Started),
    Unknown(String),
}

impl Session<'_> {
    /// Asks the destination for the outcome until it answers, the time is up or the user has
    /// enough. The VM rests here meanwhile, whatever happens.
    pub(super) fn settle(&mut self, failure: &Failure) -> Settled {
        self.report.tell(&Event::Note {
            text: format!("after the commit, {failure}; asking the destination for the outcome"),
        });
        let deadline = Instant::now() + ASK_FOR;
        let mut last = failure.to_string();
        while Instant::now() < deadline {
            match self.ask() {
                Ok(started) => return Settled::Moved(started),
                Err(Failure::Cancelled(_)) => break,
                Err(Failure::Refused(why)) => return Settled::Unknown(why),
                Err(Failure::Failed(why)) => last = why,
            }
            let mut fds = [PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN)];
            if !matches!(wait(&mut fds, Some(Instant::now() + ATTEMPT)), Ok(0)) {
                break;
            }
        }
        Settled::Unknown(format!("the outcome is not known: {last}"))
    }

    fn ask(&mut self) -> Result<Started, Failure> {
        let to = &self.args.to;
        let mut link = self
            .connector
            .connect(to, ATTEMPT, Some(&mut self.signals))?;
        let (mut input, mut output) = (Input::default(), Output::default());
        let mut decoder = wire::Decoder::new();
        self.engine.ask_outcome(output.tail());
        link.send_all(&mut output, ATTEMPT)
            .map_err(|e| failed(&e))?;
        loop {
            wait_for(&link, self)?;
            match link.receive(&mut input).map_err(|e| failed(&e))? {
                Filled::Some(_) | Filled::WouldBlock => {}
                Filled::Closed => {
                    return Err(Failure::Failed(
                        "the destination closed the connection without an answer".into(),
                    ));
                }
            }
            while let Some((used, frame)) = decoder.next(input.unread()).map_err(|e| failed(&e))? {
                self.engine
                    .frame(frame, output.tail())
                    .map_err(|fault| match fault {
                        migrate::Fault::PeerAborted { reason, .. } => Failure::Refused(format!(
                            "the destination has given the VM up: {reason}"
                        )),
                        fault => failed(&fault),
                    })?;
                input.consume(used);
                if let Some(SourceAction::Finish(started)) = self.engine.next_action() {
                    let _ = link.send_all(&mut output, ATTEMPT);
                    return Ok(started);
                }
            }
        }
    }
}

fn wait_for(link: &Link, session: &Session<'_>) -> Result<(), Failure> {
    let mut fds = [
        PollFd::from_borrowed_fd(link.fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(session.signals.fd(), PollFlags::IN),
    ];
    let ready = wait(&mut fds, Some(Instant::now() + ATTEMPT))
        .map_err(|error| Failure::Failed(error.to_string()))?;
    if ready == 0 {
        return Err(Failure::Failed("the destination does not answer".into()));
    }
    if !fds[1].revents().is_empty() {
        return Err(Failure::Cancelled("cancelled by a signal".into()));
    }
    Ok(())
}
