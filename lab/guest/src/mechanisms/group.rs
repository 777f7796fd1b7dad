//! A group of processes that exercise one mechanism, and how its members keep step: by empty
//! files, whose existence they poll, so that no data passes between them but through the mechanism.

use std::error::Error;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::sys::{self, Pid};
use crate::Outcome;

/// Time between two looks for the start: hundreds of processes look for it.
const LOOK_FOR_GO: Duration = Duration::from_millis(100);
/// Time between two looks for the other side.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for the other side.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Writes, sends or signals.
    A,
    /// The other side.
    B,
}

impl fmt::Display for Side {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Side::A => "a",
            Side::B => "b",
        })
    }
}

/// The system lacks what a mechanism needs.
#[derive(Debug)]
pub(super) struct Lacking(pub(super) String);

impl fmt::Display for Lacking {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0)
    }
}

impl Error for Lacking {}

/// Whether an error says that the system lacks something.
fn lacking(error: &(dyn Error + 'static)) -> bool {
    const ABSENT: [i32; 6] = [
        libc::ENOSYS,
        libc::ENODEV,
        libc::EAFNOSUPPORT,
        libc::EPROTONOSUPPORT,
        libc::ESOCKTNOSUPPORT,
        libc::EADDRNOTAVAIL,
    ];
    let code = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error);
    error.is::<Lacking>() || code.is_some_and(|code| ABSENT.contains(&code))
}

pub(super) struct Group {
    folder: PathBuf,
    pub(super) outside: SocketAddrV4,
    name: &'static str,
    /// 1: has contact to the outside; 2: has none.
    number: u8,
}

impl Group {
    pub(super) fn new(
        folder: &Path,
        outside: SocketAddrV4,
        name: &'static str,
        number: u8,
    ) -> Self {
        Group {
            folder: folder.to_owned(),
            outside,
            name,
            number,
        }
    }

    pub(super) fn tainted(&self) -> bool {
        self.number == 1
    }

    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.name, self.number)
    }

    /// A path that is this group's own.
    pub(super) fn path(&self, what: &str) -> PathBuf {
        let file = format!("{}.{}.{what}", self.name, self.number);
        self.folder.join(file)
    }

    /// Forks a member, which keeps these descriptors, lives its life and then waits for ever.
    pub(super) fn start<'a>(
        &'a self,
        side: Side,
        keep: &[BorrowedFd<'_>],
        life: impl FnOnce(&Member<'a>) -> Outcome,
    ) -> io::Result<Pid> {
        let child = sys::fork()?;
        if child != 0 {
            return Ok(child);
        }
        let member = Member { group: self, side };
        let ended = member.live(keep, life);
        member.report(&ended);
        loop {
            sys::pause();
        }
    }

    /// Reports a set-up that failed for a member.
    pub(super) fn report(&self, side: Side, ended: &Outcome) {
        Member { group: self, side }.report(ended);
    }
}

pub(super) struct Member<'a> {
    group: &'a Group,
    side: Side,
}

impl<'a> Member<'a> {
    fn live(&self, keep: &[BorrowedFd<'_>], life: impl FnOnce(&Member<'a>) -> Outcome) -> Outcome {
        sys::set_name(&self.name())?;
        sys::close_all_but(keep)?;
        life(self)
    }

    /// Waits for the start; then the tainted group's active side reaches out.
    pub(super) fn begin(&self) -> Outcome {
        self.wait_for_go()?;
        if self.group.tainted() && self.side == Side::A {
            UdpSocket::bind("0.0.0.0:0")?.send_to(b"outside", self.group.outside)?;
        }
        Ok(())
    }

    pub(super) fn wait_for_go(&self) -> Outcome {
        self.ready()?;
        let go = self.group.folder.join("go");
        while !go.exists() {
            sleep(LOOK_FOR_GO);
        }
        Ok(())
    }

    pub(super) fn ready(&self) -> io::Result<()> {
        self.note("ready", "")
    }

    pub(super) fn done(&self) -> io::Result<()> {
        self.note("done", "")
    }

    fn report(&self, ended: &Outcome) {
        // With the folder gone, there is nobody to tell.
        let _ = match ended {
            Ok(()) => self.done(),
            Err(error) if lacking(error.as_ref()) => self.note("skipped", &error.to_string()),
            Err(error) => self.note("failed", &error.to_string()),
        };
    }

    pub(super) fn name(&self) -> String {
        format!("{}{}", self.group.name(), self.side)
    }

    /// The file that tells of a state.
    pub(super) fn file(&self, state: &str) -> PathBuf {
        let Group { name, number, .. } = self.group;
        let file = format!("{state}.{name}.{number}{}", self.side);
        self.group.folder.join(file)
    }

    fn note(&self, what: &str, text: &str) -> io::Result<()> {
        let path = self.file(what);
        if text.is_empty() {
            File::create_new(path)?;
            return Ok(());
        }
        fs::write(path, text)
    }

    /// Tells the other side that a step has been made.
    pub(super) fn mark(&self, step: &str) -> io::Result<()> {
        File::create_new(self.group.path(step))?;
        Ok(())
    }

    /// Waits for a step of the other side.
    pub(super) fn wait_for(&self, step: &str) -> Outcome {
        let path = self.group.path(step);
        wait_until(step, || path.exists())
    }
}

pub(super) fn wait_until(what: &str, mut reached: impl FnMut() -> bool) -> Outcome {
    let begun = Instant::now();
    while !reached() {
        if begun.elapsed() > PATIENCE {
            return Err(format!("waited in vain: {what}").into());
        }
        sleep(LOOK);
    }
    Ok(())
}

/// Time enough for the other side to be blocked in a call that it is about to make.
pub(super) fn let_block() {
    sleep(10 * LOOK);
}

pub(super) fn say(mut to: impl Write) -> Outcome {
    to.write_all(b"word")?;
    Ok(())
}

pub(super) fn hear(mut from: impl Read) -> Outcome {
    let mut word = [0; 4];
    let count = from.read(&mut word)?;
    heard(&word[..count])
}

/// Whether this is what [`say`] says.
pub(super) fn heard(word: &[u8]) -> Outcome {
    if word == b"word" {
        return Ok(());
    }
    Err(format!("heard {word:?}").into())
}
