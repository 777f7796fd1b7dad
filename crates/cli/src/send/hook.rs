//! The user's command that runs between readiness and commit.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, set_parent_process_death_signal,
};

/// A running `--before-commit` command.
#[derive(Debug)]
pub(crate) struct Hook {
    child: Child,
    pidfd: OwnedFd,
    pub(crate) begun: Instant,
}

impl Hook {
    /// Starts `command` in a shell; its output goes to standard error.
    #[expect(
        unsafe_code,
        reason = "a killed relay cannot end the shell: the kernel does"
    )]
    pub(crate) fn start(command: &str, session: &str) -> io::Result<Self> {
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", command])
            .env("UNMOOR_SESSION", session)
            .stdin(Stdio::null())
            .stdout(io::stderr());
        let parent = getpid();
        // SAFETY: the closure makes two system calls, which are async-signal-safe, and allocates
        // nothing.
        unsafe {
            shell.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                // A relay that has died before this sends no signal any more.
                match getppid() == Some(parent) {
                    true => Ok(()),
                    false => Err(io::ErrorKind::BrokenPipe.into()),
                }
            });
        }
        let child = shell.spawn()?;
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("the hook has no process id"))?;
        Ok(Hook {
            pidfd: pidfd_open(pid, PidfdFlags::empty())?,
            child,
            begun: Instant::now(),
        })
    }

    /// Readable when the command has ended.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }
}

impl Drop for Hook {
    /// A hook does not outlive the decision that it is asked about.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
