//! Whom to freeze, in which order.
//!
//! Whoever is frozen stands until the switchover. Its pause is therefore its own hot memory and
//! that of everybody frozen after it, over the link's rate. The sum of all pauses is least if the
//! largest goes first; who may pause for long goes before who may not.

use std::time::Duration;

use depgraph::ProcessId;

/// What is written slower than this part of what the link carries converges by itself.
const MATTERS: u64 = 25;
/// Less written memory than this is not worth a pause.
pub const SMALL_BYTES: u64 = 4 << 20;
/// Most stages: each costs a walk of QEMU.
const STAGES_MAX: usize = 4;
/// A job whose part of all is smaller than this shares the last stage.
const SHARES: u64 = 8;
/// What a pause lasts beyond the time on the link: freezing, the last walk, thawing.
const FIXED: Duration = Duration::from_millis(600);

/// A process that may be frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job {
    /// Which.
    pub id: ProcessId,
    /// What it keeps writing: it travels while the process stands.
    pub hot_bytes: u64,
    /// How fast it writes, in bytes a second.
    pub rate: u64,
    /// Longest acceptable pause.
    pub limit: Duration,
}

/// Why a process is not frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spared {
    /// It writes so little that its pages travel live.
    Quiet,
    /// It would pause for so long, which is beyond its limit.
    TooLong(Duration),
}

/// Who is frozen with whom, in order, and who is not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stages {
    /// Each is frozen when the one before has travelled.
    pub stages: Vec<Vec<Job>>,
    /// Not frozen.
    pub spared: Vec<(Job, Spared)>,
}

/// The stages for a link of so many bytes a second. Who writes less memory than `small` is not
/// paused.
pub fn stages(jobs: &[Job], link: u64, small: u64) -> Stages {
    let link = link.max(1);
    let mut plan = Stages::default();
    let mut order = Vec::new();
    for job in jobs {
        if is_quiet(job, link, small) {
            plan.spared.push((*job, Spared::Quiet));
        } else {
            order.push(*job);
        }
    }
    order.sort_by_key(|job| std::cmp::Reverse((job.limit, job.hot_bytes)));
    while let Some((at, pause)) = first_beyond_its_limit(&order, link) {
        // What goes with it or after it is what it waits for: the largest of those is spared.
        let largest = (at..order.len()).max_by_key(|i| order[*i].hot_bytes);
        let job = order.remove(largest.unwrap_or(at));
        plan.spared.push((job, Spared::TooLong(pause)));
    }
    let total: u64 = order.iter().map(|job| job.hot_bytes).sum();
    let mut rest = total;
    for job in order {
        let last = plan.stages.len() == STAGES_MAX || rest < total / SHARES;
        match plan.stages.last_mut() {
            Some(stage) if last => stage.push(job),
            _ => plan.stages.push(vec![job]),
        }
        rest -= job.hot_bytes;
    }
    plan
}

/// Whether the job writes so little that its memory travels live.
pub(crate) fn is_quiet(job: &Job, link: u64, small: u64) -> bool {
    job.hot_bytes < small || job.rate < link / MATTERS
}

/// How long somebody stands for so many bytes.
pub fn pause(bytes: u64, link: u64) -> Duration {
    let millis = bytes.saturating_mul(1000) / link.max(1);
    FIXED + Duration::from_millis(millis)
}

fn first_beyond_its_limit(order: &[Job], link: u64) -> Option<(usize, Duration)> {
    let mut rest: u64 = order.iter().map(|job| job.hot_bytes).sum();
    for (at, job) in order.iter().enumerate() {
        let pause = pause(rest, link);
        if pause > job.limit {
            return Some((at, pause));
        }
        rest -= job.hot_bytes;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINK: u64 = 100 << 20;
    const TEN: Duration = Duration::from_secs(10);

    fn job(pid: u32, mib: u64, limit: Duration) -> Job {
        Job {
            id: ProcessId { pid, start: 1 },
            hot_bytes: mib << 20,
            rate: LINK,
            limit,
        }
    }

    fn pids(plan: &Stages) -> Vec<Vec<u32>> {
        let of = |stage: &Vec<Job>| stage.iter().map(|job| job.id.pid).collect();
        plan.stages.iter().map(of).collect()
    }

    #[test]
    fn the_largest_first_and_the_small_ones_together() {
        let jobs = [(1, 20), (2, 400), (3, 200), (4, 10)];
        let plan = stages(
            &jobs.map(|(pid, mib)| job(pid, mib, TEN)),
            LINK,
            SMALL_BYTES,
        );
        assert_eq!(pids(&plan), [vec![2], vec![3, 1, 4]].to_vec());
        assert!(plan.spared.is_empty());
    }

    #[test]
    fn who_writes_little_is_spared() {
        let mut slow = job(1, 400, TEN);
        slow.rate = LINK / 100;
        let plan = stages(&[slow, job(2, 3, TEN)], LINK, SMALL_BYTES);
        assert!(plan.stages.is_empty());
        assert!(plan.spared.iter().all(|(_, why)| *why == Spared::Quiet));
        assert_eq!(plan.spared.len(), 2);
    }

    #[test]
    fn who_would_pause_too_long_is_spared() {
        let plan = stages(&[job(1, 1500, TEN), job(2, 300, TEN)], LINK, SMALL_BYTES);
        assert_eq!(pids(&plan), [[2]]);
        let pause = Duration::from_millis(18_600);
        assert_eq!(plan.spared, [(job(1, 1500, TEN), Spared::TooLong(pause))]);
    }

    #[test]
    fn who_may_pause_longer_goes_first() {
        let minute = Duration::from_secs(60);
        let plan = stages(&[job(1, 500, TEN), job(2, 300, minute)], LINK, SMALL_BYTES);
        assert_eq!(pids(&plan), [[2], [1]]);
    }

    proptest! {
        #[test]
        fn nobody_is_forgotten_and_no_limit_broken(
            given in prop::collection::vec((0u64..2000, 1u64..60, 0u64..200), 0..20)
        ) {
            let jobs: Vec<Job> = (1..).zip(given).map(|(pid, (mib, seconds, rate))| Job {
                rate: rate << 20,
                ..job(pid, mib, Duration::from_secs(seconds))
            }).collect();
            let plan = stages(&jobs, LINK, SMALL_BYTES);
            let frozen: Vec<Job> = plan.stages.concat();
            let spared = plan.spared.iter().map(|(job, _)| *job);
            let mut all: Vec<u32> = frozen.iter().copied().chain(spared).map(|j| j.id.pid).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (1..).take(jobs.len()).collect::<Vec<u32>>());
            prop_assert!(plan.stages.len() <= STAGES_MAX);
            for (at, job) in frozen.iter().enumerate() {
                let after: u64 = frozen[at..].iter().map(|job| job.hot_bytes).sum();
                prop_assert!(pause(after, LINK) <= job.limit);
            }
        }
    }
}
