//! What must be so for any guest, and what a few guests come to.

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;
const LINK: u64 = 118_000_000;

fn candidate(pid: u32, rate: u64, most: u64, seconds: u64) -> Candidate {
    Candidate {
        job: Job {
            id: ProcessId { pid, start: 1 },
            hot_bytes: most,
            rate,
            limit: Duration::from_secs(seconds),
        },
        dirtying: Dirtying::new(rate, most),
    }
}

/// A service, and a job that rewrites 600 MiB as fast as it can.
fn busy() -> Picture {
    Picture {
        used: 800 * MIB,
        link: LINK,
        downtime_limit: Duration::from_millis(300),
        jobs: vec![candidate(7, 400 * MIB, 600 * MIB, 10)],
        live: vec![Dirtying::new(5 * MIB, 20 * MIB)],
        arming: Some(Duration::from_millis(500)),
    }
}

#[test]
fn a_job_that_outruns_the_link_is_paused() {
    let picture = busy();
    for way in [Way::PreCopy, Way::Live] {
        let found = forecast(&picture, way);
        assert_eq!(
            (found.outcome.as_ref(), found.meets(&picture)),
            (None, false)
        );
        assert!(found.odds < 0.1, "{found:?}");
        assert!(matches!(found.why[..], [Why::Outruns { .. }]), "{found:?}");
    }
    let found = forecast(&picture, Way::StopCopy);
    assert!(found.meets(&picture) && found.odds > 0.9, "{found:?}");
    let outcome = found.outcome.unwrap_or_else(|| unreachable!());
    assert!(
        (800 * MIB..880 * MIB).contains(&outcome.bytes),
        "{outcome:?}"
    );
    assert!(outcome.total > Duration::from_secs(7) && outcome.total < Duration::from_secs(9));
    let [(id, long)] = outcome.pauses[..] else {
        panic!("{outcome:?}");
    };
    assert_eq!(id.pid, 7);
    assert!(long >= pause(600 * MIB, LINK) && long < pause(650 * MIB, LINK));
    assert!(outcome.downtime < Duration::from_millis(60));
}

#[test]
fn a_pause_beyond_the_limit_is_no_way_out() {
    let mut picture = busy();
    picture.jobs[0].job.limit = Duration::from_secs(3);
    let found = forecast(&picture, Way::StopCopy);
    assert_eq!(found.outcome, None);
    assert!(!found.meets(&picture));
    let spared = found
        .why
        .iter()
        .any(|why| matches!(why, Why::Spared(id, Spared::TooLong(_)) if id.pid == 7));
    assert!(spared, "{found:?}");
}

#[test]
fn an_idle_guest_moves_like_any_other_memory() {
    let picture = Picture {
        used: 143_000_000,
        link: LINK,
        downtime_limit: Duration::from_millis(300),
        live: vec![Dirtying::new(MIB, 8 * MIB)],
        ..Picture::default()
    };
    for way in [Way::PreCopy, Way::Live, Way::StopCopy] {
        let found = forecast(&picture, way);
        assert!((found.odds - 1.0).abs() < 1e-9);
        let outcome = found.outcome.unwrap_or_else(|| unreachable!());
        assert!(outcome.total > Duration::from_millis(1200));
        assert!(outcome.total < Duration::from_millis(1500));
        assert!(outcome.pauses.is_empty());
    }
}

fn picture() -> impl Strategy<Value = Picture> {
    let jobs = prop::collection::vec((0u64..500, 0u64..800, 1u64..60), 0..6);
    let live = prop::collection::vec((0u64..200, 0u64..300), 0..6);
    (
        0u64..4000,
        1u64..2000,
        0u64..2000,
        jobs,
        live,
        any::<bool>(),
    )
        .prop_map(|(used, link, limit, jobs, live, agent)| Picture {
            used: (used + jobs.iter().map(|(_, most, _)| most).sum::<u64>()) * MIB,
            link: link * MIB,
            downtime_limit: Duration::from_millis(limit),
            jobs: (1..)
                .zip(jobs)
                .map(|(pid, (rate, most, limit))| candidate(pid, rate * MIB, most * MIB, limit))
                .collect(),
            live: live
                .into_iter()
                .map(|(rate, most)| Dirtying::new(rate * MIB, most * MIB))
                .collect(),
            arming: agent.then_some(Duration::from_millis(400)),
        })
}

proptest! {
    /// Nothing is endless or lost, and a pause is never less than the engine's own estimate.
    #[test]
    fn a_forecast_makes_sense(picture in picture()) {
        for way in [Way::PreCopy, Way::Live, Way::StopCopy] {
            let found = forecast(&picture, way);
            prop_assert!((0.0..=1.0).contains(&found.odds));
            prop_assert!(!found.why.is_empty());
            let Some(outcome) = found.outcome else {
                prop_assert!(found.odds < 1.0);
                continue;
            };
            prop_assert!(found.odds > 0.0);
            prop_assert!(outcome.total < Duration::from_secs(100_000));
            let carried = duration(real(outcome.bytes) / real(picture.link));
            prop_assert!(outcome.total >= carried, "{outcome:?} {carried:?}");
            let limit = picture.downtime_limit.as_secs_f64().max(SWITCHING);
            prop_assert!(outcome.downtime <= duration(limit + 1e-6));
            prop_assert!(outcome.pauses.is_empty() || way == Way::StopCopy);
            for (id, long) in &outcome.pauses {
                let job = picture.jobs.iter().find(|one| one.job.id == *id);
                let own = job.map_or(0, |one| one.job.hot_bytes);
                prop_assert!(*long >= pause(own, picture.link));
            }
        }
    }

    /// A faster link makes nothing worse, where nobody is paused.
    #[test]
    fn a_faster_link_is_never_slower(picture in picture(), more in 1u64..500) {
        for way in [Way::PreCopy, Way::Live] {
            let slow = forecast(&picture, way);
            let mut faster = picture.clone();
            faster.link += more * MIB;
            let fast = forecast(&faster, way);
            prop_assert!(fast.odds >= slow.odds);
            if let Some(slow) = slow.outcome {
                let fast = fast.outcome.map(|outcome| outcome.total);
                prop_assert!(fast.is_some_and(|fast| fast <= slow.total), "{fast:?} {slow:?}");
            }
        }
    }

    /// Nor where somebody is: more is not paused longer, and what ended still ends.
    #[test]
    fn a_faster_link_pauses_nobody_longer(picture in picture(), more in 1u64..500) {
        let slow = forecast(&picture, Way::StopCopy);
        let mut faster = picture.clone();
        faster.link += more * MIB;
        let fast = forecast(&faster, Way::StopCopy);
        let longest = |found: &Forecast| {
            let outcome = found.outcome.as_ref();
            outcome.and_then(|outcome| outcome.pauses.iter().map(|(_, long)| *long).max())
        };
        // As long as the same processes are frozen.
        let frozen = |found: &Forecast| {
            let outcome = found.outcome.as_ref();
            outcome.map(|outcome| outcome.pauses.iter().map(|(id, _)| *id).collect::<Vec<_>>())
        };
        if frozen(&slow) == frozen(&fast) {
            prop_assert!(longest(&fast) <= longest(&slow), "{fast:?} {slow:?}");
        }
    }

    /// Whoever writes more makes nothing better.
    #[test]
    fn who_writes_more_makes_it_no_likelier(picture in picture(), rate in 1u64..300) {
        for way in [Way::PreCopy, Way::Live, Way::StopCopy] {
            let mut worse = picture.clone();
            worse.live.push(Dirtying::new(rate * MIB, 1 << 30));
            prop_assert!(forecast(&worse, way).odds <= forecast(&picture, way).odds);
        }
    }

    #[test]
    fn two_samples_make_a_sensible_writer(
        first in 0u64..1000, second in 0u64..2000, memory in 0u64..4000
    ) {
        let (half, whole) = (Duration::from_millis(500), Duration::from_secs(1));
        let found = Dirtying::from_samples((half, first * MIB), (whole, second * MIB), memory * MIB);
        prop_assert!(found.most() >= first.max(second) * MIB);
        prop_assert!(found.most() <= first.max(second).max(memory) * MIB);
        prop_assert!(found.rate() >= second * MIB);
    }
}
