//! Whole migrations on real QEMU: every byte arrives, and the guest notices nothing.

use anyhow::Result;
use lab::client::{EchoReport, RedisReport, Running};
use lab::{QemuVersion, VmOptions, ram, results};
use unmoor_tests::{Pair, SHORT, await_writing, start_writer, verify_writer};

/// Moves a VM whose writer dirties memory all the while, compares both paused VMs byte for byte,
/// and lets the destination go on.
fn moves_to_the_byte(name: &str, source: &VmOptions, destination: QemuVersion) -> Result<()> {
    let mut waiting = source.as_destination();
    waiting.version = destination;
    waiting.paused = true;
    let mut pair = Pair::with(source, &waiting, Some("1gbit"))?;
    start_writer(&mut pair.source, 64, 30, "full")?;
    let summary = pair.migrate(&[])?;
    assert_eq!(summary["digest"], "equal");
    assert_eq!(summary["running_at_destination"], false);
    assert_eq!(pair.source.status()?, "postmigrate");
    let diff = ram::compare(&mut pair.source, &mut pair.destination)?;
    assert!(diff.differing.is_empty(), "{diff:x?}");
    pair.destination.qmp("cont", &serde_json::json!({}))?;
    let verified = verify_writer(&mut pair.destination)?;
    await_writing(&mut pair.destination)?;
    results::record(
        name,
        &serde_json::json!({"summary": summary, "pages_compared": diff.pages, "writer": verified.trim()}),
    )
}

#[test]
fn qemu_10_to_10() -> Result<()> {
    moves_to_the_byte("qemu_10_to_10", &VmOptions::default(), QemuVersion::V10)
}
