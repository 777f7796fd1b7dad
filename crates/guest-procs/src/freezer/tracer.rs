//! Stops a single process by tracing it.
//!
//! The kernel lets a traced process go on when the *thread* that traces it ends, however it ends:
//! no guardian is needed. So each process gets a thread of its own, and letting go is the end of
//! that thread. Stops are only looked at, never collected: whatever signal a thread was stopped
//! with still reaches it.
#![expect(unsafe_code, reason = "neither std nor rustix can trace")]

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use depgraph::ProcessId;
use rustix::io::Errno;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::process::{Stat, has_gone, threads};
use crate::{about, is_same};

/// Threads of other processes count as children to wait for, and threads that are not leaders.
const ALL: WaitIdOptions = WaitIdOptions::from_bits_retain(libc::__WALL.cast_unsigned());
/// Pauses between two looks at threads that are about to stop: that is told by SIGCHLD alone,
/// which belongs to the program around this library.
const SHORTEST: Duration = Duration::from_micros(100);
const LONGEST: Duration = Duration::from_millis(10);
/// The thread needs next to none.
const STACK: usize = 64 << 10;

/// Holds one process; lets it go when dropped.
#[derive(Debug)]
pub(super) struct Tracer {
    stopped: Receiver<io::Result<()>>,
    hold: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Tracer {
    /// Begins to stop a process.
    pub(super) fn start(process: ProcessId) -> io::Result<Self> {
        let (hold, held) = channel();
        let (report, stopped) = channel();
        let thread = thread::Builder::new()
            .name("tracer".into())
            .stack_size(STACK)
            .spawn(move || {
                let outcome = stop(process, &held);
                // Nobody hears it if it took too long.
                let _ = report.send(outcome);
                // Nothing ever arrives: this is the wait for the other end to be dropped.
                let _ = held.recv();
            })?;
        Ok(Tracer {
            stopped,
            hold: Some(hold),
            thread: Some(thread),
        })
    }

    /// Waits until every thread of the process stands; false if they do not by the deadline.
    pub(super) fn await_stopped(&self, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.stopped.recv_timeout(left) {
            Ok(outcome) => outcome.map(|()| true),
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the tracer ended")),
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        drop(self.hold.take());
        if let Some(thread) = self.thread.take() {
            // It cannot have panicked: there is nothing in it that does.
            let _ = thread.join();
        }
    }
}

/// Stops every thread, those included that appear meanwhile. Returns when all stand, or when
/// nobody wants it any more.
fn stop(process: ProcessId, held: &Receiver<()>) -> io::Result<()> {
    let mut stands = BTreeMap::new();
    let mut pause = SHORTEST;
    loop {
        let all = threads(process.pid).map_err(about(format!("process {}", process.pid)))?;
        let mut news = false;
        for thread in all {
            if !stands.contains_key(&thread) && seize(thread)? {
                stands.insert(thread, false);
                news = true;
            }
        }
        if !is_same(process) {
            return Err(io::ErrorKind::NotFound.into());
        }
        // A thread that ran until just now may have made another one.
        if !news && stands.values().all(|stands| *stands) {
            return Ok(());
        }
        for (thread, stands) in stands.iter_mut().filter(|(_, stands)| !**stands) {
            *stands = has_stopped(*thread)?;
        }
        if stands.values().any(|stands| !*stands) {
            if held.try_recv() == Err(TryRecvError::Disconnected) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST);
        }
    }
}

/// Begins to trace a thread and has it stop; false if it has gone.
fn seize(thread: u32) -> io::Result<bool> {
    let pid = libc::pid_t::try_from(thread).map_err(io::Error::other)?;
    for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
        let (address, data) = (0 as libc::c_long, 0 as libc::c_long);
        // SAFETY: these two requests read and write no memory of this process.
        if unsafe { libc::ptrace(request, pid, address, data) } < 0 {
            let error = io::Error::last_os_error();
            // A thread that is about to end cannot be traced any more.
            if has_gone(&error) || Stat::of(thread).is_ok_and(Stat::has_ended) {
                return Ok(false);
            }
            return Err(about(format!("tracing thread {thread}"))(error));
        }
    }
    Ok(true)
}

/// Whether it stands, or has ended.
fn has_stopped(thread: u32) -> io::Result<bool> {
    let pid = thread.try_into().ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
    let look = WaitIdOptions::STOPPED | WaitIdOptions::EXITED;
    let look = look | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG | ALL;
    match waitid(WaitId::Pid(pid), look) {
        Ok(found) => Ok(found.is_some()),
        Err(Errno::CHILD) => Ok(true),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
