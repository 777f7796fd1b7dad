//! What a cell came to, and what must hold whatever it is.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::relay::{command, run_folder, state_folder};
use lab::{Host, Vm};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::scene::{Guest, LOOK_EVERY, Scene};
use super::{Fault, Moment, Protocol};
use crate::{SHORT, await_writing, verify_writer};

/// Longest wait until all has come to rest.
const REST_LIMIT: Duration = Duration::from_secs(150);
/// After so long an operator looks whether anything waits for a decision.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest wait until nobody stands frozen: for longer than the agent's lease.
const THAW_LIMIT: Duration = Duration::from_secs(60);

/// Where the VM is in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// It runs where it was.
    Source,
    /// It has moved.
    Destination,
    /// It has died with the QEMU that it needed.
    Nowhere,
}

/// What a cell came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// Where the VM is.
    pub place: Place,
    /// Somebody had to decide, with `unmoor resolve`.
    pub resolved: bool,
    /// From the beginning until all had come to rest and had been looked at.
    pub seconds: f64,
    /// How `unmoor send` ended; absent if a signal ended it.
    pub exit: Option<i32>,
    /// What it said of an error.
    pub error: Option<String>,
    /// What both halves said.
    #[serde(skip)]
    pub told: String,
}

impl Scene {
    /// Waits until all has come to rest, and looks at everything.
    pub(super) fn settle(&mut self) -> Result<Outcome> {
        let resolved = self.rest()?;
        let place = self.place()?;
        match place {
            Place::Nowhere => ensure!(
                self.takes_the_vm_along(),
                "the VM is `{}` at A and `{}` at B",
                state(&mut self.pair.source)?,
                state(&mut self.pair.destination)?
            ),
            Place::Source => {
                self.settings_are_as_before()?;
                self.guest_is_well(place)?;
            }
            Place::Destination => self.guest_is_well(place)?,
        }
        self.nothing_is_left()?;
        let exit = self.sender.exit(SHORT)?;
        let last = self.sender.events().last().cloned().unwrap_or_default();
        Ok(Outcome {
            place,
            resolved,
            seconds: self.begun.elapsed().as_secs_f64(),
            exit: (exit >= 0).then_some(exit),
            error: last["error"].as_str().map(str::to_owned),
            told: self.told(),
        })
    }

    /// Waits until nothing but QEMU runs on either host. What waits for somebody's decision gets
    /// one: true if anything did.
    fn rest(&mut self) -> Result<bool> {
        let begun = Instant::now();
        let mut resolved = false;
        loop {
            let busy = self.busy()?;
            if busy.is_empty() {
                return Ok(self.settle_what_is_kept()? || resolved);
            }
            if begun.elapsed() > REST_LIMIT {
                bail!("still run: {busy:?}");
            }
            if begun.elapsed() > PATIENCE {
                resolved |= self.decide_for_whoever_waits()?;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Processes other than QEMU.
    fn busy(&self) -> Result<Vec<(Host, u32)>> {
        let qemus = [self.pair.source.pid(), self.pair.destination.pid()];
        let mut busy = Vec::new();
        for host in [Host::A, Host::B] {
            let pids = self.pair.lab.pids(host)?.into_iter();
            busy.extend(
                pids.filter(|pid| !qemus.contains(pid))
                    .map(|pid| (host, pid)),
            );
        }
        Ok(busy)
    }

    /// Somebody who sees both hosts decides for whoever waits; and ends a destination that nobody came
    /// to.
    fn decide_for_whoever_waits(&mut self) -> Result<bool> {
        for host in [Host::A, Host::B] {
            let status = self.ask(host, &["status", "--json"])?;
            let status: Value = serde_json::from_str(&status)?;
            for one in status["running"].as_array().into_iter().flatten() {
                let Some(session) = one["session"].as_str() else {
                    self.receiver.signal(Signal::TERM)?;
                    continue;
                };
                if one["in_doubt"] != true {
                    continue;
                }
                let (other, started) = match host {
                    Host::A => (&mut self.pair.destination, false),
                    _ => (&mut self.pair.source, one["runs"] == true),
                };
                // A VM that lacks memory is no VM once that is lost.
                let decision = match started || runs(other)? {
                    true => "--give-up",
                    false => "--run-here",
                };
                self.ask(host, &["resolve", session, decision])?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the source keeps as in doubt is settled.
    fn settle_what_is_kept(&mut self) -> Result<bool> {
        let kept = state_folder(&self.pair.lab, Host::A).join("in-doubt");
        let Ok(entries) = fs::read_dir(kept) else {
            return Ok(false);
        };
        let mut any = false;
        for entry in entries {
            any = true;
            let name = entry?.file_name().to_string_lossy().into_owned();
            let session = name.strip_suffix(".json").context("no record")?;
            if runs(&mut self.pair.destination)? {
                self.ask(Host::A, &["resolve", session, "--give-up"])?;
            } else {
                self.ask(Host::A, &["resolve", session, "--run-here"])?;
            }
        }
        Ok(any)
    }

    fn ask(&self, host: Host, words: &[&str]) -> Result<String> {
        let output = command(&self.pair.lab, host).args(words).output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "unmoor {words:?}: {error}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// At most one copy runs.
    fn place(&mut self) -> Result<Place> {
        // It may be about to: nothing but QEMU could still have it so.
        let here = runs(&mut self.pair.source)?;
        let there = runs(&mut self.pair.destination)?;
        match (here, there) {
            (true, true) => bail!("both copies run"),
            // Whatever QEMU calls it: part of its memory is nowhere.
            _ if self.takes_the_vm_along() => Ok(Place::Nowhere),
            (true, false) => Ok(Place::Source),
            (false, true) => Ok(Place::Destination),
            (false, false) => Ok(Place::Nowhere),
        }
    }

    /// The QEMU that had the VM, or what it needs, was killed.
    fn takes_the_vm_along(&self) -> bool {
        let following = self.cell.protocol == Protocol::PostCopy;
        match (self.cell.fault, self.cell.moment) {
            (Fault::SourceQemuKilled, Moment::Committed | Moment::After) => following,
            (Fault::SourceQemuKilled, _) => true,
            (Fault::DestinationQemuKilled, moment) => moment == Moment::After,
            _ => false,
        }
    }

    /// The source QEMU can migrate as if nothing had been.
    fn settings_are_as_before(&mut self) -> Result<()> {
        let source = &mut self.pair.source;
        let parameters = source.qmp("query-migrate-parameters", &json!({}))?;
        ensure!(parameters["max-bandwidth"] == 128 << 20, "{parameters}");
        let capabilities = source.qmp("query-migrate-capabilities", &json!({}))?;
        for capability in capabilities.as_array().context("no list")? {
            ensure!(capability["state"] == false, "{capability}");
        }
        Ok(())
    }

    /// What ran in it goes on, its memory is what it was, and nobody stands.
    fn guest_is_well(&mut self, place: Place) -> Result<()> {
        let vm = match place {
            Place::Source => &mut self.pair.source,
            _ => &mut self.pair.destination,
        };
        match self.guest {
            Guest::Panicked => return Ok(()),
            Guest::Reset => {
                vm.guest("true").context("after its reset")?;
            }
            Guest::Intact => {
                nobody_stands(vm)?;
                await_writing(vm)?;
                verify_writer(vm)?;
            }
        }
        let answer = vm.guest("until redis-cli ping; do usleep 50000; done")?;
        ensure!(answer.contains("PONG"), "Redis says {answer}");
        Ok(())
    }

    /// No socket, and no record of a doubt.
    fn nothing_is_left(&self) -> Result<()> {
        for host in [Host::A, Host::B] {
            // What a killed process had is cleared away by whoever comes next.
            self.ask(host, &["status"])?;
            let kept = state_folder(&self.pair.lab, host).join("in-doubt");
            for folder in [run_folder(&self.pair.lab, host), kept] {
                let entries = fs::read_dir(&folder).into_iter().flatten();
                let names: Vec<_> = entries
                    .map(|one| Ok(one?.file_name()))
                    .collect::<Result<_>>()?;
                ensure!(names.is_empty(), "in {}: {names:?}", folder.display());
            }
        }
        Ok(())
    }
}

/// Waits until no process in the guest is frozen or stopped.
fn nobody_stands(vm: &mut Vm) -> Result<()> {
    let look = "grep -l 'frozen 1' $(find /sys/fs/cgroup -name cgroup.events); \
        grep -l '^State:.[Tt]' /proc/[0-9]*/status; true";
    let deadline = Instant::now() + THAW_LIMIT;
    loop {
        let standing = vm.guest(look)?;
        if standing.trim().is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("these stand: {standing}");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// QEMU's run state, or that it has ended.
fn state(vm: &mut Vm) -> Result<String> {
    match vm.ended()? {
        Some(_) => Ok("ended".to_owned()),
        None => vm.status(),
    }
}

fn runs(vm: &mut Vm) -> Result<bool> {
    // It may end while it is asked.
    Ok(matches!(state(vm).as_deref(), Ok("running")))
}
