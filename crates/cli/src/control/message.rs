//! What is asked, and what is answered.

use serde::{Deserialize, Serialize};

use crate::bandwidth::Bandwidth;

/// The longest line.
pub(super) const LINE_MAX: usize = 16 << 10;

/// What somebody wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub(crate) enum Request {
    /// To know how it stands.
    Status,
    /// To change what may be sent.
    Tune {
        /// Most that may be sent while the VM runs; nothing for no limit.
        bandwidth: Option<Bandwidth>,
    },
    /// To decide for a destination that was cut off: to run the VM, or to give it up.
    Resolve { run: bool },
}

/// What comes back.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    Status(Box<Status>),
    /// Of all that the daemon carries.
    All {
        running: Vec<Status>,
    },
    /// It is done.
    Done,
    Refused {
        why: String,
    },
}

/// Which half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    Send,
    Receive,
}

impl Role {
    pub(super) fn name(self) -> &'static str {
        match self {
            Role::Send => "send",
            Role::Receive => "receive",
        }
    }
}

impl Status {
    /// Of a VM that libvirt manages, of which nothing but QEMU's socket is known.
    pub(crate) fn of_a_managed_vm(role: Role, socket: String) -> Self {
        Status {
            role,
            pid: std::process::id(),
            qmp: socket,
            session: None,
            peer: None,
            path: None,
            phase: "connecting".into(),
            in_doubt: false,
            runs: false,
            wire_bytes: None,
            rate: None,
            link_bytes_per_s: None,
            bandwidth_bytes_per_s: None,
            lost_probes: Vec::new(),
        }
    }
}

/// How a half stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) role: Role,
    pub(crate) pid: u32,
    /// QEMU's monitor; under libvirt the socket of its stream.
    pub(crate) qmp: String,
    /// Absent while nobody has connected.
    pub(crate) session: Option<String>,
    pub(crate) peer: Option<String>,
    /// The connection in use.
    pub(crate) path: Option<String>,
    pub(crate) phase: String,
    /// The connection was lost when the source may have committed: it waits to be told.
    pub(crate) in_doubt: bool,
    /// The VM has been started here, and its memory follows.
    #[serde(default)]
    pub(crate) runs: bool,
    pub(crate) wire_bytes: Option<u64>,
    /// On the link, smoothed.
    pub(crate) rate: Option<u64>,
    /// What the link carries, once that has been measured.
    pub(crate) link_bytes_per_s: Option<u64>,
    /// The limit in force.
    pub(crate) bandwidth_bytes_per_s: Option<u64>,
    /// Of each probe of the guest that does not work, in words: what is uncertain, and why.
    #[serde(default)]
    pub(crate) lost_probes: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_answered_can_be_written_and_read() {
        let status = || Status::of_a_managed_vm(Role::Send, "0.sock".into());
        for answer in [
            Answer::Status(Box::new(status())),
            Answer::All {
                running: vec![status(), status()],
            },
            Answer::Done,
            Answer::Refused { why: "so".into() },
        ] {
            let line = serde_json::to_string(&answer).unwrap();
            let read: Answer = serde_json::from_str(&line).unwrap();
            assert_eq!(format!("{read:?}"), format!("{answer:?}"));
        }
    }
}
