//! How far the batch jobs are.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use lab::Vm;
use serde::{Deserialize, Serialize};

use super::Job;

/// How far a job is. Asking makes it depend on who asks, so it is done outside of migrations only.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    at: Instant,
    pages: u64,
    /// Its process.
    pub pid: u32,
}

impl Progress {
    /// Asks a job.
    pub fn of(vm: &mut Vm, job: &Job) -> Result<Self> {
        let answer = vm.guest(&format!("lab-guest writer-ctl {} stat", job.name))?;
        let number = |name: &str| {
            let word = answer
                .split_ascii_whitespace()
                .find_map(|word| word.strip_prefix(name));
            word.with_context(|| format!("no {name} in `{answer}`"))
        };
        Ok(Progress {
            at: Instant::now(),
            pages: number("pages=")?.parse()?,
            pid: number("pid=")?.parse()?,
        })
    }

    /// Asks them all.
    pub fn of_all(vm: &mut Vm, jobs: &[Job]) -> Result<Vec<Self>> {
        jobs.iter().map(|job| Progress::of(vm, job)).collect()
    }

    fn pages_per_s(&self, later: &Progress) -> f64 {
        (later.pages - self.pages) as f64 / (later.at - self.at).as_secs_f64()
    }
}

/// What a move did to a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobOutcome {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// How fast it wrote before.
    pub before_mb_per_s: f64,
    /// How fast, on average, from the beginning to the end of the move.
    pub during_mb_per_s: f64,
    /// How fast it writes after it.
    pub after_mb_per_s: f64,
    /// The time by which the move set it back.
    pub lost_s: f64,
    /// How long unmoor paused it; absent if it did not.
    pub pause_ms: Option<f64>,
    /// Whether every byte of it is as it should be.
    pub verified: bool,
}

impl JobOutcome {
    /// From how far it was at the beginning and the end of the time before, and at the beginning and
    /// the end of the time after.
    pub fn new(job: &Job, [first, begun, ended, last]: [&Progress; 4]) -> Self {
        let mb = |pages_per_s: f64| pages_per_s * 4096.0 / 1e6;
        let usual = first.pages_per_s(begun);
        let took = (ended.at - begun.at).as_secs_f64();
        let done = (ended.pages - begun.pages) as f64;
        JobOutcome {
            name: job.name.to_owned(),
            pid: ended.pid,
            before_mb_per_s: mb(usual),
            during_mb_per_s: mb(begun.pages_per_s(ended)),
            after_mb_per_s: mb(ended.pages_per_s(last)),
            lost_s: took - done / usual,
            pause_ms: None,
            verified: false,
        }
    }

    /// Has the job check its memory.
    pub fn verify(&mut self, vm: &mut Vm) -> Result<()> {
        let answer = vm.guest(&format!("lab-guest writer-ctl {} verify", self.name))?;
        if !answer.starts_with("VERIFIED") {
            bail!("the job {} says {answer}", self.name);
        }
        self.verified = true;
        Ok(())
    }
}
