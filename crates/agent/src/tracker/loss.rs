//! What each program in the kernel sees, and what is uncertain where one does not work.

use guest_proto::{LossCause, LossEffect, LostProbe};

/// What replaces a program that does not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// Stand-ins, which name the processes that did something in its place. Processes that may have
    /// received something from those are uncertain, too. The first of these sets that works is used.
    StandIns(&'static [&'static [&'static str]]),
    /// Every process is taken to wait for the end of its children.
    EverybodyWaits,
    /// `/proc` has the same list.
    FromProc,
    /// Nothing does: no process can be called independent.
    Nothing,
}

/// A program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) program: &'static str,
    /// What it sees.
    pub(super) sees: &'static str,
    pub(super) loss: Loss,
}

impl Row {
    /// The sets of stand-ins, the best first.
    pub(super) fn stand_ins(&self) -> &'static [&'static [&'static str]] {
        match self.loss {
            Loss::StandIns(sets) => sets,
            _ => &[],
        }
    }
}

const fn row(program: &'static str, loss: Loss, sees: &'static str) -> Row {
    Row {
        program,
        sees,
        loss,
    }
}

/// Every program of `bpf/tracker.bpf.c` but the stand-ins.
pub(super) const TABLE: [Row; 32] = {
    use Loss::{EverybodyWaits, FromProc, Nothing, StandIns};
    [
        row(
            "file_permission",
            StandIns(&[&["unseen_file_permission"]]),
            "reads and writes of files, pipes and terminals",
        ),
        row(
            "mmap_file",
            StandIns(&[&["unseen_mmap_file"]]),
            "files that are mapped",
        ),
        row(
            "security_mmap_file",
            StandIns(&[&["unseen_mmap_file"]]),
            "files that are mapped",
        ),
        row(
            "file_lock",
            StandIns(&[&["unseen_file_lock"]]),
            "locks of files",
        ),
        row(
            "path_truncate",
            StandIns(&[&["unseen_truncate"]]),
            "files that are cut by name",
        ),
        row(
            "file_truncate",
            StandIns(&[&["unseen_truncate"]]),
            "files that are cut by descriptor",
        ),
        row(
            "do_splice",
            StandIns(&[&["unseen_do_splice"]]),
            "splice between pipes and files",
        ),
        row(
            "do_tee",
            StandIns(&[&["unseen_do_tee"]]),
            "tee between pipes",
        ),
        row(
            "vmsplice",
            StandIns(&[&["unseen_vmsplice"]]),
            "vmsplice to pipes",
        ),
        row(
            "mq_timedsend",
            StandIns(&[&["unseen_mq_timedsend"]]),
            "sends to POSIX message queues",
        ),
        row(
            "mq_timedreceive",
            StandIns(&[&["unseen_mq_timedreceive"]]),
            "receives from POSIX message queues",
        ),
        row(
            "msgsnd",
            StandIns(&[&["unseen_msgsnd"]]),
            "sends to System V message queues",
        ),
        row(
            "msgrcv",
            StandIns(&[&["unseen_msgrcv"]]),
            "receives from System V message queues",
        ),
        row(
            "semop",
            StandIns(&[&["unseen_semop"]]),
            "operations on System V semaphores",
        ),
        row(
            "inotify_event",
            StandIns(&[&["unseen_inotify_event"], &["unseen_insert_event"]]),
            "inotify events",
        ),
        row(
            "io_msg_ring",
            StandIns(&[&["unseen_io_msg_ring"]]),
            "messages between io_uring rings",
        ),
        row(
            "socket_sendmsg",
            StandIns(&[&["unseen_socket_sendmsg"]]),
            "sends on sockets",
        ),
        row(
            "socket_recvmsg",
            StandIns(&[&["unseen_socket_recvmsg"]]),
            "receives on sockets",
        ),
        row(
            "socket_connect",
            StandIns(&[&["unseen_socket_connect"]]),
            "connections that are made",
        ),
        row(
            "socket_accept",
            StandIns(&[&["unseen_socket_accept"]]),
            "connections that are accepted",
        ),
        row(
            "unix_stream_connect",
            StandIns(&[&["unseen_unix_stream_connect"]]),
            "connections of unix sockets",
        ),
        row(
            "unix_may_send",
            StandIns(&[&["unseen_unix_may_send"]]),
            "datagrams of unix sockets",
        ),
        row("sched_waking", Nothing, "processes that wake others"),
        row("signal_generate", Nothing, "signals"),
        row(
            "ptrace_access_check",
            Nothing,
            "processes that read or control others",
        ),
        row(
            "ptrace_traceme",
            Nothing,
            "processes that let themselves be traced",
        ),
        row("process_fork", Nothing, "processes that are started"),
        row("process_exit", Nothing, "processes that end"),
        row(
            "process_wait",
            EverybodyWaits,
            "processes that wait for their children",
        ),
        row(
            "held_files",
            Nothing,
            "descriptors that are open when a window opens",
        ),
        row("mappings", Nothing, "memory that is shared"),
        row("tasks", FromProc, "the list of processes"),
    ]
};

/// The row of a program.
pub(super) fn row_of(program: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.program == program)
}

/// Whether a program is a stand-in.
pub(super) fn is_stand_in(program: &str) -> bool {
    program.starts_with("unseen_")
}

/// What the window takes for uncertain from its beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Doubts {
    /// Every process.
    pub(crate) everyone: bool,
    /// Every process may learn of the end of each of its children.
    pub(crate) everybody_waits: bool,
}

/// A program that does not work, and the stand-ins that replace it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) row: &'static Row,
    pub(super) cause: LossCause,
    pub(super) detail: String,
    /// The stand-ins in use; none where none works.
    pub(super) stand_ins: &'static [&'static str],
}

impl Lost {
    pub(super) fn effect(&self) -> LossEffect {
        match self.row.loss {
            Loss::EverybodyWaits => LossEffect::Users,
            Loss::FromProc => LossEffect::None,
            Loss::StandIns(_) if !self.stand_ins.is_empty() => LossEffect::Users,
            Loss::StandIns(_) | Loss::Nothing => LossEffect::Everyone,
        }
    }

    /// As the host is told.
    pub(super) fn told(&self) -> LostProbe {
        let Row { program, sees, .. } = self.row;
        LostProbe::new(program, sees, self.cause, &self.detail, self.effect())
    }
}

/// What all those that are lost make uncertain.
pub(super) fn doubts(lost: &[Lost]) -> Doubts {
    Doubts {
        everyone: lost
            .iter()
            .any(|lost| lost.effect() == LossEffect::Everyone),
        everybody_waits: lost
            .iter()
            .any(|lost| lost.row.loss == Loss::EverybodyWaits),
    }
}
