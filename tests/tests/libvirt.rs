//! VMs that libvirt manages move through unmoord, there and back; whatever fails, the VM runs where
//! libvirt says it does.

use std::process::Child;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::client::Running;
use lab::libvirt::{DOMAIN, text};
use lab::relay::Unmoor;
use lab::results;
use rustix::process::Signal;
use serde_json::{Value, json};
use unmoor_tests::hosts::{Hosts, HostsOptions, error, succeeds};
use unmoor_tests::{SHORT, nothing_is_lost};

/// Moves the VM from A to B.
fn migrate(hosts: &Hosts, slot: u8) -> Result<()> {
    succeeds(hosts.a.migrate(&hosts.lab, &hosts.b, slot)?)
}

fn fails(child: Child) -> Result<String> {
    let output = child.wait_with_output()?;
    ensure!(!output.status.success(), "it moved: {}", text(&output));
    Ok(text(&output))
}

/// The relays say that the VM was loaded, and agree on what.
fn carried(from: &Unmoor, to: &Unmoor) -> Result<Value> {
    let sent = from.await_event("carried", SHORT)?;
    let received = to.await_event("carried", SHORT)?;
    ensure!(sent["session"] == received["session"]);
    ensure!(sent["pages"] == received["pages"], "{sent} {received}");
    Ok(sent)
}

#[test]
fn virsh_moves_a_vm_there_and_back() -> Result<()> {
    let hosts = Hosts::new("1gbit")?;
    let [at_a, at_b] = &hosts.relays;
    let description = hosts.a.description()?;
    let client = Running::redis(&hosts.lab, 100)?;

    migrate(&hosts, 0)?;
    let there = carried(at_a, at_b)?;
    hosts.runs_at(&hosts.b)?;
    ensure!(hosts.b.description()? == description, "it has changed");
    let job = hosts.b.virsh(&["domjobinfo", DOMAIN, "--completed"])?;
    ensure!(job.contains("Completed"), "{job}");

    // Another socket, the other way round.
    succeeds(hosts.b.migrate(&hosts.lab, &hosts.a, 3)?)?;
    let back = at_b.await_matching("carried", |event| event["role"] == "send", SHORT)?;
    hosts.runs_at(&hosts.a)?;
    ensure!(hosts.a.description()? == description, "it has changed");
    hosts.relays_are_idle()?;

    let redis = client.finish()?;
    nothing_is_lost(&redis)?;
    // The guest has 512 MiB, most of it never touched.
    let memory = u64::from(HostsOptions::default().memory_mib) << 20;
    for way in [&there, &back] {
        let sent = way["wire_bytes"].as_u64().context("no count")?;
        ensure!(sent < memory / 2, "{sent} bytes");
        ensure!(way["pages"].as_u64() >= Some(memory / 4096), "{way}");
    }
    results::record(
        "libvirt",
        &json!({"there": there, "back": back, "redis": redis}),
    )
}

#[test]
fn a_relay_that_dies_leaves_the_vm_where_it_was() -> Result<()> {
    for victim in [0, 1] {
        let hosts = Hosts::new("100mbit")?;
        let moving = hosts.begin()?;
        hosts.relays[victim].signal(Signal::KILL)?;
        let said = fails(moving)?;
        ensure!(!said.is_empty());
        hosts.runs_at(&hosts.a)?;
        // The source's sees the connection lost; the destination's that, or first that libvirt has
        // ended its QEMU, which takes no way through a slow link.
        let error = error(&hosts.relays[1 - victim])?;
        let let_go = victim == 0 && error.contains("let go");
        ensure!(error.contains("was lost") || let_go, "{error}");
    }
    Ok(())
}

#[test]
fn a_relay_that_is_told_to_end_lets_libvirt_take_the_vm_back() -> Result<()> {
    let mut hosts = Hosts::new("100mbit")?;
    let moving = hosts.begin()?;
    hosts.relays[0].signal(Signal::TERM)?;
    fails(moving)?;
    ensure!(hosts.relays[0].exit(SHORT)? == 0);
    let error = error(&hosts.relays[1])?;
    // As above.
    let let_go = error.contains("let go");
    ensure!(error.contains("told to end") || let_go, "{error}");
    hosts.runs_at(&hosts.a)
}

#[test]
fn a_migration_that_is_cancelled_ends_everywhere() -> Result<()> {
    let hosts = Hosts::new("100mbit")?;
    let moving = hosts.begin()?;
    let job = hosts.a.virsh(&["domjobinfo", DOMAIN])?;
    ensure!(job.contains("Outgoing migration"), "{job}");
    ensure!(hosts.b.state()?.as_deref() == Some("paused"));
    hosts.a.virsh(&["domjobabort", DOMAIN])?;
    fails(moving)?;
    hosts.runs_at(&hosts.a)?;
    let error = error(&hosts.relays[0])?;
    ensure!(error.contains("given the migration up"), "{error}");
    // It hears of that, or sees first that libvirt has ended its QEMU.
    hosts.relays[1].await_event("failed", SHORT)?;
    // And then it moves after all.
    migrate(&hosts, 1)?;
    hosts.runs_at(&hosts.b)
}

#[test]
fn a_destination_qemu_that_dies_leaves_the_vm_where_it_was() -> Result<()> {
    let hosts = Hosts::new("100mbit")?;
    let moving = hosts.begin()?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(hosts.b.qemu()?)?);
    rustix::process::kill_process(pid.context("no process")?, Signal::KILL)?;
    fails(moving)?;
    let error = error(&hosts.relays[0])?;
    ensure!(error.contains("destination QEMU"), "{error}");
    hosts.runs_at(&hosts.a)
}

#[test]
fn a_peer_that_is_not_there_is_told_of() -> Result<()> {
    let mut hosts = Hosts::new("1gbit")?;
    hosts.relays[1].signal(Signal::TERM)?;
    hosts.relays[1].exit(SHORT)?;
    let moving = hosts.a.migrate(&hosts.lab, &hosts.b, 0)?;
    fails(moving)?;
    let error = error(&hosts.relays[0])?;
    ensure!(error.contains("unmoord"), "{error}");
    hosts.runs_at(&hosts.a)
}

#[test]
fn a_libvirtd_that_dies_and_comes_back_knows_where_the_vm_runs() -> Result<()> {
    for dies_at_the_source in [true, false] {
        let mut hosts = Hosts::new("100mbit")?;
        let moving = hosts.begin()?;
        let victim = match dies_at_the_source {
            true => &mut hosts.a,
            false => &mut hosts.b,
        };
        victim.kill_daemon()?;
        fails(moving)?;
        victim.restart_daemon()?;
        // It comes to know what became of its VM as it starts.
        let deadline = Instant::now() + SHORT;
        while let Err(error) = hosts.runs_at(&hosts.a) {
            ensure!(Instant::now() < deadline, "{error:#}");
        }
        for relay in &hosts.relays {
            relay.await_event("failed", SHORT)?;
        }
        hosts.relays_are_idle()?;
    }
    Ok(())
}

#[test]
fn a_vm_that_is_paused_arrives_paused() -> Result<()> {
    let hosts = Hosts::new("1gbit")?;
    hosts.a.virsh(&["suspend", DOMAIN])?;
    migrate(&hosts, 0)?;
    ensure!(hosts.b.state()?.as_deref() == Some("paused"));
    hosts.b.virsh(&["resume", DOMAIN])?;
    hosts.runs_at(&hosts.b)
}
