//! What the user sees: events for programs, lines for people, from the same source.

mod file;
mod html;
mod human;
mod json;
mod kept;
mod metrics;
mod record;
mod recorder;
mod samples;
mod traced;
mod units;

use std::time::Instant;

use guest_proto::ProcessRecord;
use hypervisor::VmFacts;
use migrate::SourceStats;

use crate::agent::LostProbe;

use serde::Serialize;
use wire::Followed;

pub(crate) use human::Human;
pub(crate) use json::Json;
pub(crate) use kept::{folder as records_folder, names as records};
pub(crate) use metrics::{Metrics, serve_metrics};
pub(crate) use record::{Forecast, ForecastPause, Wanted};
pub(crate) use recorder::Recorder;
use traced::Traced;
pub(crate) use units::{bytes, count, duration_ms, rate};

/// Something worth telling. The JSON form of these is a documented interface: fields are added,
/// never renamed.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// The destination waits for a source.
    Listening { address: String },
    /// A connection that was lost has come back.
    Resumed {
        after_ms: f64,
        bytes_again: u64,
        path: String,
    },
    /// A peer has connected.
    Connected {
        peer: String,
        session: String,
        /// From where to where, and how it is protected.
        path: String,
    },
    /// Something to know that is not an error.
    Note { text: String },
    /// Source: probes of the guest do not work; what is uncertain without them, and what to do.
    LostProbes { probes: Vec<LostProbe> },
    /// The migration has entered another phase.
    Phase { phase: &'static str },
    /// QEMU has synchronised its dirty bitmap.
    Pass { pass: u64 },
    /// How far it is.
    Progress(Progress),
    /// Source: what the guest's processes are, as far as pausing goes.
    Classified {
        processes: usize,
        /// Those that may be paused.
        independent: usize,
        /// How long flows had been followed.
        window_ms: u64,
    },
    /// Source: how fast processes write memory that is theirs alone.
    Writing { processes: Vec<Writer> },
    /// Source: processes are about to be frozen.
    Freezing {
        processes: Vec<Named>,
        expected_pause_ms: f64,
    },
    /// Source: processes stand.
    Frozen { processes: Vec<Named> },
    /// Processes run again.
    Thawed { processes: Vec<Named>, why: String },
    /// Source: processes whose memory was held are moved live.
    Live { processes: Vec<Named>, why: String },
    /// Source: pages that need not travel.
    FreePages { pages: u64 },
    /// Source: what is moved live does not shrink from pass to pass.
    Stalled,
    /// Source: the VM has stopped for the switchover.
    Stopped,
    /// Source: the VM's memory has been compared with what the destination has.
    Audited(Audited),
    /// Everything is loaded at the destination and proven equal.
    Ready,
    /// Source: the commit is recorded and sent. The VM belongs to the destination.
    Committed,
    /// Source: the VM runs at the destination, and so much of its memory follows.
    Runs { follows_bytes: u64 },
    /// Source: it has arrived, and the VM needs nothing of this host any more.
    Arrived(Following),
    /// Source: it is done.
    Summary(Box<Summary>),
    /// Destination: it is done.
    Received {
        /// Whether the VM runs.
        running: bool,
        /// Pages that arrived.
        pages: u64,
        /// Processes that were thawed; absent without an agent.
        thawed: Option<u32>,
        /// How memory has followed after the switchover; absent if none has.
        followed: Option<Following>,
        /// Highest resident memory of this process in bytes.
        relay_memory_bytes: Option<u64>,
    },
    /// It failed.
    Failed { exit: u8, error: String, vm: String },
    /// The report has been written.
    ReportWritten { html: String, json: String },
}

/// A process.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Named {
    pub pid: u32,
    /// Its name, as the guest's kernel has it.
    pub name: String,
}

/// A process that writes memory.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Writer {
    #[serde(flatten)]
    pub process: Named,
    /// What it keeps writing.
    pub hot_bytes: u64,
    pub bytes_per_s: u64,
}

/// A process that was frozen for the migration.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Paused {
    #[serde(flatten)]
    pub process: Named,
    /// From the moment in which it was to be frozen until the agent at the destination had thawed
    /// it; absent where the agent did not say so.
    pub pause_ms: Option<f64>,
}

/// Guest pages by what became of them.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct PageCounts {
    /// Pages sent with their content.
    pub pages_sent: u64,
    /// Pages sent as a reference to zeros.
    pub pages_zero: u64,
    /// Pages not sent since the destination has them.
    pub pages_dropped: u64,
    /// Pages not sent since the guest declared them free.
    pub pages_free: u64,
    /// Of the pages sent, those of frozen processes.
    pub pages_paused: u64,
    /// Of the pages sent, those that were held until they had not changed for a pass.
    pub pages_cooled: u64,
    /// Of the pages sent, those that were held and had to go.
    pub pages_flushed: u64,
    /// Of the pages sent, those that followed after the switchover,
    pub pages_followed: u64,
    /// and those that the VM asked for.
    pub pages_asked: u64,
}

impl From<SourceStats> for PageCounts {
    fn from(stats: SourceStats) -> Self {
        PageCounts {
            pages_sent: stats.pages_sent,
            pages_zero: stats.pages_zero,
            pages_dropped: stats.pages_dropped,
            pages_free: stats.pages_free,
            pages_paused: stats.pages_paused,
            pages_cooled: stats.pages_cooled,
            pages_flushed: stats.pages_flushed,
            pages_followed: stats.pages_followed,
            pages_asked: stats.pages_asked,
        }
    }
}

/// What an audit of the stopped VM's memory has found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Audited {
    /// Pages that were compared; those that the guest declared free are not.
    pub pages: u64,
    /// Pages that QEMU had not noticed to be written, so that the destination had something else.
    pub differing: u64,
    /// Of those, pages that were sent.
    pub repaired: u64,
    /// Its share of the downtime.
    pub ms: f64,
    /// Bytes of memory read and compared a second.
    pub bytes_per_s: u64,
    /// Whether memory was read from a file that QEMU shares, and not from its process.
    pub shared: bool,
}

/// Memory that followed after the switchover.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Following {
    /// Whether all of it is what was sent.
    pub equal: bool,
    /// Pages that the VM had to wait for.
    pub faults: u64,
    /// From QEMU's request to the page on its way to QEMU, in milliseconds: half of them had it by
    /// then,
    pub fault_p50_ms: f64,
    /// 99 of a hundred,
    pub fault_p99_ms: f64,
    /// and all.
    pub fault_max_ms: f64,
}

impl From<Followed> for Following {
    fn from(followed: Followed) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let ms = |us: u64| us as f64 / 1000.0;
        Following {
            equal: followed.equal,
            faults: followed.faults,
            fault_p50_ms: ms(followed.latency_p50_us),
            fault_p99_ms: ms(followed.latency_p99_us),
            fault_max_ms: ms(followed.latency_max_us),
        }
    }
}

/// What is said if the memory that has followed is not what was sent.
pub(crate) const UNEQUAL: &str = "memory that followed is not what was sent: a defect of this program or of the host; do not trust the VM's memory, restart it from its disks";

/// How far a migration is.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Progress {
    /// What is being done.
    pub phase: &'static str,
    /// QEMU's passes over its dirty pages so far.
    pub pass: u64,
    /// Bytes sent on the link.
    pub wire_bytes: u64,
    #[serde(flatten)]
    pub counts: PageCounts,
    /// Bytes of pages that are held.
    pub held_bytes: u64,
    /// Bytes a second on the link, smoothed.
    pub rate: u64,
    /// Bytes of guest memory that QEMU has yet to send in this pass, if known.
    pub remaining_bytes: Option<u64>,
    /// Seconds until the switchover at the present rates; absent while the VM dirties memory
    /// faster than it travels.
    pub seconds_to_switchover: Option<f64>,
}

/// A finished migration. Times in milliseconds; each metric is defined in the manual.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Summary {
    pub session: String,
    /// From the start of QEMU's migration to the VM running at the destination.
    pub total_ms: f64,
    /// From the source QEMU's STOP to the destination QEMU's RESUME; absent if the VM was not
    /// running, or does not run at the destination.
    pub downtime_ms: Option<f64>,
    /// The part of the downtime that `--before-commit` took.
    pub before_commit_ms: Option<f64>,
    pub wire_bytes: u64,
    /// What batches of pages were compressed to, and by what; absent if they were not.
    pub compressed: Option<Compressed>,
    /// What the audit has found; absent without one.
    pub audit: Option<Audited>,
    /// How memory has followed after the switchover; absent if none has.
    pub followed: Option<Following>,
    /// From the VM's stop until the source was not needed any more; absent if no memory has followed.
    pub source_free_ms: Option<f64>,
    pub guest_memory_bytes: u64,
    #[serde(flatten)]
    pub counts: PageCounts,
    /// Most pages held at once.
    pub held_peak_pages: u64,
    /// Guest memory less what the agent declared free when the migration began.
    pub guest_nonfree_bytes: Option<u64>,
    /// From the first question to the agent until memory was read.
    pub agent_ms: Option<f64>,
    /// Processes that were frozen when the VM was switched over.
    pub frozen: Vec<Paused>,
    /// The longest of their pauses.
    pub longest_pause_ms: Option<f64>,
    /// What had been predicted of it; absent without an agent, and where no end was foreseen.
    pub predicted: Option<Forecast>,
    pub device_bytes: u64,
    pub passes: u64,
    /// Whether the destination was proven to hold what was sent.
    pub digest: &'static str,
    pub digest_pages: u64,
    pub running_at_destination: bool,
    pub source_qemu: String,
    pub destination_qemu: String,
    /// Highest resident memory of this process in bytes.
    pub relay_memory_bytes: Option<u64>,
}

/// What compressing has brought.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Compressed {
    /// Bytes of all batches of pages before.
    pub before_bytes: u64,
    /// And after: some may have been left as they were.
    pub after_bytes: u64,
    /// Of the pages sent, those told as the same as another.
    pub pages_same: u64,
    /// Those told by their difference from what they had been.
    pub pages_differing: u64,
    /// What was chosen at last; absent if nothing was worth it.
    pub method: Option<String>,
}

/// Where a migration stands at one moment; counters from its start on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Sample {
    /// Milliseconds since the command began; whoever keeps samples sets it.
    pub t_ms: u64,
    pub pass: u64,
    pub wire_bytes: u64,
    /// Bytes of pages that were sent with their content, by why they were sent when they were.
    pub live_bytes: u64,
    pub paused_bytes: u64,
    pub cooled_bytes: u64,
    pub flushed_bytes: u64,
    pub followed_bytes: u64,
    pub held_bytes: u64,
    /// How fast the VM writes memory, as QEMU has counted over its last pass.
    pub dirty_bytes_per_s: Option<u64>,
    /// What the link carries while something waits for it.
    pub link_bytes_per_s: Option<u64>,
}

/// What only a written report needs: too much, or too often, for a line.
#[derive(Debug)]
pub(crate) enum Detail<'a> {
    /// The VM to be moved.
    Vm(&'a VmFacts),
    /// The QEMU that waits for it.
    Destination(&'a VmFacts),
    /// What was predicted.
    Forecast(Forecast),
    /// What every process is, and why.
    Processes(&'a [ProcessRecord]),
    /// Where it stands.
    Sample(Sample),
}

/// Where events go.
pub(crate) trait Report {
    /// Tells one event.
    fn tell(&mut self, event: &Event);

    /// Tells a detail, for whoever keeps such.
    fn detail(&mut self, _detail: &Detail<'_>) {}
}

/// The reporter that the options, and the environment, ask for.
pub(crate) fn reporter(json: bool, quiet: bool) -> Box<dyn Report> {
    let reporter: Box<dyn Report> = match json {
        true => Box::new(Json::new(Instant::now())),
        false => Box::new(Human::new(quiet)),
    };
    match traced::begin() {
        true => Box::new(Traced::new(reporter)),
        false => reporter,
    }
}

/// Highest resident memory of this process in bytes so far.
pub(crate) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// A session's name as people see it.
pub(crate) fn session_name(session: [u8; 16]) -> String {
    use std::fmt::Write;
    session.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
