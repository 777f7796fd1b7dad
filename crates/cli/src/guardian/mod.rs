//! The guardian: a tiny second process that does the one right thing when the source half dies.
//!
//! Without QEMU's own return path the source VM goes to rest by itself once QEMU has written its
//! stream, and never resumes by itself: two copies can never run, but a source half that dies
//! before the commit would leave the VM paused. So the source half starts a guardian first and
//! tells it, over a pipe, the little that it needs:
//!
//! ```text
//! source half ──Guard (what to restore)──► guardian
//!             ──Commit───────────────────►          from here on: let the VM rest
//!             ◄─ack──────────────────────           only now is the commit sent
//!             ──Done─────────────────────►          exits
//! ```
//!
//! The pipe closing without `Done` means that the source half has died. Before `Commit` the
//! guardian cancels QEMU's migration, resumes the VM, restores its settings and tells the
//! destination that there will be no commit. After `Commit` it lets the VM rest and delivers the
//! commit, should the source half have died before it could. If memory follows after the switchover,
//! it goes on sending that, out of the stopped VM ([`follow`]). It is in a session of its own and
//! ignores the signals that end its parent.
//!
//! A destination half has one as well while memory follows: `Keep`, and if the pipe closes without
//! `Done`, another half is started ([`keeper`]).

mod follow;
mod keeper;

use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use hypervisor::{Recovered, Saved, Vm, recover_source};
use migrate::put_verdict;
use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};
use wire::{Frame, Message, put_control};

use keeper::Keep;
pub(crate) use keeper::Keeper;

use crate::buffer::{Filled, Input, Output};
use crate::control::{clear_away, keep_in_doubt};
use crate::net::{Connector, Protection};
use crate::poll::wait;
use crate::report::session_name;

/// Longest wait for the guardian's acknowledgement of a commit.
const ACK_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for QEMU's monitor after the source half has died and let go of it.
const QMP_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for the VM to run again.
const RECOVER_LIMIT: Duration = Duration::from_secs(60);
/// Between two tries to make it so, unless QEMU announces something before.
const AGAIN: Duration = Duration::from_millis(250);
/// Longest wait for the destination to be connected to, and to be sent the decision.
const TELL_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// What the guardian does when the source half dies.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Watch {
    pub session: [u8; 16],
    pub qmp: PathBuf,
    pub peer: SocketAddr,
    /// How connections to the peer are protected, and the name that it goes by.
    pub protection: Protection,
    pub host: String,
    /// The address to connect from, if not any.
    pub from: Option<IpAddr>,
    /// Whether the VM ran when the migration began.
    pub was_running: bool,
    /// The settings that the migration changes.
    pub saved: Saved,
}

/// What it needs to send the memory that follows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Follow {
    /// What the page hashes begin with.
    pub seed: u64,
    pub page_size: u64,
    /// RAM blocks in the order of the stream, with their lengths in bytes.
    pub blocks: Vec<(String, u64)>,
    pub qemu_pid: Option<u32>,
    /// Whether QEMU's memory can be read, and is known to be the VM's.
    pub readable: bool,
}

#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Guard(Box<Watch>),
    Commit(Option<Box<Follow>>),
    /// Of a destination half.
    Keep(Box<Keep>),
    Done,
}

/// The source half's end.
#[derive(Debug)]
pub(crate) struct Guardian {
    child: Child,
    orders: ChildStdin,
    acks: ChildStdout,
}

impl Guardian {
    /// Starts a guardian.
    pub(crate) fn start() -> io::Result<Self> {
        let mut child = Command::new("/proc/self/exe")
            .arg("guardian")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(orders), Some(acks)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the guardian has no pipes"));
        };
        Ok(Guardian {
            child,
            orders,
            acks,
        })
    }

    /// Tells what to restore; returns when the guardian has understood.
    pub(crate) fn guard(&mut self, watch: Watch) -> io::Result<()> {
        self.order(&Order::Guard(Box::new(watch)))?;
        self.await_ack()
    }

    /// Records the commit; returns when it is safe to tell the destination.
    pub(crate) fn commit(&mut self, follow: Option<Follow>) -> io::Result<()> {
        self.order(&Order::Commit(follow.map(Box::new)))?;
        self.await_ack()
    }

    /// The migration has ended one way or the other and all is restored.
    pub(crate) fn done(mut self) {
        // If it is gone already there is nothing to end.
        let _ = self.order(&Order::Done);
        drop(self.orders);
        let _ = self.child.wait();
    }

    fn order(&mut self, order: &Order) -> io::Result<()> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.orders.write_all(&line)
    }

    fn await_ack(&mut self) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.acks, PollFlags::IN)];
        if wait(&mut fds, Some(Instant::now() + ACK_LIMIT))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut ack = [0];
        io::Read::read_exact(&mut self.acks, &mut ack)
    }
}

/// The guardian process.
pub(crate) fn run() -> io::Result<()> {
    // A session of its own: whatever ends the source half's process group, a terminal's Ctrl-C
    // or a script's kill, does not reach the guardian.
    rustix::process::setsid().ok();
    let guarded = rustix::process::getppid();
    for signal in [
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGHUP,
    ] {
        let ignored = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        signal_hook::flag::register(signal, ignored)?;
    }
    let mut watch = None;
    let mut committed = false;
    let mut follow = None;
    let mut kept = None;
    for line in BufReader::new(io::stdin().lock()).lines() {
        let Ok(order) = line.and_then(|line| Ok(serde_json::from_str(&line)?)) else {
            break;
        };
        match order {
            Order::Guard(new) => watch = Some(new),
            Order::Commit(memory) => {
                committed = true;
                follow = memory;
            }
            // Nobody waits for an answer.
            Order::Keep(keep) => {
                kept = Some(keep);
                continue;
            }
            Order::Done => return Ok(()),
        }
        let mut stdout = io::stdout().lock();
        // Should the source half be gone already, the end of its pipe comes next.
        let _ = stdout.write_all(b"+").and_then(|()| stdout.flush());
    }
    if let Some(pid) = guarded.and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok()) {
        clear_away(pid);
    }
    if let Some(kept) = kept {
        return keeper::take_over(&kept);
    }
    if let (Some(watch), Some(follow)) = (&watch, &follow) {
        return follow::go_on(watch, follow);
    }
    match watch {
        Some(watch) if committed => match tell_destination(&watch, true) {
            Ok(answer @ (Answer::Runs | Answer::Paused)) => eprintln!(
                "unmoor guardian: the relay died after the commit; the VM rests here, and {} {answer}",
                watch.peer
            ),
            unknown => {
                let why = match unknown {
                    Ok(answer) => answer.to_string(),
                    Err(error) => format!("does not answer ({error})"),
                };
                eprintln!(
                    "unmoor guardian: the relay died after the commit, and {} {why}: the VM rests here; `unmoor resolve {}` settles it",
                    watch.peer,
                    session_name(watch.session)
                );
                if let Err(error) = keep_in_doubt(&watch) {
                    eprintln!("unmoor guardian: what is in doubt could not be kept: {error}");
                }
            }
        },
        Some(watch) => match rescue(&watch) {
            Ok(how) => eprintln!("unmoor guardian: the relay died before the commit: {how}"),
            Err(error) => eprintln!(
                "unmoor guardian: the relay died before the commit and the VM could not be resumed: {error}; resume it with `cont` on {}",
                watch.qmp.display()
            ),
        },
        None => {}
    }
    Ok(())
}

fn rescue(watch: &Watch) -> Result<String, hypervisor::Error> {
    let deadline = Instant::now() + RECOVER_LIMIT;
    let recovered = loop {
        // Whoever cannot be connected to is gone.
        let mut vm = connect(&watch.qmp)?;
        match put_back(watch, &mut vm) {
            Ok(recovered) => break recovered,
            Err(error) if Instant::now() >= deadline => return Err(error),
            // Nobody else is left to do it: what goes wrong once is tried again.
            Err(error) => eprintln!("unmoor guardian: {error}; trying again"),
        }
        // What QEMU announces may be what stood in the way. If it is gone, connecting tells.
        let _ = vm.wait_event(Instant::now() + AGAIN);
    };
    // Best effort: a destination that waits for a verdict does not run the VM either way.
    if let Err(error) = tell_destination(watch, false) {
        eprintln!(
            "unmoor guardian: the destination at {} could not be told ({error}); it does not run the VM",
            watch.peer
        );
    }
    Ok(recovered.to_string())
}

/// The VM runs as before, with the settings that it had.
fn put_back(watch: &Watch, vm: &mut Vm) -> Result<Recovered, hypervisor::Error> {
    let recovered = recover_source(vm, watch.was_running, RECOVER_LIMIT)?;
    watch.saved.restore(vm)?;
    Ok(recovered)
}

/// QEMU serves one monitor client at a time, and the dead relay was it: QEMU may need a moment
/// to notice.
fn connect(qmp: &Path) -> Result<Vm, hypervisor::Error> {
    Vm::connect(qmp, QMP_LIMIT)
}

/// What a destination says when it is told the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Runs,
    Paused,
    /// It has given the VM up, or knows nothing of it.
    HasItNot,
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Answer::Runs => "runs it",
            Answer::Paused => "has it, paused",
            Answer::HasItNot => "does not have it",
        })
    }
}

/// Connects and tells the decision; yields what the destination answers.
pub(crate) fn tell_destination(watch: &Watch, commit: bool) -> io::Result<Answer> {
    let connector =
        Connector::new(&watch.protection, &watch.host, watch.from).map_err(io::Error::other)?;
    let link = connector.connect_to(watch.peer, TELL_LIMIT, None);
    let mut link = link.map_err(io::Error::other)?;
    let mut output = Output::default();
    put_verdict(watch.session, commit, output.tail());
    link.send_all(&mut output, TELL_LIMIT)?;
    let (mut input, mut decoder) = (Input::default(), wire::Decoder::new());
    // It may have to read what the source has sent first; if it only keeps the connection alive
    // it is not waited for.
    let deadline = Instant::now() + ANSWER_LIMIT;
    while Instant::now() < deadline {
        let mut fds = [PollFd::from_borrowed_fd(link.fd(), PollFlags::IN)];
        if wait(&mut fds, Some(deadline))? == 0 {
            break;
        }
        match link.receive(&mut input)? {
            Filled::Some(_) | Filled::WouldBlock => {}
            Filled::Closed => return Ok(Answer::HasItNot),
        }
        while let Some((used, frame)) = decoder.next(input.unread()).map_err(io::Error::other)? {
            match frame {
                Frame::Control(Message::Committed(started)) => {
                    // Best effort: it does not wait for this for long.
                    put_control(&Message::Bye, output.tail());
                    let _ = link.send_all(&mut output, TELL_LIMIT);
                    return Ok(match started.running {
                        true => Answer::Runs,
                        false => Answer::Paused,
                    });
                }
                Frame::Control(Message::Abort { .. }) => return Ok(Answer::HasItNot),
                _ => {}
            }
            input.consume(used);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}
