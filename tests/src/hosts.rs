//! Two hosts with libvirt and unmoord, and a VM on the first.

use std::process::Child;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::libvirt::{Libvirt, describe, text};
use lab::relay::Unmoor;
use lab::vm::Control;
use lab::{Host, Kernel, Lab, LabOptions, LibvirtOptions, VmOptions};
use serde_json::{Value, json};
use unmoor::agent::Client;

use crate::SHORT;

/// What differs between tests.
#[derive(Debug, Clone)]
pub struct HostsOptions {
    /// The link's rate.
    pub rate: &'static str,
    /// The VM's memory.
    pub memory_mib: u32,
    /// An agent runs in the guest.
    pub agent: bool,
    /// What the guest's writer is told.
    pub writer: &'static str,
    /// libvirt keeps the VM's description.
    pub defined: bool,
    /// libvirt takes both hosts for the same machine.
    pub same_machine: bool,
    /// Which Linux the guest runs.
    pub kernel: Kernel,
    /// Which libvirt and which QEMU there are at A and at B.
    pub libvirt: [LibvirtOptions; 2],
    /// The daemons' arguments, of A's and of B's.
    pub daemons: [Vec<String>; 2],
    /// What the VM's description is made.
    pub change: fn(String) -> String,
}

impl Default for HostsOptions {
    fn default() -> Self {
        HostsOptions {
            rate: "1gbit",
            memory_mib: 512,
            agent: false,
            writer: "96 8 full",
            defined: false,
            same_machine: false,
            kernel: Kernel::V6_1,
            libvirt: [LibvirtOptions::default(); 2],
            daemons: [Vec::new(), Vec::new()],
            change: |description| description,
        }
    }
}

/// Two hosts with libvirt and unmoord, and a VM on the first whose writer runs.
#[derive(Debug)]
pub struct Hosts {
    /// Where the VM is.
    pub a: Libvirt,
    /// Where it is to go.
    pub b: Libvirt,
    /// The daemons, of A and of B.
    pub relays: [Unmoor; 2],
    /// Last, so that everything ends before its namespaces go.
    pub lab: Lab,
}

impl Hosts {
    /// The usual ones, with a link of that rate.
    pub fn new(rate: &'static str) -> Result<Self> {
        Self::with(&HostsOptions {
            rate,
            ..HostsOptions::default()
        })
    }

    /// Others.
    pub fn with(options: &HostsOptions) -> Result<Self> {
        let lab = Lab::new(&LabOptions::with_rate(options.rate))?;
        let [at_a, mut at_b] = options.libvirt;
        if options.same_machine {
            at_b.known_as = Some(Host::A);
        }
        let a = Libvirt::start(&lab, Host::A, &at_a)?;
        let b = Libvirt::start(&lab, Host::B, &at_b)?;
        let start = |host: &Libvirt, more: &[String]| {
            let more: Vec<&str> = more.iter().map(String::as_str).collect();
            Unmoor::daemon(&lab, host, &more)
        };
        let [of_a, of_b] = &options.daemons;
        let relays = [start(&a, of_a)?, start(&b, of_b)?];
        let guest = VmOptions {
            agent: options.agent,
            kernel: options.kernel,
            ..VmOptions::default()
        };
        let description = describe(&guest, options.memory_mib)?;
        let description = (options.change)(description);
        match options.defined {
            true => a.define(&description)?,
            false => a.create(&description)?,
        }
        let hosts = Hosts { a, b, relays, lab };
        hosts.a.control()?.run(&format!(
            "lab-guest writer {} >/run/writer.log 2>&1 & \
             until grep -q ready /run/writer.log; do usleep 20000; done",
            options.writer
        ))?;
        if options.agent {
            hosts.await_agent()?;
        }
        Ok(hosts)
    }

    /// The agent has loaded its probes, and answers.
    fn await_agent(&self) -> Result<()> {
        let channel = self.a.channel("org.unmoor.0")?;
        let deadline = Instant::now() + SHORT;
        while let Err(error) = Client::connect(&channel) {
            ensure!(Instant::now() < deadline, "{error}");
        }
        Ok(())
    }

    /// The VM runs here, and its memory is as it should be.
    pub fn runs_at(&self, host: &Libvirt) -> Result<()> {
        for one in [&self.a, &self.b] {
            let expected = (one.host() == host.host()).then_some("running");
            let state = one.state()?;
            ensure!(state.as_deref() == expected, "{}: {state:?}", one.host());
        }
        verify(&mut host.control()?)
    }

    /// Begins to move the VM from A to B with virsh, and waits until memory is on its way.
    pub fn begin(&self) -> Result<Child> {
        let moving = self.a.migrate(&self.lab, &self.b, 0)?;
        let deadline = Instant::now() + SHORT;
        loop {
            let status = self.status(Host::A)?;
            let sent = status["running"][0]["wire_bytes"].as_u64();
            if sent > Some(4_000_000) {
                return Ok(moving);
            }
            ensure!(Instant::now() < deadline, "no memory is sent: {status}");
        }
    }

    /// What `unmoor status` says.
    pub fn status(&self, host: Host) -> Result<Value> {
        let mut command = lab::relay::command(&self.lab, host);
        let output = command.args(["status", "--json"]).output()?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Nobody's memory is in the hands of the relays any more.
    pub fn relays_are_idle(&self) -> Result<()> {
        for host in [Host::A, Host::B] {
            let status = self.status(host)?;
            ensure!(status["running"] == json!([]), "{host}: {status}");
        }
        Ok(())
    }

    /// Sockets in the folders of both hosts, beside the daemons' own.
    pub fn sockets_left(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for one in [&self.a, &self.b] {
            for folder in std::fs::read_dir(one.sockets())? {
                for file in std::fs::read_dir(folder?.path())? {
                    let name = file?.file_name().to_string_lossy().into_owned();
                    // 0.sock to 3.sock are the daemon's.
                    if name.len() > "0.sock".len() {
                        left.push(format!("{}: {name}", one.host()));
                    }
                }
            }
        }
        Ok(left)
    }
}

/// The guest's writer goes on, and all that it has written is there.
pub fn verify(guest: &mut Control) -> Result<()> {
    let answer = guest.run("lab-guest writer-ctl verify")?;
    ensure!(answer.starts_with("VERIFIED"), "the writer says {answer}");
    Ok(())
}

/// What a relay says of a migration that has come to nothing.
pub fn error(relay: &Unmoor) -> Result<String> {
    let failed = relay.await_event("failed", SHORT)?;
    let error = failed["error"].as_str().context("no error")?;
    Ok(error.to_owned())
}

/// What virsh says when it has moved a VM.
pub fn succeeds(child: Child) -> Result<()> {
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "virsh migrate: {}", text(&output));
    Ok(())
}
