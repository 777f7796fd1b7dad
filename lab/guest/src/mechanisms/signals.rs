//! Signals from process to process, and from the kernel.

#![expect(unsafe_code, reason = "system calls that the standard library lacks")]

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::group::Group;
use super::group::Side::{A, B};
use super::group::wait_until;
use super::sys::{self, Pid, check, raw};
use crate::Outcome;

static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Counts a signal from now on.
fn handle(signal: libc::c_int) -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int) = count;
    // SAFETY: a plain C structure of numbers; zeros mean no flags and no blocked signals.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    // SAFETY: the handler does nothing that a signal handler must not do.
    check(unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) })?;
    Ok(())
}

fn wait_for_signals(number: u32) -> Outcome {
    wait_until("signals", || SIGNALS.load(Ordering::Relaxed) >= number)
}

pub(super) fn kill(group: &Group) -> Outcome {
    signalled(group, |b| {
        // SAFETY: no memory is involved.
        check(unsafe { libc::kill(b, libc::SIGUSR1) })?;
        Ok(())
    })
}

pub(super) fn queue(group: &Group) -> Outcome {
    signalled(group, |b| {
        let value = libc::sigval {
            sival_ptr: ptr::without_provenance_mut(1),
        };
        // SAFETY: the value is a number for the other process, not a pointer.
        check(unsafe { libc::sigqueue(b, libc::SIGUSR1, value) })?;
        Ok(())
    })
}

pub(super) fn pidfd(group: &Group) -> Outcome {
    signalled(group, |b| {
        let process = sys::pidfd(b)?;
        let no_details = ptr::null::<libc::siginfo_t>();
        // SAFETY: the kernel fills in the details itself.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                raw(&process),
                libc::SIGUSR1,
                no_details,
                0,
            )
        };
        check(sent)?;
        Ok(())
    })
}

fn signalled(group: &Group, signal: fn(Pid) -> io::Result<()>) -> Outcome {
    let b = group.start(B, &[], |b| {
        handle(libc::SIGUSR1)?;
        b.begin()?;
        wait_for_signals(1)
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        signal(b)?;
        Ok(())
    })?;
    Ok(())
}

/// Signals to b from a timer of its own. The timer's interrupt may well come while a runs, which
/// must not be taken for the sender.
pub(super) fn timer(group: &Group) -> Outcome {
    group.start(B, &[], |b| {
        handle(libc::SIGALRM)?;
        b.begin()?;
        set_timer(10_000)?;
        wait_for_signals(30)?;
        set_timer(0)?;
        Ok(())
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(300) {
            std::hint::spin_loop();
        }
        Ok(())
    })?;
    Ok(())
}

/// 0 stops it.
fn set_timer(microseconds: i64) -> io::Result<()> {
    let time = libc::timeval {
        tv_sec: 0,
        tv_usec: microseconds,
    };
    let timer = libc::itimerval {
        it_interval: time,
        it_value: time,
    };
    // SAFETY: the timer's setting is valid for the call, the former one is not asked for.
    check(unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) })?;
    Ok(())
}
