//! Ctrl-C and its kin as something a poll loop can wait for.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Becomes readable when the user or the system asks this process to end.
#[derive(Debug)]
pub(crate) struct Signals {
    pipe: UnixStream,
}

impl Signals {
    /// Takes over SIGINT, SIGTERM and SIGHUP.
    pub(crate) fn install() -> std::io::Result<Self> {
        let (pipe, notify) = UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, notify.try_clone()?)?;
        }
        Ok(Signals { pipe })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// Whether a signal has arrived since the last call.
    pub(crate) fn take(&mut self) -> bool {
        let mut seen = false;
        let mut buffer = [0; 16];
        while matches!(self.pipe.read(&mut buffer), Ok(count) if count > 0) {
            seen = true;
        }
        seen
    }
}
