//! Waiting for sockets, and for what the harness writes to standard input.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::record::Record;

/// How long answers may still come in when no more requests are sent.
pub(crate) const TAIL: Duration = Duration::from_secs(5);

/// Waits for one of `fds` or for `until`; tells whether standard input has news.
pub(crate) fn wait(
    fds: &[(BorrowedFd<'_>, PollFlags)],
    watch_input: bool,
    until: Instant,
) -> io::Result<bool> {
    let stdin = io::stdin();
    let mut polled: Vec<_> = fds
        .iter()
        .map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags))
        .collect();
    if watch_input {
        polled.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
    }
    let left = until.saturating_duration_since(Instant::now());
    let left = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    };
    poll(&mut polled, Some(&left))?;
    Ok(watch_input
        && polled
            .last()
            .is_some_and(|input| !input.revents().is_empty()))
}

/// What the harness has to say: `mark NAME` begins a window, `span FROM TO NAME` was one, from and to
/// so many milliseconds ago, the end of the input ends the load.
#[derive(Default)]
pub(crate) struct Orders {
    pending: Vec<u8>,
}

impl Orders {
    /// Reads what has come, without waiting if [`wait`] has announced it; tells whether that was
    /// the end.
    pub(crate) fn take(&mut self, record: &mut Record) -> io::Result<bool> {
        let mut buffer = [0; 256];
        let count = rustix::io::read(io::stdin(), &mut buffer)?;
        self.pending.extend_from_slice(&buffer[..count]);
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line[..end]).into_owned();
            if let Some(name) = line.strip_prefix("mark ") {
                record.mark(name, Instant::now());
            } else if let Some(span) = line.strip_prefix("span ") {
                let mut words = span.splitn(3, ' ');
                let mut ago = || {
                    let millis = words.next()?.parse().ok()?;
                    Instant::now().checked_sub(Duration::from_millis(millis))
                };
                if let (Some(begins), Some(ends)) = (ago(), ago()) {
                    record.span(words.next().unwrap_or_default(), begins, ends);
                }
            }
        }
        Ok(count == 0)
    }
}
