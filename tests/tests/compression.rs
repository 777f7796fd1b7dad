//! Memory that travels compressed: equal to the byte, in fewer bytes where that is possible.

use anyhow::{Context, Result};
use lab::{VmOptions, ram, results};
use serde_json::{Value, json};
use unmoor_tests::{MIGRATION_LIMIT, Pair, SHORT, start_writer, verify_writer};

/// Moves a VM with a writer of that mode, and compares both sides byte for byte.
fn moves(writer: &str, how: &[&str]) -> Result<Value> {
    let options = VmOptions::default();
    let mut waiting = options.as_destination();
    waiting.paused = true;
    let mut pair = Pair::with(&options, &waiting, Some("1gbit"))?;
    start_writer(&mut pair.source, 96, 30, writer)?;
    let mut receiver = pair.receive(&["--once"])?;
    let summary = pair.send(how)?.summary(MIGRATION_LIMIT)?;
    assert_eq!(receiver.exit(SHORT)?, 0, "{:?}", receiver.events());
    let diff = ram::compare(&mut pair.source, &mut pair.destination)?;
    assert!(diff.differing.is_empty(), "{how:?}: {diff:x?}");
    pair.destination.qmp("cont", &json!({}))?;
    verify_writer(&mut pair.destination)?;
    Ok(summary)
}

fn sizes(summary: &Value) -> Result<(u64, u64)> {
    let of = |name: &str| summary["compressed"][name].as_u64();
    let sizes = of("before_bytes").zip(of("after_bytes"));
    sizes.with_context(|| format!("nothing of compression in {summary}"))
}

#[test]
fn every_method_brings_every_byte() -> Result<()> {
    let mut seen = serde_json::Map::new();
    for how in ["auto", "lz4", "zstd:3"] {
        let summary = moves("text", &["--compress", how, "--compress-threads", "2"])?;
        let (before, after) = sizes(&summary)?;
        // LZ4 finds repetitions alone.
        let most = if how == "lz4" {
            before / 4 * 3
        } else {
            before / 2
        };
        assert!(after < most, "{how}: {before} to {after}");
        let wire = summary["wire_bytes"].as_u64().context("no bytes")?;
        assert!(wire < most + (16 << 20), "{how}: {wire} on the wire");
        let method = summary["compressed"]["method"].as_str();
        assert!(how == "auto" || method == Some(how), "{how}: {method:?}");
        seen.insert(how.into(), summary);
    }
    results::record("compression", &Value::Object(seen))
}

#[test]
fn data_that_cannot_be_compressed_is_left_as_it_is() -> Result<()> {
    let summary = moves("full", &["--compress", "zstd:1"])?;
    let (before, after) = sizes(&summary)?;
    // The writer's memory at the least.
    assert!(after > 96 << 20, "{before} to {after}");
    assert!(after <= before, "{before} to {after}");
    Ok(())
}

#[test]
fn nothing_is_compressed_if_it_is_not_to_be() -> Result<()> {
    let summary = moves("text", &["--compress", "none"])?;
    assert!(summary["compressed"].is_null(), "{summary}");
    Ok(())
}
