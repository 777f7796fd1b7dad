//! What breaks.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::relay::Unmoor;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::scene::{Guest, Scene};

/// For longer than a lost connection may stay away before the commit.
const CUT: Duration = Duration::from_secs(6);
/// For longer than a peer may be silent.
const STANDSTILL: Duration = Duration::from_secs(10);
/// How often, and for how long each time, a link that flaps is down, and up.
const FLAPS: u32 = 4;
const FLAP: Duration = Duration::from_millis(400);
/// Between a clock's jump and the next.
const BETWEEN_JUMPS: Duration = Duration::from_millis(500);

/// What breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// `unmoor send` is killed.
    SourceRelayKilled,
    /// `unmoor receive` is killed.
    DestinationRelayKilled,
    /// The VM's QEMU is killed.
    SourceQemuKilled,
    /// The QEMU that waits is killed.
    DestinationQemuKilled,
    /// The agent in the guest is killed.
    AgentKilled,
    /// The guest is reset.
    GuestReset,
    /// The guest's kernel panics, and stands from then on.
    GuestPanic,
    /// The link is down for six seconds.
    LinkCut,
    /// The link is down four times for a moment.
    LinkFlaps,
    /// The disks for reports, records and what is in doubt are full, on both hosts.
    DiskFull,
    /// `unmoor send` stands still for ten seconds.
    SourceRelayStands,
    /// `unmoor receive` stands still for ten seconds.
    DestinationRelayStands,
    /// The clocks of both hosts, and the guest's, jump by an hour, and back.
    ClockJumps,
    /// `unmoor send` gets no more file descriptors.
    SourceOutOfFiles,
    /// `unmoor receive` gets no more file descriptors.
    DestinationOutOfFiles,
    /// `unmoor send` gets no more memory.
    SourceOutOfMemory,
    /// `unmoor receive` gets no more memory.
    DestinationOutOfMemory,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 17] = [
        Fault::SourceRelayKilled,
        Fault::DestinationRelayKilled,
        Fault::SourceQemuKilled,
        Fault::DestinationQemuKilled,
        Fault::AgentKilled,
        Fault::GuestReset,
        Fault::GuestPanic,
        Fault::LinkCut,
        Fault::LinkFlaps,
        Fault::DiskFull,
        Fault::SourceRelayStands,
        Fault::DestinationRelayStands,
        Fault::ClockJumps,
        Fault::SourceOutOfFiles,
        Fault::DestinationOutOfFiles,
        Fault::SourceOutOfMemory,
        Fault::DestinationOutOfMemory,
    ];

    /// For tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Fault::SourceRelayKilled => "source-relay-killed",
            Fault::DestinationRelayKilled => "destination-relay-killed",
            Fault::SourceQemuKilled => "source-qemu-killed",
            Fault::DestinationQemuKilled => "destination-qemu-killed",
            Fault::AgentKilled => "agent-killed",
            Fault::GuestReset => "guest-reset",
            Fault::GuestPanic => "guest-panic",
            Fault::LinkCut => "link-cut",
            Fault::LinkFlaps => "link-flaps",
            Fault::DiskFull => "disk-full",
            Fault::SourceRelayStands => "source-relay-stands",
            Fault::DestinationRelayStands => "destination-relay-stands",
            Fault::ClockJumps => "clock-jumps",
            Fault::SourceOutOfFiles => "source-out-of-files",
            Fault::DestinationOutOfFiles => "destination-out-of-files",
            Fault::SourceOutOfMemory => "source-out-of-memory",
            Fault::DestinationOutOfMemory => "destination-out-of-memory",
        }
    }

    /// Whether only a guest that runs can have it.
    pub(super) fn is_of_the_guest(self) -> bool {
        matches!(
            self,
            Fault::AgentKilled | Fault::GuestReset | Fault::GuestPanic
        )
    }

    /// Whether it strikes a relay, the guest on its way, or what lies between the relays.
    pub(super) fn is_of_a_relay(self) -> bool {
        !matches!(self, Fault::SourceQemuKilled | Fault::DestinationQemuKilled)
    }

    /// Breaks it, and mends what is not broken for good.
    pub(super) fn strike(self, scene: &mut Scene) -> Result<()> {
        match self {
            Fault::SourceRelayKilled => scene.sender.signal(Signal::KILL)?,
            Fault::DestinationRelayKilled => scene.receiver.signal(Signal::KILL)?,
            Fault::SourceQemuKilled => scene.pair.source.kill(),
            Fault::DestinationQemuKilled => scene.pair.destination.kill(),
            Fault::AgentKilled => {
                // The one that began first: the other watches over it.
                let kill = "kill -9 $(pidof unmoor-agent | tr ' ' '\\n' | sort -n | head -n 1)";
                scene.running_vm().tell_guest(kill)?;
            }
            Fault::GuestReset => {
                scene.running_vm().qmp("system_reset", &json!({}))?;
                scene.guest = Guest::Reset;
            }
            Fault::GuestPanic => {
                scene
                    .running_vm()
                    .tell_guest("echo c >/proc/sysrq-trigger")?;
                scene.guest = Guest::Panicked;
            }
            Fault::LinkCut => {
                scene.pair.lab.set_link(false)?;
                scene.go_on()?;
                sleep(CUT);
                scene.pair.lab.set_link(true)?;
            }
            Fault::LinkFlaps => {
                for _ in 0..FLAPS {
                    scene.pair.lab.set_link(false)?;
                    sleep(FLAP);
                    scene.pair.lab.set_link(true)?;
                    sleep(FLAP);
                }
            }
            Fault::DiskFull => scene.fill_disks()?,
            Fault::SourceRelayStands => stand(&scene.sender)?,
            Fault::DestinationRelayStands => stand(&scene.receiver)?,
            Fault::ClockJumps => {
                scene.set_clocks("+1h")?;
                sleep(BETWEEN_JUMPS);
                scene.set_clocks("-1h")?;
            }
            Fault::SourceOutOfFiles => no_more_files(&scene.sender)?,
            Fault::DestinationOutOfFiles => no_more_files(&scene.receiver)?,
            Fault::SourceOutOfMemory => no_more_memory(&scene.sender)?,
            Fault::DestinationOutOfMemory => no_more_memory(&scene.receiver)?,
        }
        scene.go_on()
    }
}

fn stand(relay: &Unmoor) -> Result<()> {
    relay.signal(Signal::STOP)?;
    sleep(STANDSTILL);
    relay.signal(Signal::CONT)
}

fn no_more_files(relay: &Unmoor) -> Result<()> {
    let folder = format!("/proc/{}/fd", relay.pid());
    let numbers = fs::read_dir(folder)?.map(|entry| -> Result<u64> {
        let name = entry?.file_name();
        Ok(name.to_string_lossy().parse()?)
    });
    let highest = numbers.collect::<Result<Vec<_>>>()?.into_iter().max();
    limit(relay, "nofile", highest.context("no files")? + 1)
}

fn no_more_memory(relay: &Unmoor) -> Result<()> {
    let status = fs::read_to_string(format!("/proc/{}/status", relay.pid()))?;
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kib = size.and_then(|rest| rest.split_ascii_whitespace().next());
    let kib: u64 = kib.context("no size")?.parse()?;
    limit(relay, "as", kib * 1024)
}

fn limit(relay: &Unmoor, what: &str, most: u64) -> Result<()> {
    let pid = relay.pid().to_string();
    let limit = format!("--{what}={most}");
    let status = Command::new("prlimit")
        .args(["--pid", &pid, &limit])
        .status()?;
    ensure!(status.success(), "prlimit: {status}");
    Ok(())
}
