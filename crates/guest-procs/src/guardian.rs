//! A second process that thaws everything when the agent dies.
//!
//! The agent holds the only write end of the guardian's standard input; nothing is ever written.
//! When the agent ends, SIGKILL included, the kernel closes it, and the guardian undoes what the
//! journals list. Whoever stops the agent's whole service at once must not kill the guardian with
//! it: it ignores the signals by which that is usually asked for, and [`undo`] can be run after.
#![expect(unsafe_code, reason = "std cannot ignore signals")]

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::journal::Journal;
use crate::realtime;

/// The agent's end.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
}

impl Guardian {
    /// Starts `command`, which has to call [`run`] with its standard input.
    pub fn spawn(mut command: Command) -> io::Result<Self> {
        // The standard library keeps the write end from every other child.
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Guardian { child })
    }

    /// Its process id, for the [`Freezer`](crate::Freezer) to spare.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is there. Nothing should be frozen without one.
    pub fn is_there(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Guardian {
    /// It undoes what there is to be undone, and ends.
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // It may have ended before.
        let _ = self.child.wait();
    }
}

/// The guardian's life: waits for the end of `watched`, then undoes what is listed in `folder`.
/// Yields how much that was.
pub fn run(mut watched: impl Read, folder: &Path) -> io::Result<usize> {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: SIG_IGN installs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    // It has to get through where frozen and busy processes are many.
    realtime();
    loop {
        match watched.read(&mut [0; 64]) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Nothing can be watched any more: the safe side is to thaw.
            Err(_) => break,
        }
    }
    undo(folder)
}

/// Thaws whatever the journals in `folder` list, and puts settings back.
pub fn undo(folder: &Path) -> io::Result<usize> {
    let thawed = Journal::frozen(folder).undo();
    let restored = Journal::quiet(folder).undo();
    Ok(thawed? + restored?)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::journal::Entry;

    #[test]
    fn settings_are_put_back_when_the_pipe_closes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("setting");
        fs::write(&path, "1").unwrap();
        let set = Entry::Set {
            path: path.clone(),
            value: "4096".into(),
        };
        Journal::quiet(folder.path()).write(&[set]).unwrap();
        assert_eq!(run(&b"ignored"[..], folder.path()).unwrap(), 1);
        assert_eq!(fs::read(path).unwrap(), b"4096");
        assert_eq!(undo(folder.path()).unwrap(), 0);
    }
}
