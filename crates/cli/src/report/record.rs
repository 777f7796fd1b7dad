//! What a written report is made of. Its JSON form is a documented interface: fields are added,
//! never renamed; docs/report.md says what each means.

use depgraph::Class;
use guest_proto::{ProcessRecord, Reason, shortened};
use hypervisor::VmFacts;
use serde::Serialize;

use super::{Named, Sample, Summary, Writer};
use crate::agent::{LostProbe, Words};

/// Processes that a report names; of more, the nearest to the outside and the largest.
const PROCESSES_MAX: usize = 2000;
/// Of those, the largest that may be paused: more than are looked at for it.
const LARGEST: usize = 64;
/// Longest text of a guest, in bytes.
const TEXT_MAX: usize = 200;
/// Longest way to the outside that is told in full.
const STEPS_MAX: usize = 16;

/// One migration, from its beginning to its end. Times are milliseconds since the command began.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Record {
    /// Of this format.
    pub version: u32,
    pub software: String,
    /// When the command began, in UTC.
    pub began: String,
    pub wanted: Wanted,
    pub session: Option<String>,
    pub peer: Option<String>,
    pub vm: Option<VmFacts>,
    pub destination: Option<VmFacts>,
    /// When QEMU's migration began; absent if it did not.
    pub migration_from_ms: Option<u64>,
    pub stopped_at_ms: Option<u64>,
    pub ended_at_ms: u64,
    pub outcome: Option<Outcome>,
    pub forecast: Option<Forecast>,
    /// How long flows had been followed when processes were classified.
    pub window_ms: Option<u64>,
    pub pauses: Vec<Pause>,
    /// Processes whose memory was held at first, and that were moved live.
    pub moved_live: Vec<Spared>,
    /// Probes of the guest that do not work.
    pub lost_probes: Vec<LostProbe>,
    pub writers: Vec<Writer>,
    pub marks: Vec<Mark>,
    /// For which there was no room.
    pub marks_left_out: u64,
    pub samples: Vec<Sample>,
    pub processes: Vec<Process>,
    /// For which there was no room.
    pub processes_left_out: usize,
}

/// What the user asked for.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Wanted {
    pub to: String,
    pub agent: bool,
    pub protocol: String,
    pub on_stall: String,
    pub downtime_limit_ms: f64,
    pub max_pause_ms: f64,
    /// As it was given: bytes a second, or a share of the network card's rate.
    pub bandwidth: Option<String>,
}

/// How it ended.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// The VM is at the destination.
    Moved(Box<Summary>),
    /// It is not, or that is not known: `vm` says where it is.
    NotMoved { exit: u8, error: String, vm: String },
}

/// What was predicted of a migration when it had just begun.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Forecast {
    pub total_ms: f64,
    pub wire_bytes: u64,
    pub downtime_ms: f64,
    pub pauses: Vec<ForecastPause>,
}

/// Of a process that was predicted to be paused.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ForecastPause {
    #[serde(flatten)]
    pub process: Named,
    pub pause_ms: f64,
}

/// A process that was paused.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Pause {
    #[serde(flatten)]
    pub process: Named,
    /// When its freezing was asked for.
    pub from_ms: u64,
    /// When it stood.
    pub stood_ms: Option<u64>,
    /// When it ran again; absent if that is not known.
    pub until_ms: Option<u64>,
    /// How long it was expected to last when it began.
    pub expected_ms: f64,
    /// What ended it.
    pub ended: Option<String>,
}

impl Pause {
    /// How long it lasted, if that is known.
    pub(super) fn length_ms(&self) -> Option<u64> {
        self.until_ms
            .map(|until| until.saturating_sub(self.from_ms))
    }
}

/// A process that could have been paused, and was not.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Spared {
    #[serde(flatten)]
    pub process: Named,
    pub why: String,
}

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Mark {
    pub t_ms: u64,
    pub kind: MarkKind,
    /// For people.
    pub text: String,
}

/// Kinds of what happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MarkKind {
    Note,
    Classified,
    FreePages,
    Freeze,
    Thaw,
    Live,
    Stalled,
    Stopped,
    Audited,
    Ready,
    Committed,
    Running,
    Arrived,
    Failed,
}

/// A process of the guest.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Process {
    pub pid: u32,
    pub name: String,
    pub command: String,
    pub cgroup: String,
    /// `direct`, `indirect`, `sink`, `may-pause` or `independent`.
    pub class: &'static str,
    pub may_pause: bool,
    /// Steps to a process that is in contact with the outside itself.
    pub distance: Option<u32>,
    /// The one nearer to the outside.
    pub toward: Option<u32>,
    /// The way to the outside, a step each.
    pub why: Vec<String>,
    pub anonymous_bytes: u64,
}

/// What the agent has told of processes, as far as there is room: first those that may be paused
/// and have most memory, then those nearest to the outside. A guest may tell much, and long texts.
pub(super) fn processes(records: &[ProcessRecord]) -> (Vec<Process>, usize) {
    let words = Words::new(records);
    let mut order: Vec<&ProcessRecord> = records.iter().collect();
    order.sort_by_key(|record| {
        let memory = std::cmp::Reverse(record.anonymous_kib);
        (record.class.stays_live(), memory, record.id)
    });
    let pausable = order.iter().take_while(|one| !one.class.stays_live());
    let first = pausable.count().min(LARGEST);
    order[first..].sort_by_key(|record| {
        let distance = match record.class {
            Class::Dependent { distance } => distance,
            Class::MayPause | Class::Independent => u32::MAX - 1,
            Class::Sink => u32::MAX,
        };
        let memory = std::cmp::Reverse(record.anonymous_kib);
        (distance, memory, record.id)
    });
    let left_out = order.len().saturating_sub(PROCESSES_MAX);
    let kept = order.into_iter().take(PROCESSES_MAX);
    let kept = kept.map(|record| process(record, &words));
    (kept.collect(), left_out)
}

fn process(record: &ProcessRecord, words: &Words<'_>) -> Process {
    let distance = match record.class {
        Class::Dependent { distance } => Some(distance),
        _ => None,
    };
    let toward = match &record.reason {
        Reason::Flow { toward, .. } => Some(toward.pid),
        _ => None,
    };
    Process {
        pid: record.id.pid,
        name: shortened(&record.name, TEXT_MAX),
        command: shortened(&record.command, TEXT_MAX),
        cgroup: shortened(&record.cgroup, TEXT_MAX),
        class: Words::class(record.class),
        may_pause: !record.class.stays_live(),
        distance,
        toward,
        why: chain(words, record),
        anonymous_bytes: record.anonymous_kib.saturating_mul(1024),
    }
}

fn chain(words: &Words<'_>, record: &ProcessRecord) -> Vec<String> {
    let steps = words.chain(record);
    let more = steps.len().saturating_sub(STEPS_MAX);
    let mut told: Vec<String> = steps
        .iter()
        .take(STEPS_MAX)
        .map(|step| shortened(step, TEXT_MAX))
        .collect();
    if more > 0 {
        told.push(format!("{more} more steps"));
    }
    told
}

#[cfg(test)]
mod tests {
    use depgraph::ProcessId;

    use super::*;

    #[test]
    fn a_guest_with_more_than_there_is_room_for_keeps_what_matters() {
        let record = |pid, class, anonymous_kib| ProcessRecord {
            id: ProcessId { pid, start: 1 },
            parent: 1,
            name: "n".repeat(60_000),
            command: String::new(),
            cgroup: String::new(),
            class,
            reason: Reason::None,
            rule: None,
            pause_limit: None,
            anonymous_kib,
        };
        let near = Class::Dependent { distance: 1 };
        let mut records: Vec<_> = (1..5000).map(|pid| record(pid, near, 10)).collect();
        records.push(record(7000, Class::Independent, 1 << 20));
        records.push(record(7001, Class::Dependent { distance: 0 }, 1));
        let (processes, left_out) = processes(&records);
        assert_eq!(processes.len(), PROCESSES_MAX);
        assert_eq!(left_out, 5001 - PROCESSES_MAX);
        assert_eq!((processes[0].pid, processes[1].pid), (7000, 7001));
        assert!(processes.iter().all(|one| one.name.len() <= TEXT_MAX));
    }
}
