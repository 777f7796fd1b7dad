//! `unmoor migrate`: VMs that libvirt manages move with the processes paused on which nobody outside
//! depends; whatever fails, the VM runs where libvirt says it does, and nothing stays frozen.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::client::Running;
use lab::libvirt::DOMAIN;
use lab::relay::Unmoor;
use lab::{VmOptions, results};
use rustix::process::Signal;
use serde_json::{Value, json};
use unmoor_tests::authority::Authority;
use unmoor_tests::hosts::{Hosts, HostsOptions, verify};
use unmoor_tests::{MIGRATION_LIMIT, SHORT, move_with_agent, nothing_is_lost};

/// A VM with an agent, and a writer that outruns the link.
fn with_agent(rate: &'static str) -> HostsOptions {
    HostsOptions {
        rate,
        agent: true,
        memory_mib: 768,
        writer: "200 0 full",
        ..HostsOptions::default()
    }
}

/// Waits for the writer to write again: it is not frozen.
fn writes(hosts: &Hosts, at_a: bool) -> Result<()> {
    let host = if at_a { &hosts.a } else { &hosts.b };
    let mut guest = host.control()?;
    let deadline = Instant::now() + SHORT;
    let before = guest.run("lab-guest writer-ctl stat")?;
    // It tells how many pages have been written.
    while guest.run("lab-guest writer-ctl stat")? == before {
        ensure!(
            Instant::now() < deadline,
            "the writer stands still: {before}"
        );
    }
    Ok(())
}

/// It has come to nothing: what it says.
fn fails(unmoor: &mut Unmoor, code: i32) -> Result<Value> {
    let ended = unmoor.exit(MIGRATION_LIMIT)?;
    ensure!(
        ended == code,
        "unmoor ended with {ended}: {:?} {}",
        unmoor.events().last(),
        unmoor.stderr()
    );
    unmoor.await_event("failed", SHORT)
}

/// Begins to move the VM from A to B, and waits until memory is on its way.
fn begin(hosts: &Hosts, more: &[&str]) -> Result<Unmoor> {
    let moving = Unmoor::migrate(&hosts.lab, &hosts.a, &hosts.b, more)?;
    let sent = |event: &Value| event["wire_bytes"].as_u64() > Some(4_000_000);
    moving.await_matching("progress", sent, SHORT)?;
    Ok(moving)
}

/// libvirt comes to know that the VM runs where it was.
fn soon_runs_at_a(hosts: &Hosts) -> Result<()> {
    let deadline = Instant::now() + SHORT;
    while let Err(error) = hosts.runs_at(&hosts.a) {
        ensure!(Instant::now() < deadline, "{error:#}");
    }
    Ok(())
}

/// The VM is where it was, nothing is frozen and nothing is left.
fn stays(hosts: &Hosts) -> Result<()> {
    hosts.runs_at(&hosts.a)?;
    writes(hosts, true)?;
    let left = hosts.sockets_left()?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn a_vm_moves_there_and_back_with_its_job_paused() -> Result<()> {
    let hosts = Hosts::with(&HostsOptions {
        defined: true,
        ..with_agent("1gbit")
    })?;
    let description = hosts.a.description()?;
    let client = Running::redis(&hosts.lab, 100)?;

    let mut there = begin(&hosts, &[])?;
    let job = hosts.a.virsh(&["domjobinfo", DOMAIN])?;
    ensure!(job.contains("Outgoing migration"), "{job}");
    ensure!(hosts.b.state()?.as_deref() == Some("paused"));
    let there = there.summary(MIGRATION_LIMIT)?;
    hosts.runs_at(&hosts.b)?;
    writes(&hosts, false)?;
    ensure!(hosts.b.description()? == description, "it has changed");
    let job = hosts.b.virsh(&["domjobinfo", DOMAIN, "--completed"])?;
    ensure!(job.contains("Completed"), "{job}");
    let info = hosts.b.virsh(&["dominfo", DOMAIN])?;
    let kept = |line: &str| line.starts_with("Persistent:") && line.ends_with("yes");
    ensure!(info.lines().any(kept), "{info}");

    let mut back = Unmoor::migrate(&hosts.lab, &hosts.b, &hosts.a, &[])?;
    let back = back.summary(MIGRATION_LIMIT)?;
    hosts.runs_at(&hosts.a)?;
    writes(&hosts, true)?;
    ensure!(hosts.a.description()? == description, "it has changed");
    let redis = client.finish()?;
    nothing_is_lost(&redis)?;
    ensure!(hosts.sockets_left()?.is_empty());
    for way in [&there, &back] {
        let frozen = way["frozen"].as_array().context("none")?;
        ensure!(frozen.len() == 1, "{way}");
        // Thawed because it was asked for, and not because its time was up.
        ensure!(frozen[0]["pause_ms"].as_f64().is_some(), "{way}");
        let stood = way["downtime_ms"].as_f64();
        ensure!(stood.is_some() && stood < way["total_ms"].as_f64(), "{way}");
        ensure!(way["digest"] == "equal" && way["running_at_destination"] == true);
        // Held once, sent once.
        let sent = way["wire_bytes"].as_u64().context("no count")?;
        let memory = way["guest_nonfree_bytes"].as_u64().context("no count")?;
        ensure!(sent < memory + memory / 4, "{way}");
    }
    results::record(
        "libvirt_migrate",
        &json!({"there": there, "back": back, "redis": redis}),
    )
}

#[test]
fn a_migration_that_is_cancelled_leaves_the_vm_where_it_was() -> Result<()> {
    let hosts = Hosts::with(&with_agent("100mbit"))?;
    let mut moving = begin(&hosts, &[])?;
    moving.signal(Signal::INT)?;
    let told = fails(&mut moving, 4)?;
    ensure!(
        told["vm"]
            .as_str()
            .is_some_and(|vm| vm.contains("runs here")),
        "{told}"
    );
    stays(&hosts)?;
    // Once more, while a process is frozen.
    let mut moving = begin(&hosts, &[])?;
    moving.await_event("frozen", MIGRATION_LIMIT)?;
    moving.signal(Signal::INT)?;
    fails(&mut moving, 4)?;
    stays(&hosts)?;
    // And by libvirt's own command.
    let mut moving = begin(&hosts, &[])?;
    hosts.a.virsh(&["domjobabort", DOMAIN])?;
    let told = fails(&mut moving, 1)?;
    ensure!(
        told["error"]
            .as_str()
            .is_some_and(|why| why.contains("libvirt") || why.contains("QEMU")),
        "{told}"
    );
    stays(&hosts)
}

#[test]
fn a_tool_that_is_killed_while_a_process_is_frozen_leaves_nothing_frozen() -> Result<()> {
    let hosts = Hosts::with(&with_agent("100mbit"))?;
    let moving = begin(&hosts, &[])?;
    moving.await_event("frozen", MIGRATION_LIMIT)?;
    moving.signal(Signal::KILL)?;
    soon_runs_at_a(&hosts)?;
    writes(&hosts, true)
}

#[test]
fn a_relay_that_is_killed_leaves_the_vm_where_it_was() -> Result<()> {
    let hosts = Hosts::with(&with_agent("100mbit"))?;
    let mut moving = begin(&hosts, &[])?;
    hosts.relays[1].signal(Signal::KILL)?;
    let told = fails(&mut moving, 1)?;
    ensure!(
        told["error"]
            .as_str()
            .is_some_and(|why| why.contains("was lost") || why.contains("closed the connection")),
        "{told}"
    );
    stays(&hosts)
}

#[test]
fn a_libvirtd_that_is_killed_leaves_the_vm_where_it_was() -> Result<()> {
    for dies_at_the_source in [true, false] {
        let mut hosts = Hosts::with(&with_agent("100mbit"))?;
        let mut moving = begin(&hosts, &[])?;
        let victim = match dies_at_the_source {
            true => &mut hosts.a,
            false => &mut hosts.b,
        };
        victim.kill_daemon()?;
        let ended = moving.exit(MIGRATION_LIMIT)?;
        // The one that would know what has become of the VM is not there to be asked.
        let expected = if dies_at_the_source { 6 } else { 1 };
        ensure!(ended == expected, "{ended}: {:?}", moving.events().last());
        let victim = match dies_at_the_source {
            true => &mut hosts.a,
            false => &mut hosts.b,
        };
        victim.restart_daemon()?;
        soon_runs_at_a(&hosts)?;
        stays(&hosts)?;
    }
    Ok(())
}

#[test]
fn a_libvirtd_that_is_started_again_is_asked_where_the_vm_runs() -> Result<()> {
    let mut hosts = Hosts::with(&with_agent("100mbit"))?;
    let mut moving = begin(&hosts, &[])?;
    hosts.a.kill_daemon()?;
    hosts.a.restart_daemon()?;
    let told = fails(&mut moving, 1)?;
    ensure!(
        told["vm"]
            .as_str()
            .is_some_and(|vm| vm.contains("runs here")),
        "{told}"
    );
    stays(&hosts)
}

#[test]
fn what_stands_in_the_way_is_told_before_anything_is_touched() -> Result<()> {
    let hosts = Hosts::with(&with_agent("1gbit"))?;
    let refused = |more: &[&str]| {
        let mut moving = Unmoor::migrate(&hosts.lab, &hosts.a, &hosts.b, more)?;
        why(&mut moving, 3)
    };
    let report = hosts.lab.run_dir().join("refused.html");
    let path = report.display().to_string();
    let why = refused(&["--protocol", "post-copy", "--report", &path])?;
    ensure!(std::fs::read_to_string(&report)?.contains("libvirt would let go"));
    ensure!(why.contains("libvirt would let go"), "{why}");
    let why = refused(&["--on-stall", "auto-converge"])?;
    ensure!(why.contains("throttling"), "{why}");
    // Somebody else is connected to the agent's channel.
    let other = std::os::unix::net::UnixStream::connect(hosts.a.channel("org.unmoor.0")?)?;
    let why = refused(&["--protocol", "stop-copy"])?;
    ensure!(why.contains("nothing else is connected"), "{why}");
    drop(other);
    stays(&hosts)
}

#[test]
fn a_vm_without_a_channel_moves_and_is_given_one() -> Result<()> {
    let options = HostsOptions {
        change: |description| {
            let channel = "<channel type='unix'><source mode='bind'/><target type='virtio' name='org.unmoor.0'/></channel>";
            description.replace(channel, "")
        },
        ..HostsOptions::default()
    };
    let hosts = Hosts::with(&options)?;
    let prepare = |more: &[&str]| -> Result<(i32, String)> {
        let mut command = hosts.a.command(lab::program("unmoor"));
        let uri = hosts.a.uri();
        let output = command
            .args(["prepare", DOMAIN, "--connect", &uri])
            .args(more)
            .output()?;
        Ok((
            output.status.code().unwrap_or(-1),
            lab::libvirt::text(&output),
        ))
    };
    let (code, xml) = prepare(&["--print"])?;
    ensure!(code == 0 && xml.contains("org.unmoor.0"), "{xml}");
    ensure!(
        !hosts.a.description()?.contains("org.unmoor.0"),
        "it was changed"
    );

    let mut moving = Unmoor::migrate(&hosts.lab, &hosts.a, &hosts.b, &["--protocol", "stop-copy"])?;
    let told = fails(&mut moving, 3)?;
    ensure!(
        told["error"]
            .as_str()
            .is_some_and(|why| why.contains("unmoor prepare")),
        "{told}"
    );

    let (code, told) = prepare(&["--json"])?;
    ensure!(code == 0, "{told}");
    let told: Value = serde_json::from_str(&told)?;
    ensure!(told["agent"] == "added", "{told}");
    ensure!(hosts.a.description()?.contains("org.unmoor.0"));
    let (code, told) = prepare(&[])?;
    ensure!(code == 0 && told.contains("it has a channel"), "{told}");

    // Nobody answers on it: nobody is paused.
    let mut moving = Unmoor::migrate(&hosts.lab, &hosts.a, &hosts.b, &[])?;
    let summary = moving.summary(MIGRATION_LIMIT)?;
    ensure!(summary["frozen"] == json!([]), "{summary}");
    hosts.runs_at(&hosts.b)?;
    ensure!(hosts.b.description()?.contains("org.unmoor.0"));
    verify(&mut hosts.b.control()?)
}

#[test]
fn a_vm_that_is_paused_arrives_paused() -> Result<()> {
    let hosts = Hosts::new("1gbit")?;
    hosts.a.virsh(&["suspend", DOMAIN])?;
    let mut moving = Unmoor::migrate(&hosts.lab, &hosts.a, &hosts.b, &[])?;
    let summary = moving.summary(MIGRATION_LIMIT)?;
    ensure!(summary["running_at_destination"] == false, "{summary}");
    ensure!(hosts.b.state()?.as_deref() == Some("paused"));
    hosts.b.virsh(&["resume", DOMAIN])?;
    hosts.runs_at(&hosts.b)
}

/// It has come to nothing: why, in its words.
fn why(unmoor: &mut Unmoor, code: i32) -> Result<String> {
    let told = fails(unmoor, code)?;
    Ok(told["error"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn two_hosts_that_libvirt_takes_for_one_are_refused() -> Result<()> {
    let hosts = Hosts::with(&HostsOptions {
        same_machine: true,
        ..HostsOptions::default()
    })?;
    let mut moving = Unmoor::migrate(&hosts.lab, &hosts.a, &hosts.b, &[])?;
    let why = why(&mut moving, 3)?;
    ensure!(why.contains("host_uuid"), "{why}");
    hosts.runs_at(&hosts.a)
}

#[test]
fn a_certificate_of_somebody_elses_is_refused() -> Result<()> {
    let (ours, theirs) = (Authority::new()?, Authority::new()?);
    let (of_a, of_b) = (ours.issue(lab::HOST_A)?, ours.issue(lab::HOST_B)?);
    let daemon = |folder: &str| vec!["--tls-dir".to_owned(), folder.to_owned()];
    let hosts = Hosts::with(&HostsOptions {
        daemons: [daemon(&of_a), daemon(&of_b)],
        ..HostsOptions::default()
    })?;
    let wrong = theirs.issue(lab::HOST_A)?;
    let mut moving = Unmoor::migrate(&hosts.lab, &hosts.a, &hosts.b, &["--tls-dir", &wrong])?;
    let why = why(&mut moving, 1)?;
    ensure!(why.contains("certificate"), "{why}");
    hosts.runs_at(&hosts.a)?;
    // With the right one it moves.
    let mut moving = Unmoor::migrate(&hosts.lab, &hosts.a, &hosts.b, &["--tls-dir", &of_a])?;
    moving.summary(MIGRATION_LIMIT)?;
    hosts.runs_at(&hosts.b)
}

#[test]
fn what_is_not_permitted_is_told_and_the_vm_stays() -> Result<()> {
    let hosts = Hosts::new("1gbit")?;
    // QEMU cannot make its socket at the destination.
    hosts.b.close_sockets(&hosts.lab, "b")?;
    let mut moving = Unmoor::migrate(&hosts.lab, &hosts.a, &hosts.b, &[])?;
    let told = why(&mut moving, 1)?;
    ensure!(
        told.contains("migrate-incoming") && told.contains("migrate/b"),
        "{told}"
    );
    stays_idle(&hosts)?;
    // This user may not speak with libvirt.
    std::os::unix::fs::chown(hosts.a.socket(), Some(1), None)?;
    let mut moving = Unmoor::migrate_unprivileged(&hosts.lab, &hosts.a, &hosts.b)?;
    let told = why(&mut moving, 1)?;
    ensure!(told.contains("Permission denied"), "{told}");
    stays_idle(&hosts)
}

#[test]
fn a_destination_without_memory_is_told_of_and_the_vm_stays() -> Result<()> {
    let hosts = Hosts::new("1gbit")?;
    hosts.b.limit_memory(700 << 20)?;
    let mut moving = Unmoor::migrate(&hosts.lab, &hosts.a, &hosts.b, &[])?;
    let told = why(&mut moving, 1)?;
    ensure!(told.contains("memory"), "{told}");
    stays_idle(&hosts)
}

/// The VM is where it was, and the relays have nothing to do with it.
fn stays_idle(hosts: &Hosts) -> Result<()> {
    hosts.runs_at(&hosts.a)?;
    hosts.relays_are_idle()?;
    let left = hosts.sockets_left()?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// The same VM, moved by `unmoor send`.
fn moved_by_the_plain_tool() -> Result<Value> {
    let guest = VmOptions {
        memory: "768M".into(),
        agent: true,
        ..VmOptions::default()
    };
    Ok(move_with_agent(&guest, (200, 0))?.summary)
}

fn moved_under_libvirt() -> Result<Value> {
    let hosts = Hosts::with(&with_agent("1gbit"))?;
    let _client = Running::redis(&hosts.lab, 100)?;
    let mut moving = Unmoor::migrate(&hosts.lab, &hosts.a, &hosts.b, &[])?;
    let summary = moving.summary(MIGRATION_LIMIT)?;
    hosts.runs_at(&hosts.b)?;
    Ok(summary)
}

fn median(runs: &[Value], figure: &str) -> Result<f64> {
    let mut all = Vec::new();
    for run in runs {
        all.push(run[figure].as_f64().context(figure.to_owned())?);
    }
    all.sort_by(f64::total_cmp);
    Ok(all[all.len() / 2])
}

#[test]
#[ignore = "several minutes"]
fn it_moves_as_the_plain_tool_moves_it() -> Result<()> {
    let (mut plain, mut managed) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        plain.push(moved_by_the_plain_tool()?);
        managed.push(moved_under_libvirt()?);
    }
    let mut ratios = serde_json::Map::new();
    for figure in ["total_ms", "downtime_ms", "longest_pause_ms", "wire_bytes"] {
        let (plain, managed) = (median(&plain, figure)?, median(&managed, figure)?);
        let ratio = json!({"plain": plain, "managed": managed, "ratio": managed / plain});
        println!("{figure}: {ratio}");
        ratios.insert(figure.into(), ratio);
    }
    // Times are for people: this machine's vary more than that.
    let bytes = ratios["wire_bytes"]["ratio"].as_f64();
    ensure!(bytes < Some(1.1), "{ratios:?}");
    results::record("libvirt_figures", &json!(ratios))
}
