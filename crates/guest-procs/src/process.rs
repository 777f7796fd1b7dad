//! Which process is which: ids are used again.

use std::fs;
use std::io;

use depgraph::ProcessId;

/// A kernel thread, in the flags of `stat`.
const KERNEL_THREAD: u32 = 0x0020_0000;

/// What is needed of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    state: char,
    /// Its parent's id.
    pub parent: u32,
    flags: u32,
    /// Processor time that it has used, in ticks.
    pub used: u64,
    /// When it started, in ticks since the boot.
    pub start: u64,
}

impl Stat {
    /// The name, which may hold anything, ends at the last parenthesis.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        Some(Stat {
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
            flags: fields.nth(4)?.parse().ok()?,
            used: fields.nth(4)?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?,
            start: fields.nth(6)?.parse().ok()?,
        })
    }

    /// That of a process.
    pub fn of(pid: u32) -> io::Result<Self> {
        let text = fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(&String::from_utf8_lossy(&text)).ok_or_else(|| {
            let message = format!("/proc/{pid}/stat is not what it should be");
            io::Error::new(io::ErrorKind::InvalidData, message)
        })
    }

    /// Whether it is a thread of the kernel's own.
    pub fn is_kernel_thread(self) -> bool {
        self.flags & KERNEL_THREAD != 0
    }

    pub(crate) fn has_ended(self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// The process that has that id now.
pub fn identify(pid: u32) -> io::Result<ProcessId> {
    let start = Stat::of(pid)?.start;
    Ok(ProcessId { pid, start })
}

/// Whether the process is still there, and no other has its id.
pub fn is_same(process: ProcessId) -> bool {
    Stat::of(process.pid).is_ok_and(|stat| stat.start == process.start && !stat.has_ended())
}

/// Ids of a process's threads.
pub(crate) fn threads(pid: u32) -> io::Result<Vec<u32>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        threads.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok()) as Option<u32>,
        );
    }
    Ok(threads)
}

/// The process, thread or control group has gone in the middle of being looked at.
pub(crate) fn has_gone(error: &io::Error) -> bool {
    let gone = [libc::ESRCH, libc::ENODEV].map(Some);
    error.kind() == io::ErrorKind::NotFound || gone.contains(&error.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let text = "77 (a) S 9 (b) R 5 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.parent, stat.start), ('R', 5, 4711));
        assert_eq!(stat.used, 5 + 6);
        assert!(!stat.is_kernel_thread() && !stat.has_ended());
    }

    #[test]
    fn kernel_threads_are_told() {
        let text = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 3 0 0";
        assert!(Stat::parse(text).unwrap().is_kernel_thread());
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let text = "77 (a) R 5 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711";
        for cut in 0..text.len() - 4 {
            assert_eq!(Stat::parse(&text[..cut]), None);
        }
    }

    #[test]
    fn this_process_is_itself() {
        let here = identify(std::process::id()).unwrap();
        assert!(is_same(here));
        let other = ProcessId {
            start: here.start + 1,
            ..here
        };
        assert!(!is_same(other));
        assert!(threads(here.pid).unwrap().contains(&here.pid));
    }
}
