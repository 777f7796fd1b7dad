//! Reasons in words.

use std::collections::HashMap;

use depgraph::{
    Class, Direction, External, Interface, Link, ObjectKind, ProcessId, Relation, Source,
    Uncertainty, Via,
};
use guest_proto::{Decided, ProcessRecord, Reason};

/// Longest chain that is told: a guest might send a circle.
const CHAIN_MAX: usize = 64;

/// Tells why processes are what they are.
#[derive(Debug)]
pub struct Words<'a> {
    records: HashMap<ProcessId, &'a ProcessRecord>,
}

impl<'a> Words<'a> {
    /// About these processes.
    pub fn new(records: &'a [ProcessRecord]) -> Self {
        Words {
            records: records.iter().map(|record| (record.id, record)).collect(),
        }
    }

    /// The class, as a word.
    pub fn class(class: Class) -> &'static str {
        match class {
            Class::Independent => "independent",
            Class::Dependent { distance: 0 } => "direct",
            Class::Dependent { .. } => "indirect",
            Class::Sink => "sink",
            Class::MayPause => "may-pause",
        }
    }

    /// The way to the outside, a step each.
    pub fn chain(&self, record: &ProcessRecord) -> Vec<String> {
        let mut steps = Vec::new();
        let mut at = Some(record);
        while let Some(record) = at {
            let step = self.step(record);
            steps.extend(step);
            at = match &record.reason {
                Reason::Flow { toward, .. } if steps.len() < CHAIN_MAX => {
                    self.records.get(toward).copied()
                }
                _ => None,
            };
        }
        steps
    }

    /// The first step alone.
    pub fn step(&self, record: &ProcessRecord) -> Option<String> {
        match &record.reason {
            Reason::None => None,
            Reason::Source(Source::AlwaysLive) => {
                let rule = record.rule.as_ref().map(rule).unwrap_or_default();
                Some(format!("marked always-live{rule}"))
            }
            Reason::Source(source) => Some(self::source(*source)),
            Reason::Rule(text) => Some(match &record.rule {
                Some(decided) => format!("rule{}", rule(decided)),
                None => format!("rule: {}", printable(text)),
            }),
            Reason::Unit { unit, facing } => {
                let rule = record.rule.as_ref().map(rule).unwrap_or_default();
                let unit = printable(unit);
                let facing = self.process(*facing);
                Some(format!("{unit} faces the outside through {facing}{rule}"))
            }
            Reason::Flow {
                via,
                toward,
                object,
            } => {
                let link = Link {
                    via: *via,
                    toward: *toward,
                };
                Some(self.link(link, object))
            }
        }
    }

    /// How long it may pause, where a rule says and it may.
    pub fn limit(&self, record: &ProcessRecord) -> Option<String> {
        let (limit, decided) = record.pause_limit.as_ref()?;
        (!record.class.stays_live()).then(|| format!("pauses up to {limit}{}", rule(decided)))
    }

    /// A process, with its id.
    pub fn process(&self, id: ProcessId) -> String {
        match self.records.get(&id) {
            Some(record) => format!("{} ({})", printable(&record.name), id.pid),
            None => format!("process {}, which has ended", id.pid),
        }
    }

    fn link(&self, link: Link, name: &str) -> String {
        let other = self.process(link.toward);
        match link.via {
            Via::Object {
                object,
                ours,
                theirs,
            } => {
                let mut what = kind(object.kind).to_owned();
                if !name.is_empty() {
                    what = format!("{what} {}", printable(name));
                }
                match (ours, theirs) {
                    (Direction::Reads, Direction::Writes) => {
                        format!("reads {what} written by {other}")
                    }
                    (Direction::Writes, Direction::Reads) => {
                        format!("writes {what} read by {other}")
                    }
                    (Direction::Reads, _) => format!("reads {what} shared with {other}"),
                    (Direction::Writes, _) => format!("writes {what} shared with {other}"),
                    (Direction::Both, _) => format!("shares {what} with {other}"),
                }
            }
            Via::Relation { relation, by_us } => {
                let (active, passive) = match relation {
                    Relation::Forked => ("is the parent of", "was forked by"),
                    Relation::Signalled => ("signals", "is signalled by"),
                    Relation::Traced => ("traces", "is traced by"),
                    Relation::Woke => ("woke", "was woken by"),
                    Relation::Exited | Relation::Ended => {
                        ("ended, as was told to", "saw the end of")
                    }
                };
                format!("{} {other}", if by_us { active } else { passive })
            }
        }
    }
}

/// A rule, and where it stands.
fn rule(decided: &Decided) -> String {
    let (rule, from) = (printable(&decided.rule), printable(&decided.from));
    format!(": {rule} ({from})")
}

/// What an object is called.
pub(super) fn kind(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Pipe => "pipe",
        ObjectKind::UnixSocket => "unix socket",
        ObjectKind::Tcp => "local TCP connection",
        ObjectKind::Udp => "local UDP",
        ObjectKind::Vsock => "local vsock connection",
        ObjectKind::Netlink => "netlink socket",
        ObjectKind::Terminal => "terminal",
        ObjectKind::File => "file",
        ObjectKind::SharedMemory => "shared memory",
        ObjectKind::MessageQueue => "message queue",
        ObjectKind::Semaphore => "semaphore",
        ObjectKind::PosixQueue => "POSIX message queue",
        ObjectKind::Event => "event descriptor",
        ObjectKind::BlockDevice => "block device",
        ObjectKind::Device => "device",
    }
}

fn source(source: Source) -> String {
    match source {
        Source::Outside(external) => outside(external),
        Source::AlwaysLive => "marked always-live".into(),
        Source::Uncertain(uncertainty) => uncertain(uncertainty).into(),
    }
}

/// What is not known.
pub(super) fn uncertain(why: Uncertainty) -> &'static str {
    match why {
        Uncertainty::LostEvents => "uncertain: events were lost",
        Uncertainty::GraphFull => "uncertain: the agent has no room for all that it does",
        Uncertainty::UnknownObject => "uncertain: it uses something unknown",
        Uncertainty::CalledWhileFrozen => "somebody turned to it while it was frozen",
        Uncertainty::LostProbe => "uncertain: a probe that would have seen it does not work",
        Uncertainty::Untracked => "uncertain: it was active, and this kernel has no probes",
    }
}

fn outside(external: External) -> String {
    let with = match external.peer {
        Some(peer) => format!(" {peer}"),
        None => String::new(),
    };
    match (external.interface, external.standing) {
        (Interface::Tcp, true) => format!("established TCP with{with}"),
        (Interface::Tcp, false) => format!("TCP with{with}"),
        (Interface::TcpListening, _) => format!("listens on TCP{with}"),
        (Interface::Udp, true) => format!("UDP socket open to the network:{with}"),
        (Interface::Udp, false) => format!("UDP with{with}"),
        (Interface::OtherIp { protocol }, _) => format!("raw IP socket, protocol {protocol}"),
        (Interface::Packet, _) => "packet socket".into(),
        (Interface::Vsock, _) => "vsock to the host".into(),
        (Interface::OtherSocket { family }, _) => format!("socket of address family {family}"),
        (Interface::Serial { major, minor }, _) => {
            format!("serial line or console {major}:{minor}")
        }
        (Interface::Device { major, minor }, true) => format!("holds device {major}:{minor}"),
        (Interface::Device { major, minor }, false) => format!("uses device {major}:{minor}"),
        (Interface::NetworkFileSystem { magic }, _) => {
            format!("network file system (type {magic:#x})")
        }
    }
}

/// A text from the guest, without what could play tricks on a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}
