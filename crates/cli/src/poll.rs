//! Waiting for several things at once.

use std::io;
use std::time::Instant;

use rustix::event::{PollFd, Timespec, poll};

/// Waits until one of `fds` is ready or `deadline` has passed, and tells how many are ready.
pub(crate) fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<usize> {
    loop {
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        match poll(fds, timeout.as_ref()) {
            Ok(ready) => return Ok(ready),
            // A signal: whoever cares has it in its own descriptor.
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
