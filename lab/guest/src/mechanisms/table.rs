//! The mechanisms, and what a tracker should find.

use super::group::Group;
use super::group::Side::{self, A, B};
use super::{
    events, external, files, locks, memory, pipes, processes, signals, sockets, sysv, traces, unix,
    uring,
};
use crate::Outcome;

pub(super) struct Mechanism {
    pub(super) name: &'static str,
    /// `linked`: in the tainted group, b depends on the outside through a. `direct`: the tainted
    /// group is a alone, and depends on the outside by the mechanism itself; the clean group does
    /// the same within the machine. `apart`: nothing connects a and b.
    pub(super) expectation: &'static str,
    pub(super) kind: &'static str,
    /// What b does: `reads`, `writes` or `both`.
    pub(super) direction: &'static str,
    pub(super) start: fn(&Group) -> Outcome,
    /// b comes to be after the start.
    late: bool,
}

impl Mechanism {
    /// The members of a group.
    pub(super) fn sides(&self, tainted: bool) -> &'static [Side] {
        if tainted && self.expectation == "direct" {
            &[A]
        } else {
            &[A, B]
        }
    }

    /// The members that are there before the start.
    pub(super) fn starters(&self, tainted: bool) -> &'static [Side] {
        if self.late { &[A] } else { self.sides(tainted) }
    }

    const fn late(mut self) -> Self {
        self.late = true;
        self
    }
}

type Start = fn(&Group) -> Outcome;

const fn mechanism(
    name: &'static str,
    expectation: &'static str,
    kind: &'static str,
    direction: &'static str,
    start: Start,
) -> Mechanism {
    Mechanism {
        name,
        expectation,
        kind,
        direction,
        start,
        late: false,
    }
}

#[rustfmt::skip]
pub(super) const TABLE: &[Mechanism] = &[
    mechanism("udp4-send", "direct", "udp", "reads", external::udp4_send),
    mechanism("udp4-recv", "direct", "udp", "both", external::udp4_recv),
    mechanism("tcp4-connect", "direct", "tcp", "both", external::tcp4_connect),
    mechanism("udp6", "direct", "udp", "both", external::udp6),
    mechanism("tcp6", "direct", "tcp", "both", external::tcp6),
    mechanism("raw-icmp", "direct", "raw", "reads", external::raw_icmp),
    mechanism("packet", "direct", "raw", "reads", external::packet),
    mechanism("serial", "direct", "tty", "reads", external::serial),
    mechanism("console", "direct", "tty", "reads", external::console),
    mechanism("vsock-ext", "direct", "vsock", "both", external::vsock),

    mechanism("lo-tcp4", "linked", "tcp", "both", sockets::tcp4),
    mechanism("lo-tcp6", "linked", "tcp", "both", sockets::tcp6),
    mechanism("lo-udp4", "linked", "udp", "both", sockets::udp4),
    mechanism("lo-udp6", "linked", "udp", "both", sockets::udp6),
    mechanism("vsock-lo", "linked", "vsock", "both", sockets::vsock),
    mechanism("netlink", "linked", "netlink", "reads", sockets::netlink),
    mechanism("unix-pair", "linked", "unix", "both", unix::pair),
    mechanism("unix-stream", "linked", "unix", "both", unix::stream),
    mechanism("unix-abs", "linked", "unix", "both", unix::abstracted),
    mechanism("unix-dgram", "linked", "unix", "reads", unix::datagram),
    mechanism("unix-seq", "linked", "unix", "both", unix::sequenced),
    mechanism("unix-block", "linked", "unix", "reads", unix::blocked),
    mechanism("scm-rights", "linked", "unix", "both", unix::rights),

    mechanism("pipe", "linked", "pipe", "reads", pipes::pipe),
    mechanism("fifo", "linked", "pipe", "reads", pipes::fifo),
    mechanism("pipe-block", "linked", "pipe", "reads", pipes::blocked),
    mechanism("splice", "linked", "pipe", "reads", pipes::splice),
    mechanism("tee", "linked", "pipe", "reads", pipes::tee),
    mechanism("vmsplice", "linked", "pipe", "reads", pipes::vmsplice),
    mechanism("sendfile", "linked", "unix", "reads", pipes::sendfile),
    mechanism("pty", "linked", "tty", "both", pipes::terminal),

    mechanism("file", "linked", "file", "reads", files::written),
    mechanism("file-append", "linked", "file", "reads", files::appended),
    mechanism("file-mmap", "linked", "file", "reads", files::mapped),
    mechanism("file-private", "linked", "file", "reads", files::mapped_privately),
    mechanism("truncate", "linked", "file", "reads", files::truncated),
    mechanism("copy-range", "linked", "file", "reads", files::copied),
    mechanism("file-read2", "apart", "file", "reads", files::only_read),
    mechanism("file-write2", "apart", "file", "writes", files::only_written),
    mechanism("inotify", "linked", "watch", "reads", events::inotify),
    mechanism("flock", "linked", "lock", "both", locks::flock),
    mechanism("posix-lock", "linked", "lock", "both", locks::record),

    mechanism("memfd", "linked", "shared-memory", "reads", memory::memfd),
    mechanism("shm-open", "linked", "shared-memory", "reads", memory::shm_open),
    mechanism("anon-shared", "linked", "shared-memory", "reads", memory::anonymous),
    mechanism("map-before", "linked", "shared-memory", "reads", memory::mapped_before),
    mechanism("futex", "linked", "shared-memory", "reads", memory::futex),
    mechanism("process-vm-w", "linked", "trace", "reads", traces::vm_write),
    mechanism("process-vm-r", "linked", "trace", "reads", traces::vm_read),
    mechanism("proc-mem", "linked", "trace", "reads", traces::proc_mem),
    mechanism("ptrace", "linked", "trace", "reads", traces::ptrace),
    mechanism("pidfd-getfd", "linked", "trace", "reads", traces::take_descriptor),

    mechanism("sysv-shm", "linked", "shared-memory", "reads", sysv::shared_memory),
    mechanism("sysv-msg", "linked", "message-queue", "reads", sysv::messages),
    mechanism("sysv-sem", "linked", "semaphore", "both", sysv::semaphore),
    mechanism("posix-mq", "linked", "posix-queue", "reads", sysv::posix_queue),

    mechanism("eventfd", "linked", "event", "reads", events::eventfd),
    mechanism("signal", "linked", "signal", "reads", signals::kill),
    mechanism("sigqueue", "linked", "signal", "reads", signals::queue),
    mechanism("pidfd-signal", "linked", "signal", "reads", signals::pidfd),
    mechanism("timer-signal", "apart", "signal", "reads", signals::timer),

    mechanism("fork", "linked", "fork", "reads", processes::fork).late(),
    mechanism("exec", "linked", "fork", "reads", processes::exec).late(),
    mechanism("exit-wait", "linked", "exit", "reads", processes::exit_wait),
    mechanism("parent-only", "apart", "fork", "reads", processes::parent_only),

    mechanism("uring-pipe", "linked", "pipe", "reads", uring::pipe),
    mechanism("uring-async", "linked", "pipe", "reads", uring::asynchronous),
    mechanism("uring-sqpoll", "linked", "pipe", "reads", uring::polled),
    mechanism("uring-send", "direct", "udp", "reads", uring::send),
    mechanism("uring-splice", "linked", "pipe", "reads", uring::splice),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::TABLE;

    #[test]
    fn names_are_unique_and_fit() {
        let names: BTreeSet<_> = TABLE.iter().map(|mechanism| mechanism.name).collect();
        assert_eq!(names.len(), TABLE.len());
        // The kernel keeps 15 characters of NAME/1a.
        assert_eq!(names.iter().find(|name| name.len() > 12), None);
    }
}
