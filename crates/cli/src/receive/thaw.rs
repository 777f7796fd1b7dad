//! The agent is asked to thaw what was frozen: beside everything else, for the guest may wait for
//! memory that only this process passes on.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use wire::Thawed;

use super::session::{Session, micros, wall_clock};
use crate::agent::Client;
use crate::report::Event;

/// Longest wait for the agent.
const THAW_LIMIT: Duration = Duration::from_secs(5);

/// Under way.
#[derive(Debug)]
pub(super) struct Thawing {
    /// Readable when it is done.
    done: UnixStream,
    thread: JoinHandle<Result<usize, String>>,
    begun: Instant,
}

impl Thawing {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}

impl Session<'_, '_> {
    /// Thaws what the source has frozen, and ends the window.
    pub(super) fn thaw(&mut self) {
        let Some(path) = self.receiver.args.agent.clone() else {
            return;
        };
        let limit = (self.receiver.args.net.peer_timeout / 2).min(THAW_LIMIT);
        let begun = Instant::now();
        let started = UnixStream::pair().and_then(|(done, mut theirs)| {
            let thread = std::thread::Builder::new().name("thaw".into());
            let thread = thread.spawn(move || {
                let thawed = Client::release(&path, limit);
                // Whoever waits hears of it at the latest when this end is closed.
                let _ = theirs.write_all(&[0]);
                match thawed {
                    Ok(thawed) => Ok(thawed.len()),
                    Err(error) => Err(error.to_string()),
                }
            })?;
            Ok(Thawing {
                done,
                thread,
                begun,
            })
        });
        match started {
            Ok(thawing) => self.thawing = Some(thawing),
            Err(error) => self.tell_thawed(Err(error.to_string()), begun),
        }
    }

    /// Takes the agent's answer, waiting for it if need be.
    pub(super) fn has_thawed(&mut self) {
        if let Some(thawing) = self.thawing.take() {
            let begun = thawing.begun;
            let thawed = thawing.thread.join();
            let thawed = thawed.unwrap_or_else(|_| Err("it could not be asked".into()));
            self.tell_thawed(thawed, begun);
        }
    }

    fn tell_thawed(&mut self, thawed: Result<usize, String>, begun: Instant) {
        let processes = match thawed {
            Ok(count) => u32::try_from(count).ok(),
            Err(error) => {
                self.receiver.report.tell(&Event::Note {
                    text: format!(
                        "the agent could not be asked to thaw what was frozen ({error}); it does so by itself, within seconds"
                    ),
                });
                None
            }
        };
        self.thawed = processes;
        let after = self
            .resumed
            .zip(wall_clock())
            .map(|(resumed, now)| now.saturating_sub(resumed));
        let thawed = Thawed {
            processes,
            after_us: micros(after.unwrap_or_else(|| begun.elapsed())),
        };
        self.engine.thawed(thawed, self.to_peer.tail());
    }
}
