//! The settings that a migration through a relay needs, and how they were before.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::vm::milliseconds;
use crate::{Error, Vm};

/// Capabilities that change the stream in a way that a relay cannot follow, or let the source
/// wait for an answer that a relay does not give. Those that say how the owner wants the data to
/// travel (`multifd`) are not switched off silently: `check` refuses them.
const OFF_AT_SOURCE: [&str; 11] = [
    "background-snapshot",
    "compress",
    "late-block-activate",
    "pause-before-switchover",
    "postcopy-preempt",
    "postcopy-ram",
    "release-ram",
    "return-path",
    "switchover-ack",
    "xbzrle",
    "zero-copy-send",
];
/// `mapped-ram` needs a file to seek in, and QEMU refuses anything else; `x-ignore-shared` leaves
/// shared memory out of the stream: the two hosts share none.
const OFF_AT_BOTH: [&str; 3] = ["mapped-ram", "x-ignore-shared", "zero-blocks"];
/// What the source asks for by itself.
const OFF_AT_DESTINATION: [&str; 2] = ["postcopy-preempt", "late-block-activate"];
/// The destination serves page faults.
pub(crate) const POST_COPY: &str = "postcopy-ram";
/// Events tell when the migration and the VM change state.
const ON: [&str; 1] = ["events"];

/// What QEMU (8.2 and later) takes the link to carry when it decides whether what is left fits the
/// downtime limit, in place of what it has measured.
pub(crate) const LINK_RATE: &str = "avail-switchover-bandwidth";

/// What the user wants of a migration.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Longest acceptable stop of the VM.
    pub downtime_limit: Duration,
    /// Throttling the guest's processors may be asked for later
    /// ([`Vm::submit_throttle`]): it cannot be switched on during a migration.
    pub may_throttle: bool,
}

/// Settings to change, with the values that they had: made before anything is changed, so that
/// whoever holds it can put everything back at any moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    capabilities_before: BTreeMap<String, bool>,
    capabilities: BTreeMap<String, bool>,
    parameters_before: Map<String, Value>,
    parameters: Map<String, Value>,
}

impl Saved {
    /// What a source QEMU needs.
    pub fn plan_source(vm: &mut Vm, wanted: &Wanted) -> Result<Self, Error> {
        let mut parameters = Map::new();
        // The relay paces; a second limit in QEMU would only make it misjudge the link.
        parameters.insert("max-bandwidth".into(), json!(0));
        parameters.insert(
            "downtime-limit".into(),
            json!(milliseconds(wanted.downtime_limit)),
        );
        let mut on = ON.to_vec();
        if wanted.may_throttle {
            on.push("auto-converge");
            for name in [
                "cpu-throttle-initial",
                "cpu-throttle-increment",
                "max-cpu-throttle",
            ] {
                // The least that QEMU takes.
                parameters.insert(name.into(), json!(1));
            }
        }
        let off = OFF_AT_SOURCE.iter().chain(&OFF_AT_BOTH);
        let mut saved = Self::plan(vm, off.copied(), &on, parameters)?;
        // Set later, by `Vm::submit_downtime_limit`.
        if let Some(now) = vm.parameters()?.get(LINK_RATE) {
            saved
                .parameters_before
                .insert(LINK_RATE.into(), now.clone());
        }
        Ok(saved)
    }

    /// Whether QEMU can be told what the link carries.
    pub fn takes_link_rate(&self) -> bool {
        self.parameters_before.contains_key(LINK_RATE)
    }

    /// What a destination QEMU needs, and whether memory may follow after the switchover.
    pub fn plan_destination(vm: &mut Vm, post_copy: bool) -> Result<Self, Error> {
        let mut off: Vec<_> = OFF_AT_DESTINATION.iter().chain(&OFF_AT_BOTH).collect();
        let mut on = ON.to_vec();
        match post_copy {
            true => on.push(POST_COPY),
            false => off.push(&POST_COPY),
        }
        Self::plan(vm, off.into_iter().copied(), &on, Map::new())
    }

    fn plan(
        vm: &mut Vm,
        off: impl Iterator<Item = &'static str>,
        on: &[&'static str],
        parameters: Map<String, Value>,
    ) -> Result<Self, Error> {
        let known = vm.capabilities()?;
        let before = vm.parameters()?;
        let wanted = off
            .map(|name| (name, false))
            .chain(on.iter().map(|name| (*name, true)));
        let mut saved = Saved {
            capabilities_before: BTreeMap::new(),
            capabilities: BTreeMap::new(),
            parameters_before: Map::new(),
            parameters: Map::new(),
        };
        for (name, state) in wanted {
            // A capability that this QEMU does not know is as good as off.
            if known.get(name).is_some_and(|now| *now != state) {
                saved.capabilities_before.insert(name.into(), !state);
                saved.capabilities.insert(name.into(), state);
            }
        }
        for (name, value) in parameters {
            if let Some(now) = before.get(&name).filter(|now| **now != value) {
                saved.parameters_before.insert(name.clone(), now.clone());
                saved.parameters.insert(name, value);
            }
        }
        Ok(saved)
    }

    /// Makes the changes.
    pub fn apply(&self, vm: &mut Vm) -> Result<(), Error> {
        vm.set_capabilities(&self.capabilities)?;
        vm.set_parameters(&self.parameters)
    }

    /// Puts everything back. Harmless if nothing was changed.
    pub fn restore(&self, vm: &mut Vm) -> Result<(), Error> {
        let parameters = vm.set_parameters(&self.parameters_before);
        vm.set_capabilities(&self.capabilities_before)?;
        parameters
    }
}
