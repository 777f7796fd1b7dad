//! Migrations that pause the processes on which nobody outside depends, on real QEMU.

use anyhow::{Context, Result, ensure};
use lab::client::Running;
use lab::{Vm, VmOptions, results};
use serde_json::{Value, json};
use unmoor_tests::backend::Backend;
use unmoor_tests::on_the_way::left_behind;
use unmoor_tests::{
    MIGRATION_LIMIT, Moved, Pair, SHORT, await_writing, connect_agent, move_with_agent,
    start_writer, verify_writer,
};

fn guest() -> VmOptions {
    VmOptions {
        memory: "1G".into(),
        agent: true,
        ..VmOptions::default()
    }
}

fn channel(vm: &Vm) -> String {
    vm.agent_path().display().to_string()
}

fn frozen(summary: &Value) -> Vec<Value> {
    summary["frozen"].as_array().cloned().unwrap_or_default()
}

#[test]
fn a_job_that_outruns_the_link_is_paused_and_moves_once() -> Result<()> {
    let Moved {
        summary,
        received,
        redis,
        ..
    } = move_with_agent(&guest(), (300, 0))?;
    assert_eq!(received["thawed"], 1, "{received}");
    let paused = frozen(&summary);
    ensure!(paused.len() == 1, "{summary}");
    let pause = paused[0]["pause_ms"].as_f64().context("no pause")?;
    ensure!(
        pause < summary["total_ms"].as_f64().unwrap_or(0.0),
        "{summary}"
    );
    // Held once, sent once.
    let sent = summary["wire_bytes"].as_u64().unwrap_or(u64::MAX);
    let memory = summary["guest_nonfree_bytes"].as_u64().unwrap_or(0);
    ensure!(sent < memory + memory / 4, "{summary}");
    results::record("stop_copy", &json!({"summary": summary, "redis": redis}))
}

/// Moves a VM, a job of which is paused, to a QEMU that does not start it, and compares.
fn memory_is_equal(backend: Backend, more: &[&str]) -> Result<Value> {
    let source = backend.give_to(guest());
    let mut waiting = source.as_destination();
    waiting.paused = true;
    let mut pair = Pair::with(&source, &waiting, Some("1gbit"))?;
    start_writer(&mut pair.source, 200, 0, "full")?;
    let client = Running::redis(&pair.lab, 100)?;
    drop(connect_agent(&pair.source)?);
    let list = pair.lab.run_dir().join("left-behind");
    let mut receiver = pair.receive(&["--once"])?;
    let agent = channel(&pair.source);
    let summary = pair
        .send(
            &[
                &[
                    "--agent",
                    &agent,
                    "--left-behind",
                    &list.display().to_string(),
                ],
                more,
            ]
            .concat(),
        )?
        .summary(MIGRATION_LIMIT)?;
    assert_eq!(receiver.exit(SHORT)?, 0);
    drop(client);
    assert_eq!(frozen(&summary).len(), 1, "{summary}");
    assert_eq!(pair.source.status()?, "postmigrate");

    let left = left_behind(&list)?;
    let diff = unmoor_tests::memory_is_equal(&mut pair.source, &mut pair.destination, &left)?;

    // Nobody thaws it here but its own lease.
    pair.destination.qmp("cont", &json!({}))?;
    await_writing(&mut pair.destination)?;
    verify_writer(&mut pair.destination)?;
    Ok(json!({
        "summary": summary,
        "pages_compared": diff.pages,
        "pages_differing_and_free": diff.differing.len(),
    }))
}

#[test]
fn memory_is_equal_to_the_byte_but_for_free_pages() -> Result<()> {
    let summary = memory_is_equal(Backend::Private, &[])?;
    results::record("stop_copy_memory", &summary)
}

/// What is held is read from the file that QEMU shares, or copied: it is the same.
#[test]
fn memory_is_equal_wherever_it_is_held() -> Result<()> {
    let shared = memory_is_equal(Backend::Shared, &[])?;
    let copied = memory_is_equal(Backend::Private, &["--copy-held"])?;
    let relay = |run: &Value| run["summary"]["relay_memory_bytes"].as_u64();
    let (least, most) = (relay(&shared), relay(&copied));
    // All that is held at once was in the relay, or was not.
    let held = copied["summary"]["held_peak_pages"].as_u64().unwrap_or(0) * 4096;
    ensure!(
        least < Some(held) && most > Some(held),
        "{least:?}, {most:?}, {held}"
    );
    results::record(
        "stop_copy_held",
        &json!({"shared": shared, "copied": copied}),
    )
}

#[test]
#[ignore = "several minutes"]
fn memory_is_equal_in_twenty_runs_in_a_row() -> Result<()> {
    let mut runs = Vec::new();
    for run in 1..=20 {
        let moved = memory_is_equal(Backend::Private, &[]);
        runs.push(moved.with_context(|| format!("run {run}"))?);
    }
    results::record("stop_copy_memory_twenty_times", &Value::Array(runs))
}
