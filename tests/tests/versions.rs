//! On the kernels, QEMUs and libvirts of today: each axis alone, and all of the newest together.
//!
//! The newest are whatever the archive had when the lab was set up. One that could not be had is told and
//! recorded as such, and never counts as tried. `make test-versions` runs all of it and writes the table
//! of `docs/versions.md`; `make test` has a short selection.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::libvirt::DOMAIN;
use lab::relay::Unmoor;
use lab::{Kernel, LibvirtOptions, LibvirtVersion, Missing, QemuVersion, VmOptions, ram, results};
use serde_json::{Value, json};
use unmoor_tests::hosts::{Hosts, HostsOptions, succeeds};
use unmoor_tests::{
    MIGRATION_LIMIT, Moved, Pair, SHORT, move_with_agent, start_writer, verify_writer,
};

/// The versions of the table in the documentation.
const TRIED: &str = include_str!("../../docs/versions.md");

/// Runs an attempt with versions that the lab has; what it yields is recorded under `name`. Where one was
/// not to be had, that is recorded instead.
fn with<const N: usize>(
    name: &str,
    versions: [Result<String, Missing>; N],
    attempt: impl FnOnce() -> Result<Value>,
) -> Result<()> {
    let mut exact = Vec::new();
    for version in versions {
        match version {
            Ok(version) => exact.push(version),
            Err(missing @ Missing::NotHad { .. }) => {
                println!("{name} was NOT TRIED: {missing}");
                return results::record(name, &json!({"not_had": missing.to_string()}));
            }
            Err(missing) => return Err(missing.into()),
        }
    }
    let newer: Vec<&String> = exact.iter().filter(|version| is_newer(version)).collect();
    let outcome = attempt().with_context(|| match newer.is_empty() {
        true => format!("{name} with {}", exact.join(", ")),
        false => format!(
            "{name} with {}: NEWER than docs/versions.md has: {newer:?}",
            exact.join(", ")
        ),
    })?;
    println!("{name} with {}: {outcome}", exact.join(", "));
    results::record(name, &json!({"versions": exact, "outcome": outcome}))
}

/// Whether the table has no such version.
fn is_newer(package: &str) -> bool {
    !TRIED.contains(results::upstream(package))
}

/// A VM whose job outruns the link is moved with the job paused. On a kernel without probes the job is
/// moved live, and that is told: so it writes little there.
fn kernel_moves(kernel: Kernel) -> Result<Value> {
    let guest = VmOptions {
        memory: "1G".into(),
        agent: true,
        kernel,
        ..VmOptions::default()
    };
    let has_probes = kernel != Kernel::V5_10;
    let writer = if has_probes { (300, 0) } else { (64, 30) };
    let Moved {
        sender, summary, ..
    } = move_with_agent(&guest, writer)?;
    let paused = summary["frozen"].as_array().map_or(0, Vec::len);
    ensure!(paused == usize::from(has_probes), "{summary}");
    if !has_probes {
        let told = sender.await_event("lost_probes", SHORT)?.to_string();
        ensure!(told.contains("Linux 5.12"), "{told}");
    }
    Ok(figures(&summary))
}

fn figures(summary: &Value) -> Value {
    let names = ["total_ms", "downtime_ms", "longest_pause_ms", "wire_bytes"];
    let figures = names.map(|name| (name.to_owned(), summary[name].clone()));
    Value::Object(figures.into_iter().collect())
}

/// A VM moves from one QEMU to another, every byte of it.
fn qemu_moves(from: QemuVersion, to: QemuVersion) -> Result<Value> {
    let old = [from, to].contains(&QemuVersion::V7_2);
    let newest = from == QemuVersion::Newest && to == QemuVersion::Newest;
    let source = VmOptions {
        version: from,
        machine: match (old, newest) {
            (true, _) => "pc-q35-7.2".into(),
            (_, true) => "q35".into(),
            _ => "pc-q35-10.0".into(),
        },
        // QEMU 7.2 loses dirty pages under emulation by itself, but not with such a size.
        memory: if old { "524296k" } else { "512M" }.into(),
        ..VmOptions::default()
    };
    let mut waiting = source.as_destination();
    waiting.version = to;
    waiting.paused = true;
    let mut pair = Pair::with(&source, &waiting, Some("1gbit"))?;
    start_writer(&mut pair.source, 64, 30, "full")?;
    let mut receiver = pair.receive(&["--once"])?;
    let audit: &[&str] = if old { &["--audit"] } else { &[] };
    let summary = pair.send(audit)?.summary(MIGRATION_LIMIT)?;
    ensure!(receiver.exit(SHORT)? == 0);
    ensure!(summary["digest"] == "equal", "{summary}");
    let diff = ram::compare(&mut pair.source, &mut pair.destination)?;
    ensure!(diff.differing.is_empty(), "{diff:x?}");
    pair.destination.qmp("cont", &json!({}))?;
    verify_writer(&mut pair.destination)?;
    Ok(figures(&summary))
}

/// A VM moves under libvirt: with virsh through unmoord, back with `unmoor migrate` and its job paused,
/// and, to compare, as libvirt moves it alone.
fn libvirt_moves(options: &HostsOptions, compare: bool) -> Result<Value> {
    let hosts = Hosts::with(options)?;
    let timed = |moving| -> Result<f64> {
        let begin = Instant::now();
        succeeds(moving)?;
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    };
    let downtime = |at: &lab::libvirt::Libvirt| -> Result<String> {
        let job = at.virsh(&["domjobinfo", DOMAIN, "--completed"])?;
        let line = job.lines().find(|line| line.starts_with("Total downtime:"));
        Ok(line.map_or("not told".to_owned(), |line| {
            line.split_ascii_whitespace()
                .skip(2)
                .collect::<Vec<_>>()
                .join(" ")
        }))
    };
    let virsh_ms = timed(hosts.a.migrate(&hosts.lab, &hosts.b, 0)?)?;
    hosts.runs_at(&hosts.b)?;
    let virsh_downtime = downtime(&hosts.b)?;
    let mut back = Unmoor::migrate(&hosts.lab, &hosts.b, &hosts.a, &[])?;
    let back = back.summary(MIGRATION_LIMIT)?;
    hosts.runs_at(&hosts.a)?;
    let frozen = back["frozen"].as_array().map_or(0, Vec::len);
    ensure!(frozen == usize::from(options.agent), "{back}");
    let mut outcome = json!({
        "virsh_through_unmoord": {"ms": virsh_ms, "downtime": virsh_downtime},
        "unmoor_migrate": figures(&back),
    });
    if compare {
        let alone_ms = timed(hosts.a.migrate_alone(&hosts.b)?)?;
        hosts.runs_at(&hosts.b)?;
        outcome["virsh_alone"] = json!({"ms": alone_ms, "downtime": downtime(&hosts.b)?});
    }
    Ok(outcome)
}

/// A VM with an agent, whose job writes what the link carries in a few passes.
fn hosts(version: LibvirtVersion, qemu: QemuVersion, kernel: Kernel) -> HostsOptions {
    let libvirt = LibvirtOptions {
        version,
        qemu,
        ..LibvirtOptions::default()
    };
    HostsOptions {
        agent: true,
        memory_mib: 768,
        writer: "100 100 full",
        libvirt: [libvirt; 2],
        kernel,
        ..HostsOptions::default()
    }
}

// ---- The short selection. What the newest kernel's probes see is in probes.rs.

#[test]
fn a_vm_moves_to_the_newest_qemu_and_back() -> Result<()> {
    let (old, new) = (QemuVersion::V10_0, QemuVersion::Newest);
    for (name, from, to) in [("qemu_newest_to", old, new), ("qemu_newest_from", new, old)] {
        with(name, [from.exact(), to.exact()], || qemu_moves(from, to))?;
    }
    Ok(())
}

#[test]
fn a_vm_moves_under_the_newest_libvirt() -> Result<()> {
    let version = LibvirtVersion::Newest;
    let options = hosts(version, QemuVersion::V10_0, Kernel::V6_1);
    with("libvirt_newest", [version.exact()], || {
        libvirt_moves(&options, false)
    })
}

// ---- The matrix.

#[test]
#[ignore = "slow: run by make test-versions"]
fn a_job_is_paused_on_every_kernel() -> Result<()> {
    for kernel in Kernel::ALL {
        let name = format!("versions_kernel_{}", kernel.label());
        with(&name, [kernel.exact()], || kernel_moves(kernel))?;
    }
    Ok(())
}

#[test]
#[ignore = "slow: run by make test-versions"]
fn a_vm_moves_between_every_two_qemus() -> Result<()> {
    for from in QemuVersion::ALL {
        for to in QemuVersion::ALL {
            let name = format!("versions_qemu_{}_to_{}", from.label(), to.label());
            with(&name, [from.exact(), to.exact()], || qemu_moves(from, to))?;
        }
    }
    Ok(())
}

#[test]
#[ignore = "slow: run by make test-versions"]
fn a_vm_moves_under_every_libvirt() -> Result<()> {
    for version in LibvirtVersion::ALL {
        let name = format!("versions_libvirt_{}", version.label());
        let options = hosts(version, QemuVersion::V10_0, Kernel::V6_1);
        with(&name, [version.exact()], || libvirt_moves(&options, true))?;
    }
    Ok(())
}

#[test]
#[ignore = "slow: run by make test-versions"]
fn all_of_the_newest_work_together() -> Result<()> {
    let libvirt = LibvirtVersion::Newest;
    let (qemu, kernel) = (QemuVersion::Newest, Kernel::NewestGeneric);
    let options = hosts(libvirt, qemu, kernel);
    let versions = [libvirt.exact(), qemu.exact(), kernel.exact()];
    with("versions_all_newest", versions, || {
        libvirt_moves(&options, true)
    })
}
