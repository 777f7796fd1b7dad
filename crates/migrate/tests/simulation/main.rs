//! Both halves of the engine between two fake QEMUs, over a network that cuts and delays, with
//! faults at any step: seeded, so that a failing run is replayed by its seed.
//!
//! `UNMOOR_SIMULATIONS` sets the number of runs, `UNMOOR_SEED` runs one seed alone.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "small numbers, and a panic is how a test fails"
)]

mod meddler;
mod outlet;
mod pipe;
mod qemu;
mod random;
mod world;

use std::collections::BTreeMap;

use world::{Ending, World};

const DEFAULT_RUNS: u64 = 3000;
/// Seeds beyond those that failed once.
const FAILED_ONCE: [u64; 3] = [8901, 12_025, 42_673];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn memory_is_equal_and_one_copy_runs_whatever_happens() {
    let seeds: Vec<u64> = match number("UNMOOR_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("UNMOOR_SIMULATIONS").unwrap_or(DEFAULT_RUNS))
            .chain(FAILED_ONCE)
            .collect(),
    };
    let alone = seeds.len() == 1;
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in seeds {
        let result = std::panic::catch_unwind(|| World::new(seed).run());
        let run = result.unwrap_or_else(|_| panic!("seed {seed}: run it with UNMOOR_SEED={seed}"));
        for what in run.seen {
            *seen.entry(what).or_default() += 1;
        }
        *seen.entry(run.ending.name()).or_default() += 1;
    }
    println!("{seen:?}");
    if !alone {
        // A simulation in which nothing happens would prove nothing.
        for what in [
            "moved",
            "stayed",
            "duplicate dropped",
            "zero page",
            "several walks",
            "early section",
            "no description",
            "switchover command",
            "cut before the commit",
            "cut after the commit",
            "cut while ready",
            "source cancelled",
            "destination refused",
            "stream truncated",
            "page corrupted",
            "settled by verdict",
            "revoked by verdict",
            "held",
            "frozen",
            "turned live",
            "declared free",
            "left behind as free",
            "link full",
            "packed",
            "same page",
            "difference",
            "no room to hold",
            "forgotten by QEMU",
            "left in the guest",
            "memory follows",
            "everything held",
            "page fault",
            "cut while memory follows",
            "source half replaced",
            "destination half replaced",
            "corruption told",
            "resumed before the commit",
            "resumed after the commit",
            "resumed over several connections",
            "settled by the guardian",
            "destination QEMU ended",
            "taken back",
        ] {
            assert!(
                seen.get(what).is_some_and(|count| *count > 0),
                "never: {what}"
            );
        }
    }
}

/// The digest is what stands between a corrupt page and a running VM.
#[test]
fn a_corrupt_page_never_runs() {
    let mut caught = 0;
    for seed in 0..300 {
        let mut world = World::new(seed);
        world.only_fault_is_corruption();
        let run = world.run();
        if run.seen.contains(&"page corrupted") {
            // Unless a later version of the page made it good before the end.
            match run.ending {
                Ending::Stayed => caught += 1,
                Ending::Moved => assert!(
                    run.seen.contains(&"corruption overwritten")
                        || run.seen.contains(&"corruption told"),
                    "{seed}"
                ),
            }
        }
    }
    assert!(caught > 100, "{caught}");
}
