//! Memory that follows after the switchover, on real QEMU: nobody is paused, and nothing is lost.

use anyhow::{Context, Result, ensure};
use lab::client::{RedisReport, Running};
use lab::{VmOptions, results};
use serde_json::{Value, json};
use unmoor_tests::{
    MIGRATION_LIMIT, Pair, SHORT, await_writing, connect_agent, start_writer, verify_writer,
};

fn guest(agent: bool) -> VmOptions {
    VmOptions {
        memory: "1G".into(),
        agent,
        ..VmOptions::default()
    }
}

fn followed(summary: &Value) -> Result<u64> {
    let followed = &summary["followed"];
    ensure!(followed["equal"] == true, "{summary}");
    let sent = summary["pages_followed"].as_u64().context("no count")?;
    Ok(sent + summary["pages_asked"].as_u64().context("no count")?)
}

#[test]
fn a_job_that_outruns_the_link_runs_on_and_its_memory_follows() -> Result<()> {
    let mut pair = Pair::new(&guest(true))?;
    start_writer(&mut pair.source, 300, 0, "full")?;
    let client = Running::redis(&pair.lab, 100)?;
    drop(connect_agent(&pair.source)?);
    let agents = [&pair.source, &pair.destination].map(|vm| vm.agent_path().display().to_string());
    let mut receiver = pair.receive(&["--once", "--agent", &agents[1]])?;
    let mut sender = pair.send(&["--agent", &agents[0], "--protocol", "post-copy"])?;
    let summary = sender.summary(MIGRATION_LIMIT)?;
    assert_eq!(receiver.exit(SHORT)?, 0, "{:?}", receiver.events());
    ensure!(
        summary["frozen"].as_array().is_some_and(Vec::is_empty),
        "{summary}"
    );
    // Most of the job's memory, and nothing twice.
    ensure!(followed(&summary)? > 50_000, "{summary}");
    let sent = summary["wire_bytes"].as_u64().unwrap_or(u64::MAX);
    let memory = summary["guest_nonfree_bytes"].as_u64().unwrap_or(0);
    ensure!(sent < memory + memory / 4, "{summary}");
    await_writing(&mut pair.destination)?;
    verify_writer(&mut pair.destination)?;
    let redis: RedisReport = client.finish()?;
    assert_eq!(
        (redis.lost, redis.wrong, redis.broken_connections),
        (0, 0, 0),
        "{redis:?}"
    );
    results::record("post_copy", &json!({"summary": summary, "redis": redis}))
}
