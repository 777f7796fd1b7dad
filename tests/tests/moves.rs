//! Whole migrations on real QEMU: every byte arrives, and the guest notices nothing.

use anyhow::Result;
use lab::client::{EchoReport, RedisReport, Running};
use lab::relay::Unmoor;
use lab::{Host, QemuVersion, Vm, VmOptions, ram, results};
use serde_json::{Value, json};
use unmoor_tests::{
    MIGRATION_LIMIT, Pair, SHORT, await_writing, nothing_is_lost, relay_memory_limit, start_writer,
    verify_writer,
};

/// Moves a VM whose writer dirties memory all the while, compares both paused VMs byte for byte,
/// and lets the destination go on.
fn moves_to_the_byte(name: &str, source: &VmOptions, destination: QemuVersion) -> Result<()> {
    let mut waiting = source.as_destination();
    waiting.version = destination;
    waiting.paused = true;
    let mut pair = Pair::with(source, &waiting, Some("1gbit"))?;
    start_writer(&mut pair.source, 64, 30, "full")?;
    let mut receiver = pair.receive(&["--once"])?;
    let summary = pair.send(&[])?.summary(MIGRATION_LIMIT)?;
    assert_eq!(receiver.exit(SHORT)?, 0);
    let received = receiver.await_event("received", SHORT)?;
    assert_eq!(summary["digest"], "equal");
    assert_eq!(summary["running_at_destination"], false);
    assert_eq!(summary["digest_pages"], received["pages"]);
    assert_eq!(pair.source.status()?, "postmigrate");

    let diff = ram::compare(&mut pair.source, &mut pair.destination)?;
    assert!(diff.differing.is_empty(), "{diff:x?}");

    let limit = relay_memory_limit(&summary);
    for side in [&summary, &received] {
        let used = side["relay_memory_bytes"].as_u64().unwrap_or(u64::MAX);
        assert!(used <= limit, "{used} bytes of memory, more than {limit}");
    }

    pair.destination.qmp("cont", &json!({}))?;
    let verified = verify_writer(&mut pair.destination)?;
    await_writing(&mut pair.destination)?;
    results::record(
        name,
        &json!({
            "summary": summary,
            "received": received,
            "relay_memory_limit": limit,
            "pages_compared": diff.pages,
            "pages_differing": diff.differing.len(),
            "writer": verified.trim(),
        }),
    )
}

/// QEMU 7.2 loses dirty pages under emulation by itself, but not with such a size.
fn for_qemu_7_2() -> VmOptions {
    VmOptions {
        version: QemuVersion::V7_2,
        machine: "pc-q35-7.2".into(),
        memory: "524296k".into(),
        ..VmOptions::default()
    }
}

#[test]
fn qemu_10_to_10() -> Result<()> {
    moves_to_the_byte("qemu_10_to_10", &VmOptions::default(), QemuVersion::V10_0)
}

#[test]
fn qemu_7_2_to_7_2() -> Result<()> {
    moves_to_the_byte("qemu_7_2_to_7_2", &for_qemu_7_2(), QemuVersion::V7_2)
}

#[test]
fn qemu_7_2_to_10() -> Result<()> {
    moves_to_the_byte("qemu_7_2_to_10", &for_qemu_7_2(), QemuVersion::V10_0)
}

#[test]
#[ignore = "slow: one more pair of versions"]
fn qemu_10_to_7_2() -> Result<()> {
    let options = VmOptions {
        version: QemuVersion::V10_0,
        ..for_qemu_7_2()
    };
    moves_to_the_byte("qemu_10_to_7_2", &options, QemuVersion::V7_2)
}

/// Memory on both sides of the 4 GiB hole.
#[test]
fn memory_above_the_hole() -> Result<()> {
    let options = VmOptions {
        memory: "3584M".into(),
        ..VmOptions::default()
    };
    moves_to_the_byte("memory_above_the_hole", &options, QemuVersion::V10_0)
}

/// An earlier tool has left capabilities on that libvirt uses. They are off while the VM moves, since no
/// answer would come, and on again afterwards. The destination's QEMU acknowledges all the same.
#[test]
fn what_makes_a_qemu_wait_is_off_while_it_moves_and_on_again_afterwards() -> Result<()> {
    let options = VmOptions {
        network: false,
        ..VmOptions::default()
    };
    let mut pair = Pair::new(&options)?;
    let names = ["return-path", "switchover-ack", "pause-before-switchover"];
    let on = |names: &[&str]| {
        let on = names
            .iter()
            .map(|name| json!({"capability": name, "state": true}));
        json!({"capabilities": on.collect::<Vec<_>>()})
    };
    pair.source.qmp("migrate-set-capabilities", &on(&names))?;
    let agrees = on(&names[..2]);
    pair.destination.qmp("migrate-set-capabilities", &agrees)?;
    let mut receiver = pair.receive(&["--once"])?;
    pair.send(&[])?.summary(MIGRATION_LIMIT)?;
    assert_eq!(receiver.exit(SHORT)?, 0);
    assert_eq!(pair.destination.status()?, "running");
    let now = pair.source.qmp("query-migrate-capabilities", &json!({}))?;
    for name in names {
        let on = json!({"capability": name, "state": true});
        assert!(now.as_array().is_some_and(|all| all.contains(&on)), "{now}");
    }
    Ok(())
}

/// A stream without a description ends with its closing alone.
#[test]
fn a_machine_that_suppresses_the_description() -> Result<()> {
    let options = VmOptions {
        machine: "q35,suppress-vmdesc=on".into(),
        ..VmOptions::default()
    };
    moves_to_the_byte("suppressed_description", &options, QemuVersion::V10_0)
}

#[test]
fn a_paused_vm_stays_paused() -> Result<()> {
    let mut pair = Pair::new(&VmOptions::default())?;
    pair.source.qmp("stop", &json!({}))?;
    let summary = pair.migrate(&[])?;
    assert_eq!(summary["running_at_destination"], false);
    assert_eq!(summary["downtime_ms"], Value::Null);
    assert_eq!(pair.destination.status()?, "paused");
    let diff = ram::compare(&mut pair.source, &mut pair.destination)?;
    assert!(diff.differing.is_empty(), "{diff:x?}");
    Ok(())
}

/// There and back again, while a client outside keeps its connections.
#[test]
fn there_and_back_under_load() -> Result<()> {
    let options = VmOptions::default();
    let Pair {
        mut source,
        destination,
        lab,
    } = Pair::new(&options)?;
    start_writer(&mut source, 64, 20, "full")?;
    let redis = Running::redis(&lab, 200)?;
    let echo = Running::echo(&lab, 5000)?;

    let there = {
        let mut receiver = Unmoor::receive(&lab, Host::B, &destination, &["--once"])?;
        let summary = Unmoor::send(&lab, Host::A, &source, &[])?.summary(MIGRATION_LIMIT)?;
        assert_eq!(receiver.exit(SHORT)?, 0);
        summary
    };
    source.kill();
    drop(source);
    let mut source = destination;
    assert_eq!(source.status()?, "running");
    let mut destination = Vm::start(&lab, Host::A, &options.as_destination())?;
    let back = {
        let mut receiver = Unmoor::receive(&lab, Host::A, &destination, &["--once"])?;
        let summary = Unmoor::send(&lab, Host::B, &source, &[])?.summary(MIGRATION_LIMIT)?;
        assert_eq!(receiver.exit(SHORT)?, 0);
        summary
    };
    assert_eq!(source.status()?, "postmigrate");
    assert_eq!(destination.status()?, "running");
    let verified = verify_writer(&mut destination)?;

    let redis: RedisReport = redis.finish()?;
    let echo: EchoReport = echo.finish()?;
    nothing_is_lost(&redis)?;
    // Downtime is measured, and at all like what the outside sees.
    for summary in [&there, &back] {
        let downtime = summary["downtime_ms"].as_f64().unwrap_or(0.0);
        assert!(
            downtime > 0.0 && downtime <= echo.longest_gap_ms,
            "{downtime} {echo:?}"
        );
    }
    results::record(
        "there_and_back_under_load",
        &json!({"there": there, "back": back, "redis": redis, "echo": echo, "writer": verified.trim()}),
    )
}

/// The bandwidth limit holds, and a VM that does not fit it is told so.
#[test]
fn a_bandwidth_limit_holds() -> Result<()> {
    let pair = Pair::new(&VmOptions::default())?;
    let _receiver = pair.receive(&["--once"])?;
    let sender = pair.send(&["--bandwidth", "200Mbit", "--compress", "none"])?;
    let far = |event: &Value| event["wire_bytes"].as_u64() > Some(50_000_000);
    let event = sender.await_matching("progress", far, MIGRATION_LIMIT)?;
    let (bytes, ms) = (event["wire_bytes"].as_f64(), event["t_ms"].as_f64());
    let rate = bytes.unwrap_or(0.0) / ms.unwrap_or(1.0) * 1000.0;
    assert!(rate <= 25_000_000.0 * 1.05, "{rate} bytes a second");
    results::record(
        "bandwidth_limit",
        &json!({"limit": 25_000_000, "rate": rate}),
    )
}

/// A frame of a few bytes may describe thousands of zero pages: a large, young guest must not
/// make the destination half large.
#[test]
fn a_large_guest_of_zeros_costs_little_memory() -> Result<()> {
    let options = VmOptions {
        memory: "8G".into(),
        ..VmOptions::default()
    };
    let pair = Pair::with(&options, &options.as_destination(), None)?;
    let mut receiver = pair.receive(&["--once"])?;
    let summary = pair.send(&["--history", "0MB"])?.summary(MIGRATION_LIMIT)?;
    assert_eq!(receiver.exit(SHORT)?, 0);
    let received = receiver.await_event("received", SHORT)?;
    // The page table, and buffers that do not depend on the guest.
    let table = summary["digest_pages"].as_u64().unwrap_or(0) * migrate::BYTES_PER_PAGE as u64;
    let used = received["relay_memory_bytes"].as_u64().unwrap_or(u64::MAX);
    assert!(
        used < table + (16 << 20),
        "{used} bytes, of which the table {table}"
    );
    results::record(
        "large_guest",
        &json!({"summary": summary, "received": received, "table": table}),
    )
}
