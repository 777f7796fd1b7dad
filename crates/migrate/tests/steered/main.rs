//! The pilot beside the source half: a guest with processes, an agent of a certain character, QEMU's
//! walks over its dirty pages and a link, in virtual time. Whatever the agent does, memory arrives
//! as it was sent, what is held is bounded, and the migration ends.
//!
//! `UNMOOR_SIMULATIONS` sets the number of runs, `UNMOOR_SEED` runs one seed alone.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "small numbers, and a panic is how a test fails"
)]

mod agent;
mod guest;
mod hypervisor;
#[path = "../simulation/random.rs"]
mod random;
mod world;

use std::collections::BTreeMap;

use agent::Character;
use world::{Ending, World};

const DEFAULT_RUNS: u64 = 700;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_the_agent_is_like() {
    let seeds: Vec<u64> = match number("UNMOOR_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("UNMOOR_SIMULATIONS").unwrap_or(DEFAULT_RUNS)).collect(),
    };
    let alone = seeds.len() == 1;
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    for seed in seeds {
        let result = std::panic::catch_unwind(|| World::new(seed).run());
        let run = result.unwrap_or_else(|_| panic!("seed {seed}: run it with UNMOOR_SEED={seed}"));
        for what in &run.seen {
            *seen.entry((*what).to_owned()).or_default() += 1;
        }
        *seen.entry(format!("{:?}", run.character)).or_default() += 1;
        *seen.entry(format!("{:?}", run.ending)).or_default() += 1;
        // Whoever may not be paused, or for so long, may write more than the link carries.
        if run.character == Character::Right && !run.seen.contains("moved live") {
            assert_eq!(run.ending, Ending::Moved, "seed {seed}");
        }
    }
    println!("{seen:?}");
    if !alone {
        for what in [
            "held",
            "frozen",
            "frozen twice",
            "lease renewed",
            "moved live",
            "thawed by the agent",
            "thawed on request",
            "turned dependent",
            "left behind as free",
            "second look",
            "agent lost",
            "refused",
            "left in the guest",
            "thawed for a cut",
            "frozen after a cut",
            "follows",
        ] {
            assert!(seen.contains_key(what), "never: {what}");
        }
        for character in Character::ALL {
            assert!(
                seen.contains_key(&format!("{character:?}")),
                "{character:?}"
            );
        }
    }
}
