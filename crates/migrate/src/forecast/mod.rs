//! What a migration would be like, before it is begun: bytes, time, downtime, pauses, and whether
//! it ends at all.
//!
//! ```text
//! pre-copy, live   all memory │ what was dirtied meanwhile │ what was dirtied meanwhile │ … fits
//! stop-copy        all but hot pages of jobs │ freeze │ their hot pages │ settle │ switch over
//! post-copy        all but hot pages of jobs │ settle │ switch over │ their hot pages
//! ```
//!
//! Pure arithmetic on a [`Picture`] of the guest. Whom the engine would freeze, and for how long,
//! comes from the functions by which it decides itself: [`stages`] and [`pause`].

mod dirtying;
mod passes;

use std::time::Duration;

use depgraph::ProcessId;

use crate::pilot::{
    Job, LEAD, SAMPLE, SETTLING_PASSES, SMALL_BYTES, Spared, WINDOW_MIN, is_quiet, pause, stages,
};
pub use dirtying::Dirtying;
use dirtying::{real, whole};
use passes::{Passes, passes};

/// From arming the agent's probes to the first snapshot, where it was not measured.
pub const ARMING: Duration = Duration::from_millis(500);
/// What a kernel, and processes too small to be looked at, write at the least.
pub const BACKGROUND: Dirtying = Dirtying::new(2 << 20, 16 << 20);

/// Begin and end of a migration besides memory: the halves greet each other, the destination
/// loads the devices, the commit goes round.
const AROUND: f64 = 0.15;
/// Questions to the agent that no memory is read before.
const ASKING: f64 = 0.15;
/// What stopping, loading the devices and resuming take of the downtime.
const SWITCHING: f64 = 0.025;
/// What is left of the first walk when an agent has answered for the last time before its end.
const AT_THE_END: f64 = 0.05;
/// One page in so many is in use and zero all the same: the kernel's own tables.
const ZERO: u64 = 100;
/// Limits are compared no more closely.
const ROUNDING: Duration = Duration::from_millis(1);
/// Dirty rates that are tried for the odds: from half to twice what was seen.
const TRIED: i32 = 10;
/// Bytes a second that a relay reads of memory that follows: nothing is done with it.
const PASSED_BY: f64 = 2e9;
/// A stage stands this long after it was asked for.
const FREEZING: f64 = 0.15;

/// What is known of a guest and a link.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    /// Bytes that must travel: memory that is neither free nor zero.
    pub used: u64,
    /// Bytes a second that the link carries.
    pub link: u64,
    /// Longest acceptable stop of the VM.
    pub downtime_limit: Duration,
    /// Processes that may be frozen.
    pub jobs: Vec<Candidate>,
    /// What everybody else writes, the kernel included.
    pub live: Vec<Dirtying>,
    /// With an agent: how long it takes from arming its probes to the first snapshot.
    pub arming: Option<Duration>,
}

/// A process that may be frozen.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// As the engine sees it.
    pub job: Job,
    /// What it writes in the long run.
    pub dirtying: Dirtying,
}

/// How memory may travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By QEMU's own migration, with nothing in between.
    PreCopy,
    /// Live, through the relay.
    Live,
    /// That of processes on which nobody outside depends once, while they stand.
    StopCopy,
    /// That of processes on which nobody outside depends once, after the switchover.
    PostCopy,
}

/// What a migration would be like.
#[derive(Debug, Clone)]
pub struct Forecast {
    /// How memory travels.
    pub way: Way,
    /// Nothing if it would not end.
    pub outcome: Option<Outcome>,
    /// How likely it ends: the part of the dirty rates between half and twice the given ones at
    /// which it would.
    pub odds: f64,
    /// Why it is so.
    pub why: Vec<Why>,
}

/// A migration that ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes on the link.
    pub bytes: u64,
    /// From begin until the VM runs at the destination.
    pub total: Duration,
    /// And until it needs nothing of the source any more.
    pub source_free: Duration,
    /// For which the VM stands.
    pub downtime: Duration,
    /// For which processes stand.
    pub pauses: Vec<(ProcessId, Duration)>,
}

/// A reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// What is moved live is written at so many bytes a second, and each pass leaves so many,
    /// where so many would fit the downtime.
    Outruns {
        /// Bytes a second.
        rate: u64,
        /// Bytes that a pass leaves.
        leaves: u64,
        /// Bytes that fit.
        fits: u64,
    },
    /// So many passes after the first make the rest fit the downtime.
    Shrinks {
        /// Passes.
        passes: u32,
    },
    /// So many processes stand while so many bytes of theirs travel.
    Paused {
        /// Processes.
        processes: usize,
        /// Bytes.
        bytes: u64,
    },
    /// The memory of so many processes, so many bytes, follows after the switchover.
    Follows {
        /// Processes.
        processes: usize,
        /// Bytes.
        bytes: u64,
    },
    /// A process is not frozen.
    Spared(ProcessId, Spared),
    /// Nobody may be frozen, or nobody writes enough.
    NobodyToPause,
}

impl Forecast {
    /// Whether it ends, more likely than not, with no stop of the VM beyond its limit and no
    /// pause beyond those of the processes.
    pub fn meets(&self, picture: &Picture) -> bool {
        let Some(outcome) = &self.outcome else {
            return false;
        };
        let limit = |id| picture.jobs.iter().find(|one| one.job.id == id);
        let mut pauses = outcome.pauses.iter();
        self.odds >= 0.5
            && outcome.downtime <= picture.downtime_limit + ROUNDING
            && pauses.all(|(id, pause)| limit(*id).is_none_or(|one| *pause <= one.job.limit))
    }
}

/// Bytes that must travel of a guest's memory, of which so many bytes are free.
pub fn used(memory: u64, free: u64) -> u64 {
    memory.saturating_sub(free).saturating_sub(memory / ZERO)
}

/// What a migration of this kind would be like.
pub fn forecast(picture: &Picture, way: Way) -> Forecast {
    let (outcome, why) = run(picture, way, 1.0);
    let factors = (-TRIED..=TRIED).map(|step| (f64::from(step) / f64::from(TRIED)).exp2());
    let ends = factors.filter(|factor| run(picture, way, *factor).0.is_some());
    let tried = f64::from(2 * TRIED + 1);
    Forecast {
        way,
        outcome,
        odds: real(ends.count() as u64) / tried,
        why,
    }
}

/// With all dirty rates so many times as high.
fn run(picture: &Picture, way: Way, factor: f64) -> (Option<Outcome>, Vec<Why>) {
    let link = real(picture.link.max(1));
    let live = picture.live.iter().map(|one| one.times(factor));
    let mut live: Vec<Dirtying> = live.collect();
    let mut why = Vec::new();
    let mut frozen: Vec<Vec<Candidate>> = Vec::new();
    let mut following: Vec<Candidate> = Vec::new();
    if way == Way::PostCopy {
        let loud = |one: &&Candidate| !is_quiet(&one.job, picture.link, SMALL_BYTES);
        following.extend(picture.jobs.iter().filter(loud));
        let quiet = picture.jobs.iter().filter(|one| !loud(one));
        live.extend(quiet.map(|one| one.dirtying.times(factor)));
    } else if way == Way::StopCopy {
        let jobs: Vec<Job> = picture.jobs.iter().map(|one| one.job).collect();
        let plan = stages(&jobs, picture.link, SMALL_BYTES);
        let of = |id| {
            picture
                .jobs
                .iter()
                .copied()
                .find(move |one| one.job.id == id)
        };
        for stage in &plan.stages {
            frozen.push(stage.iter().filter_map(|job| of(job.id)).collect());
        }
        for (job, spared) in plan.spared {
            live.extend(of(job.id).map(|one| one.dirtying.times(factor)));
            if !matches!(spared, Spared::Quiet) {
                why.push(Why::Spared(job.id, spared));
            }
        }
        if frozen.is_empty() {
            why.push(Why::NobodyToPause);
        }
    } else {
        let jobs = picture.jobs.iter();
        live.extend(jobs.map(|one| one.dirtying.times(factor)));
    }
    let held = frozen.iter().flatten().chain(&following);
    let held = held.map(|one| real(one.job.hot_bytes)).sum();
    let walk = first_walk(picture, way, held, !frozen.is_empty(), link);
    let follow = follows(&following, walk.seconds, factor, real(picture.used));
    if !following.is_empty() {
        why.push(Why::Follows {
            processes: following.len(),
            bytes: whole(follow.bytes),
        });
    }
    let flush = flushed(&frozen, walk.seconds, factor, real(picture.used));
    let flushed: f64 = flush.iter().sum();
    if !frozen.is_empty() {
        why.push(Why::Paused {
            processes: frozen.concat().len(),
            bytes: whole(flushed),
        });
    }

    // What the circle after the freeze carries besides is what was dirtied in the first walk.
    let fits = link * (picture.downtime_limit.as_secs_f64() - SWITCHING).max(0.0);
    let (begin, at_least) = match (frozen.is_empty(), following.is_empty()) {
        (true, true) => (walk.seconds, 0),
        (true, false) => (walk.seconds + follow.reading, SETTLING_PASSES),
        (false, _) => (walk.seconds + flushed / link, SETTLING_PASSES),
    };
    let Passes {
        seconds,
        bytes,
        left,
        count,
        fit,
    } = passes(begin, &live, link, fits, at_least);
    let why_it_ends = match fit {
        true => Why::Shrinks { passes: count },
        false => Why::Outruns {
            rate: live.iter().map(Dirtying::rate).sum(),
            leaves: whole(left),
            fits: whole(fits),
        },
    };
    why.push(why_it_ends);
    if !fit {
        return (None, why);
    }

    // QEMU completes as soon as what it has not sent fits, be that dirty or not yet sent at all. It
    // may so from the beginning, or when the guest has told what is free, or after the freeze.
    let unsent = match (
        frozen.is_empty() && following.is_empty(),
        picture.arming.filter(|_| way != Way::PreCopy),
    ) {
        (true, None) => fits,
        (true, Some(_)) => fits.min(link * AT_THE_END),
        (false, _) => 0.0,
    };
    let last = unsent.min(real(picture.used)).max(left);
    let stands = (last / link).max(follow.last);
    let before_the_stop = walk.seconds + flushed / link + follow.reading + seconds;
    let last_pass = (left / link).max(follow.last);
    let total = walk.before + before_the_stop + last_pass + AROUND;
    let mut pauses = Vec::new();
    for (at, stage) in frozen.iter().enumerate() {
        let waits: f64 = flush[at..].iter().sum();
        let long = pause(whole(waits + bytes + left), picture.link);
        pauses.extend(stage.iter().map(|one| (one.job.id, long)));
    }
    let outcome = Outcome {
        bytes: whole(walk.bytes + flushed + bytes + left + follow.bytes),
        total: duration(total),
        source_free: duration(total + follow.bytes / link),
        downtime: duration(stands + SWITCHING),
        pauses,
    };
    (Some(outcome), why)
}

/// QEMU's first walk over the guest's memory.
struct Walk {
    /// Before memory is read.
    before: f64,
    seconds: f64,
    bytes: f64,
}

fn first_walk(picture: &Picture, way: Way, held: f64, freezes: bool, link: f64) -> Walk {
    let bytes = (real(picture.used) - held).max(0.0);
    let on_the_link = bytes / link;
    let Some(arming) = picture.arming.filter(|_| way != Way::PreCopy) else {
        return Walk {
            before: 0.0,
            seconds: on_the_link,
            bytes,
        };
    };
    // The relay reads no second walk before it knows who writes, and freezes nobody before it has
    // seen flows for a while.
    let known = match (way, picture.jobs.is_empty(), freezes) {
        (Way::PreCopy | Way::Live, ..) | (_, true, _) => 0.0,
        (_, _, false) => (arming + SAMPLE).as_secs_f64(),
        _ => (arming + WINDOW_MIN).as_secs_f64() + FREEZING,
    };
    let near_the_end = match freezes {
        false => 0.0,
        true => on_the_link - LEAD.as_secs_f64() + FREEZING,
    };
    Walk {
        before: ASKING,
        seconds: on_the_link.max(known).max(near_the_end),
        bytes,
    }
}

/// What follows after the switchover.
struct Follows {
    bytes: f64,
    /// Reading it before, until it is as little as it gets,
    reading: f64,
    /// and for the last time, while the VM stands.
    last: f64,
}

fn follows(following: &[Candidate], walk: f64, factor: f64, most: f64) -> Follows {
    let dirtied = |seconds: f64| -> f64 {
        let of = |one: &Candidate| one.dirtying.times(factor).within(seconds);
        following.iter().map(of).sum::<f64>().min(most)
    };
    let hot: f64 = following.iter().map(|one| real(one.job.hot_bytes)).sum();
    let bytes = hot.max(dirtied(walk)).min(most);
    // Each pass over it takes as long as reading what was written in the one before.
    let first = bytes / PASSED_BY;
    let second = dirtied(first) / PASSED_BY;
    Follows {
        bytes,
        reading: first + second,
        last: dirtied(second).min(bytes) / PASSED_BY,
    }
}

/// What each stage still has to send when it stands: what was held, and what was written since the
/// walk passed by. No more than there is.
fn flushed(frozen: &[Vec<Candidate>], walk: f64, factor: f64, most: f64) -> Vec<f64> {
    let mut left = most;
    let stages = frozen.iter().map(|stage| {
        let written = stage.iter().map(|one| {
            let dirtied = one.dirtying.times(factor).within(walk);
            real(one.job.hot_bytes).max(dirtied)
        });
        let bytes = written.sum::<f64>().min(left);
        left -= bytes;
        bytes
    });
    stages.collect()
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests;
