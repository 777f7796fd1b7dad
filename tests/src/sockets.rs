//! Two bare QEMUs between which `unmoord` on each host carries a migration, as a manager of VMs arranges it.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use hypervisor::Incoming;
use lab::relay::{self, Unmoor};
use lab::{Host, VmOptions, program};
use serde_json::json;

use crate::{Pair, SHORT, start_writer, verify_writer};

/// A VM and a QEMU that waits for it, with a daemon on each host.
#[derive(Debug)]
pub struct Scene {
    /// The VM, and the QEMU that waits.
    pub pair: Pair,
    /// The daemons of A and B.
    pub relays: [Unmoor; 2],
}

impl Scene {
    /// With these words for the daemons; the QEMU that waits stays paused if that is wanted.
    pub fn new(at_a: &[&str], at_b: &[&str], paused: bool) -> Result<Self> {
        let ours = program("unmoord");
        Self::of([&ours, &ours], at_a, at_b, paused)
    }

    /// With these programs for the daemons.
    pub fn of(programs: [&Path; 2], at_a: &[&str], at_b: &[&str], paused: bool) -> Result<Self> {
        let options = VmOptions {
            network: false,
            ..VmOptions::default()
        };
        let mut waiting = options.as_destination();
        waiting.paused = paused;
        let mut pair = Pair::with(&options, &waiting, Some("1gbit"))?;
        start_writer(&mut pair.source, 96, 20, "full")?;
        let relays = [
            Unmoor::plain_daemon(&pair.lab, Host::A, programs[0], at_a)?,
            Unmoor::plain_daemon(&pair.lab, Host::B, programs[1], at_b)?,
        ];
        Ok(Scene { pair, relays })
    }

    /// The source's socket, and the one at which the destination's QEMU waits.
    pub fn sockets(&self, slot: &str) -> [String; 2] {
        [Host::A, Host::B].map(|host| {
            let folder = relay::sockets(&self.pair.lab, host);
            folder.join("b").join(slot).display().to_string()
        })
    }

    /// Has the destination's QEMU wait at a slot and the source's write to it.
    pub fn begin(&mut self, slot: &str, return_path: bool) -> Result<()> {
        let at_a: &[&str] = match return_path {
            true => &["return-path"],
            false => &[],
        };
        self.begin_with(slot, at_a, &[])
    }

    /// The same with these capabilities on at the source and at the destination.
    pub fn begin_with(&mut self, slot: &str, at_a: &[&str], at_b: &[&str]) -> Result<()> {
        let [from, to] = self.sockets(slot);
        let on = |names: &[&str]| {
            let names = ["events"].iter().chain(names);
            let on = names.map(|name| json!({"capability": name, "state": true}));
            json!({"capabilities": on.collect::<Vec<_>>()})
        };
        let Pair {
            source,
            destination,
            ..
        } = &mut self.pair;
        source.qmp("migrate-set-capabilities", &on(at_a))?;
        destination.qmp("migrate-set-capabilities", &on(at_b))?;
        let incoming = json!({"uri": format!("unix:{to}")});
        self.pair.destination.qmp("migrate-incoming", &incoming)?;
        let outgoing = json!({"uri": format!("unix:{from}")});
        self.pair.source.qmp("migrate", &outgoing)?;
        Ok(())
    }

    /// How QEMU's migration ends.
    pub fn outcome(&mut self) -> Result<String> {
        self.comes_to(&["completed", "failed"])
    }

    /// Waits until QEMU's migration is in one of these states.
    pub fn comes_to(&mut self, states: &[&str]) -> Result<String> {
        let deadline = Instant::now() + SHORT;
        loop {
            let monitor = self.pair.source.monitor()?;
            for incoming in monitor.process()? {
                let Incoming::Event(event) = incoming else {
                    continue;
                };
                let status = event.data["status"].as_str().unwrap_or_default();
                if event.name == "MIGRATION" && states.contains(&status) {
                    return Ok(status.to_owned());
                }
            }
            ensure!(monitor.wait_readable(deadline)?, "it does not end");
        }
    }

    /// It has come to nothing at either relay, and the VM runs on; yields what the source's said.
    pub fn failed(&mut self) -> Result<String> {
        let failed = self.relays[0].await_event("failed", SHORT)?;
        ensure!(self.outcome()? == "failed");
        self.pair.source.wait_status("running", SHORT)?;
        verify_writer(&mut self.pair.source)?;
        Ok(failed["error"].as_str().unwrap_or_default().to_owned())
    }
}
