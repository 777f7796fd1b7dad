//! The three things that are done to a single thread of another process.
#![expect(unsafe_code, reason = "neither std nor rustix can trace")]

use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitIdStatus, waitid};

use crate::about;
use crate::process::{Stat, has_gone};

/// Threads that are not leaders count as well, but only those that this thread traces.
const OURS: WaitIdOptions =
    WaitIdOptions::from_bits_retain((libc::__WALL | libc::__WNOTHREAD).cast_unsigned());

fn request(request: libc::c_uint, thread: u32, data: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(thread).map_err(io::Error::other)?;
    let (address, data) = (0 as libc::c_long, libc::c_long::from(data));
    // SAFETY: SEIZE, INTERRUPT and DETACH read and write no memory of this process.
    if unsafe { libc::ptrace(request, pid, address, data) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Begins to trace a thread and has it stop; false if it has gone.
pub(super) fn seize(thread: u32) -> io::Result<bool> {
    let seized = request(libc::PTRACE_SEIZE, thread, 0);
    match seized.and_then(|()| request(libc::PTRACE_INTERRUPT, thread, 0)) {
        Ok(()) => Ok(true),
        // A thread that is about to end cannot be traced any more.
        Err(error) if has_gone(&error) || Stat::of(thread).is_ok_and(Stat::has_ended) => Ok(false),
        Err(error) => Err(about(format!("tracing thread {thread}"))(error)),
    }
}

/// Whether it stands, or has ended.
pub(super) fn stands(thread: u32) -> io::Result<bool> {
    match look(thread, WaitIdOptions::NOWAIT) {
        Ok(found) => Ok(found.is_some()),
        Err(Errno::CHILD) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Lets it go on; false if it has first to stop, where it was on its way to.
pub(super) fn is_let_go(thread: u32) -> bool {
    match look(thread, WaitIdOptions::NOWAIT) {
        Ok(None) => false,
        Ok(Some(status)) if status.trapped() || status.stopped() => {
            let code = status.trapping_signal().or(status.stopping_signal());
            // Killed in between: the next look finds its end.
            request(libc::PTRACE_DETACH, thread, signal(code.unwrap_or(0))).is_ok()
        }
        Ok(Some(_)) => {
            // Only now is its parent told of its end.
            let _ = look(thread, WaitIdOptions::empty());
            true
        }
        Err(_) => true,
    }
}

/// The signal that a stop was about to deliver; a stop that was asked for has none, and carries an
/// event.
fn signal(code: i32) -> i32 {
    if code >> 8 == 0 { code & 0x7f } else { 0 }
}

fn look(thread: u32, more: WaitIdOptions) -> Result<Option<WaitIdStatus>, Errno> {
    let pid = thread.try_into().ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(Errno::CHILD)?;
    let mut options = more | WaitIdOptions::EXITED | WaitIdOptions::NOHANG | OURS;
    if more.contains(WaitIdOptions::NOWAIT) {
        options |= WaitIdOptions::STOPPED;
    }
    waitid(WaitId::Pid(pid), options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_signal_on_its_way_is_passed_on() {
        assert_eq!(signal(libc::SIGUSR1), libc::SIGUSR1);
        assert_eq!(signal(libc::PTRACE_EVENT_STOP << 8 | libc::SIGTRAP), 0);
        assert_eq!(signal(libc::PTRACE_EVENT_STOP << 8 | libc::SIGSTOP), 0);
        assert_eq!(signal(0), 0);
    }

    #[test]
    fn nobody_is_traced_by_the_wrong_number() {
        assert!(!seize(u32::from(u16::MAX) << 7).unwrap_or(false));
        assert!(is_let_go(1));
    }
}
