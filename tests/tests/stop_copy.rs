//! Migrations that pause the processes on which nobody outside depends, on real QEMU.

use anyhow::{Result, ensure};
use lab::client::{RedisReport, Running};
use lab::{VmOptions, results};
use serde_json::{Value, json};
use unmoor_tests::{
    MIGRATION_LIMIT, Pair, SHORT, await_writing, connect_agent, start_writer, verify_writer,
};

fn guest() -> VmOptions {
    VmOptions {
        memory: "1G".into(),
        agent: true,
        ..VmOptions::default()
    }
}

/// Paths of the agent's channel at both ends.
fn channels(pair: &Pair) -> (String, String) {
    let path = |vm: &lab::Vm| vm.agent_path().display().to_string();
    (path(&pair.source), path(&pair.destination))
}

fn frozen(summary: &Value) -> Vec<Value> {
    summary["frozen"].as_array().cloned().unwrap_or_default()
}

#[test]
fn a_job_that_outruns_the_link_is_paused_and_moves_once() -> Result<()> {
    let mut pair = Pair::new(&guest())?;
    start_writer(&mut pair.source, 300, 0, "full")?;
    let client = Running::redis(&pair.lab, 100)?;
    drop(connect_agent(&pair.source)?);
    let (here, there) = channels(&pair);
    let mut receiver = pair.receive(&["--once", "--agent", &there])?;
    let mut sender = pair.send(&["--agent", &here])?;
    let summary = sender.summary(MIGRATION_LIMIT);
    for event in sender.events() {
        println!("{event}");
    }
    let summary = summary?;
    assert_eq!(receiver.exit(SHORT)?, 0);
    let paused = frozen(&summary);
    ensure!(paused.len() == 1, "{summary}");
    verify_writer(&mut pair.destination)?;
    await_writing(&mut pair.destination)?;
    let redis: RedisReport = client.finish()?;
    results::record("stop_copy", &json!({"summary": summary, "redis": redis}))
}
