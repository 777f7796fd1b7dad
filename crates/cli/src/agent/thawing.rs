//! The agent is asked to thaw what was frozen: beside everything else, for the guest may wait for
//! memory that only this process passes on.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Client;

/// Longest wait for the agent.
const THAW_LIMIT: Duration = Duration::from_secs(5);

/// Under way.
#[derive(Debug)]
pub(crate) struct Thawing {
    /// Readable when it is done.
    done: UnixStream,
    thread: JoinHandle<Result<usize, String>>,
    begun: Instant,
}

impl Thawing {
    /// Asks the agent at the other end of the channel `path`, for half the time at the most after which
    /// a silent peer is given up.
    pub(crate) fn begin(path: PathBuf, peer_timeout: Duration) -> std::io::Result<Self> {
        let limit = (peer_timeout / 2).min(THAW_LIMIT);
        let (done, mut theirs) = UnixStream::pair()?;
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
            begun: Instant::now(),
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }

    /// How many processes it has thawed, waiting for the answer if need be, and how long that took.
    pub(crate) fn outcome(self) -> (Result<usize, String>, Duration) {
        let thawed = self.thread.join();
        let thawed = thawed.unwrap_or_else(|_| Err("it could not be asked".into()));
        (thawed, self.begun.elapsed())
    }
}

/// What is told where that failed.
pub(crate) fn could_not_thaw(error: &str) -> String {
    format!(
        "the agent could not be asked to thaw what was frozen ({error}); it does so by itself, within seconds"
    )
}
