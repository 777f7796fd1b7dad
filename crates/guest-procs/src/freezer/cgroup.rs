//! Control groups, version 2: where they are, who is in them, how they freeze.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use crate::process::has_gone;
use crate::{about, tell};

/// Begins the name of every group that is made here.
const OURS: &str = "unmoor-frozen";
/// How often a group that is to go is found to have got new members before that is given up.
const ATTEMPTS: usize = 100;

/// Where version 2 is mounted.
pub(super) fn mount_point() -> Option<PathBuf> {
    parse_mounts(&fs::read_to_string("/proc/mounts").ok()?)
}

fn parse_mounts(mounts: &str) -> Option<PathBuf> {
    let mut paths = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next()? == "cgroup2").then(|| unescaped(path))
    });
    // What is mounted last covers what was there before.
    paths.next_back().map(PathBuf::from)
}

/// A blank is written as `\040`.
fn unescaped(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\134", "\\")
}

/// The group of a process, below `mount`.
pub(super) fn of(mount: &Path, pid: u32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = parse_membership(&text)?;
    let folder = mount.join(path);
    folder.is_dir().then_some(folder)
}

/// The path in version 2, relative; none if it is beyond what can be seen from here.
fn parse_membership(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let outside = path.split('/').any(|part| part == "..");
    (!outside).then_some(path)
}

/// Ids of the processes in a group.
pub(super) fn members(folder: &Path) -> io::Result<Vec<u32>> {
    let path = folder.join("cgroup.procs");
    let text = fs::read_to_string(&path).map_err(about(&path))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// And in the groups below it.
pub(super) fn members_below(folder: &Path) -> io::Result<Vec<u32>> {
    let mut all = members(folder)?;
    for entry in fs::read_dir(folder).map_err(about(folder))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match members_below(&entry.path()) {
                Ok(members) => all.extend(members),
                // It has gone, or its threads count with the group above.
                Err(error) if has_gone(&error) || is_threaded(&entry.path()) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(all)
}

fn is_threaded(folder: &Path) -> bool {
    fs::read_to_string(folder.join("cgroup.type")).is_ok_and(|kind| kind.trim() == "threaded")
}

/// Whether a group below it changes nothing for those who are moved there: no controller would
/// treat them as a group of their own.
pub(super) fn may_have_leaf(folder: &Path) -> bool {
    let is = |name: &str, wanted: &str| {
        fs::read_to_string(folder.join(name)).is_ok_and(|text| text.trim() == wanted)
    };
    is("cgroup.type", "domain") && is("cgroup.subtree_control", "")
}

/// Makes a group below another.
pub(super) fn make_leaf(folder: &Path) -> io::Result<PathBuf> {
    for number in 0..ATTEMPTS {
        let leaf = match number {
            0 => folder.join(OURS),
            _ => folder.join(format!("{OURS}.{number}")),
        };
        match fs::create_dir(&leaf) {
            Ok(()) => return Ok(leaf),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(about(&leaf)(error)),
        }
    }
    let message = format!("{}: too many groups {OURS}", folder.display());
    Err(io::Error::new(io::ErrorKind::AlreadyExists, message))
}

/// Moves a process.
pub(super) fn enter(folder: &Path, pid: u32) -> io::Result<()> {
    tell(folder.join("cgroup.procs"), &pid.to_string())
}

/// Has a group freeze; it does so by and by.
pub(super) fn freeze(folder: &Path) -> io::Result<()> {
    tell(folder.join("cgroup.freeze"), "1")
}

/// Lets a group go on.
pub(crate) fn thaw(folder: &Path) -> io::Result<()> {
    match tell(folder.join("cgroup.freeze"), "0") {
        Err(error) if !has_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Lets one of our groups go on, moves its members up to where they came from, and removes it.
pub(crate) fn leave(folder: &Path) -> io::Result<()> {
    thaw(folder)?;
    let ours = folder.file_name().and_then(|name| name.to_str());
    let (Some(above), true) = (
        folder.parent(),
        ours.is_some_and(|name| name.starts_with(OURS)),
    ) else {
        let message = format!("{} is no group of ours", folder.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    };
    let mut failure = None;
    // A member may make another one while it is moved.
    for _ in 0..ATTEMPTS {
        match members(folder) {
            Ok(members) => {
                for pid in members {
                    match enter(above, pid) {
                        Err(error) if !has_gone(&error) => failure = Some(error),
                        _ => {}
                    }
                }
            }
            Err(error) if has_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(error) if has_gone(&error) => return Ok(()),
            Err(error) => failure = failure.or(Some(about(folder)(error))),
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Whether a group stands, whoever had it do so.
pub(super) fn stands(folder: &Path) -> bool {
    fs::read(folder.join("cgroup.events")).is_ok_and(|events| is_frozen(&events))
}

/// Tells when a group has frozen.
#[derive(Debug)]
pub(super) struct Events {
    file: File,
}

impl Events {
    pub(super) fn of(folder: &Path) -> io::Result<Self> {
        let path = folder.join("cgroup.events");
        let file = File::open(&path).map_err(about(&path))?;
        Ok(Events { file })
    }

    /// Waits until the group is frozen; false if it is not by the deadline.
    pub(super) fn await_frozen(&self, deadline: Instant) -> io::Result<bool> {
        loop {
            // What is read here is what a later change is told from.
            let mut text = [0; 256];
            let count = self.file.read_at(&mut text, 0)?;
            if is_frozen(&text[..count]) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut fds = [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::PRI)];
            match poll(&mut fds, Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn is_frozen(events: &[u8]) -> bool {
    events
        .split(|byte| *byte == b'\n')
        .any(|line| line == b"frozen 1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_version_is_found() {
        let mounts = "proc /proc proc rw 0 0\n\
            cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
            cgroup2 /sys/fs/my\\040groups cgroup2 rw 0 0\n";
        assert_eq!(parse_mounts(mounts), Some("/sys/fs/my groups".into()));
        assert_eq!(parse_mounts("cgroup2 /x cgroup rw 0 0\ny"), None);
    }

    #[test]
    fn membership_is_read() {
        assert_eq!(parse_membership("1:cpu:/a\n0::/b/c d\n"), Some("b/c d"));
        assert_eq!(parse_membership("0::/\n"), Some(""));
        assert_eq!(parse_membership("0::/../b\n"), None);
        assert_eq!(parse_membership("1:cpu:/a\n"), None);
    }

    #[test]
    fn frozen_is_told_from_freezing() {
        assert!(is_frozen(b"populated 1\nfrozen 1\n"));
        assert!(!is_frozen(b"populated 1\nfrozen 0\n"));
        assert!(!is_frozen(b"populated 1\n"));
    }

    /// The journal decides what is removed: it must not be anything else.
    #[test]
    fn no_group_of_others_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("system.slice");
        fs::create_dir(&other).unwrap();
        assert_eq!(
            leave(&other).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        assert!(other.is_dir());
    }
}
