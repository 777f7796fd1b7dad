//! Memory that follows after the switchover, on real QEMU: nobody is paused, and nothing is lost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::client::{RedisReport, Running};
use lab::relay::{Unmoor, command};
use lab::{Host, VmOptions, results};
use rustix::process::Signal;
use serde_json::{Value, json};
use unmoor_tests::on_the_way::left_behind;
use unmoor_tests::{
    MIGRATION_LIMIT, Pair, SHORT, await_writing, connect_agent, nothing_is_lost, start_writer,
    verify_writer,
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

fn nobody_was_frozen(summary: &Value) -> Result<()> {
    let frozen = summary["frozen"].as_array();
    ensure!(frozen.is_some_and(Vec::is_empty), "{summary}");
    Ok(())
}

#[test]
fn a_job_that_outruns_the_link_runs_on_and_its_memory_follows() -> Result<()> {
    results::record("post_copy", &a_job_runs_on()?)
}

/// None of many is lost.
#[test]
#[ignore = "takes five minutes: make test-slow"]
fn twenty_runs_in_a_row_lose_nothing() -> Result<()> {
    let runs = (0..20).map(|_| a_job_runs_on());
    let runs: Vec<Value> = runs.collect::<Result<_>>()?;
    results::record("post_copy_twenty_runs", &json!(runs))
}

fn a_job_runs_on() -> Result<Value> {
    let mut pair = Pair::new(&guest(true))?;
    start_writer(&mut pair.source, 300, 0, "full")?;
    let client = Running::redis(&pair.lab, 100)?;
    drop(connect_agent(&pair.source)?);
    let agents = [&pair.source, &pair.destination].map(|vm| vm.agent_path().display().to_string());
    let mut receiver = pair.receive(&["--once", "--agent", &agents[1]])?;
    let mut sender = pair.send(&["--agent", &agents[0], "--protocol", "post-copy"])?;
    let summary = sender.summary(MIGRATION_LIMIT)?;
    assert_eq!(receiver.exit(SHORT)?, 0, "{:?}", receiver.events());
    nobody_was_frozen(&summary)?;
    // Most of the job's memory, and nothing twice.
    ensure!(followed(&summary)? > 50_000, "{summary}");
    let sent = summary["wire_bytes"].as_u64().unwrap_or(u64::MAX);
    let memory = summary["guest_nonfree_bytes"].as_u64().unwrap_or(0);
    ensure!(sent < memory + memory / 4, "{summary}");
    await_writing(&mut pair.destination)?;
    verify_writer(&mut pair.destination)?;
    let redis: RedisReport = client.finish()?;
    nothing_is_lost(&redis)?;
    Ok(json!({"summary": summary, "redis": redis}))
}

/// A guest of which 200 MiB follow over a slow link, on its way.
struct Following {
    pair: Pair,
    sender: Unmoor,
    receiver: Unmoor,
    /// Bytes that follow.
    follows: u64,
}

impl Following {
    fn set_out(more: &[&str]) -> Result<Self> {
        let options = guest(true);
        let mut pair = Pair::with(&options, &options.as_destination(), Some("300mbit"))?;
        start_writer(&mut pair.source, 200, 0, "full")?;
        drop(connect_agent(&pair.source)?);
        let limits = ["--peer-timeout", "3s", "--reconnect", "2s"];
        let receiver = pair.receive(&[&["--once"], &limits[..]].concat())?;
        let agent = pair.source.agent_path().display().to_string();
        let ours = ["--agent", &agent, "--protocol", "post-copy"];
        let sender = pair.send(&[&ours[..], &limits, more].concat())?;
        let runs = sender.await_event("runs", MIGRATION_LIMIT)?;
        let follows = runs["follows_bytes"].as_u64().context("no bytes")?;
        ensure!(follows > 150_000_000, "{runs}");
        Ok(Following {
            pair,
            sender,
            receiver,
            follows,
        })
    }

    /// Waits until so many bytes more have come than had when the VM began to run.
    fn await_some(&self, bytes: u64) -> Result<()> {
        let of = |event: &Value| event["wire_bytes"].as_u64().unwrap_or(0);
        let phase = "sending the memory that follows";
        let begun = |event: &Value| event["phase"] == phase;
        let first = of(&self.sender.await_matching("progress", begun, SHORT)?);
        let more = |event: &Value| of(event) > first + bytes;
        self.sender.await_matching("progress", more, SHORT)?;
        Ok(())
    }
}

/// What goes wrong while memory follows.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    /// The link is down for so long.
    LinkDown(Duration),
    SourceRelayDies,
    DestinationRelayDies,
}

/// Has it go wrong when so many percent of what follows have gone; the VM is not lost.
fn survives(trouble: Trouble, percent: u64) -> Result<Value> {
    let mut following = Following::set_out(&[])?;
    following.await_some(following.follows * percent / 100)?;
    let pair = &following.pair;
    match trouble {
        Trouble::LinkDown(long) => {
            pair.lab.set_link(false)?;
            std::thread::sleep(long);
            pair.lab.set_link(true)?;
        }
        Trouble::SourceRelayDies => following.sender.signal(Signal::KILL)?,
        Trouble::DestinationRelayDies => {
            following.receiver.signal(Signal::KILL)?;
            let taken_over = |event: &Value| {
                let text = event["text"].as_str().unwrap_or("");
                text.starts_with("took over session")
            };
            following
                .receiver
                .await_matching("note", taken_over, SHORT)?;
        }
    }
    if !matches!(trouble, Trouble::SourceRelayDies) {
        followed(&following.sender.summary(MIGRATION_LIMIT)?)?;
    }
    let received = following
        .receiver
        .await_event("received", MIGRATION_LIMIT)?;
    ensure!(received["followed"]["equal"] == true, "{received}");
    await_writing(&mut following.pair.destination)?;
    verify_writer(&mut following.pair.destination)?;
    assert_eq!(following.pair.source.status()?, "postmigrate");
    Ok(json!({"trouble": format!("{trouble:?}"), "percent": percent, "received": received}))
}

/// For longer than a connection may be away before the commit.
#[test]
fn a_link_that_is_down_while_memory_follows_loses_nothing() -> Result<()> {
    let seen = survives(Trouble::LinkDown(Duration::from_secs(7)), 30)?;
    results::record("post_copy_link_down", &seen)
}

/// The guardian reads what is missing from the stopped VM.
#[test]
fn a_source_relay_that_is_killed_while_memory_follows_is_replaced() -> Result<()> {
    let seen = survives(Trouble::SourceRelayDies, 30)?;
    results::record("post_copy_source_relay", &seen)
}

/// Its guardian starts another, which asks QEMU what it has.
#[test]
fn a_destination_relay_that_is_killed_while_memory_follows_is_replaced() -> Result<()> {
    let seen = survives(Trouble::DestinationRelayDies, 30)?;
    results::record("post_copy_destination_relay", &seen)
}

#[test]
#[ignore = "takes five minutes: make test-slow"]
fn whatever_dies_in_any_third_nothing_is_lost() -> Result<()> {
    let link = Trouble::LinkDown(Duration::from_secs(20));
    let mut seen = Vec::new();
    for trouble in [
        link,
        Trouble::SourceRelayDies,
        Trouble::DestinationRelayDies,
    ] {
        for percent in [5, 50, 85] {
            let cell = survives(trouble, percent);
            seen.push(cell.with_context(|| format!("{trouble:?} at {percent} %"))?);
        }
    }
    results::record("post_copy_matrix", &json!(seen))
}

/// Instead of being paused for too long.
#[test]
fn a_job_that_would_be_paused_for_too_long_follows() -> Result<()> {
    let mut pair = Pair::new(&guest(true))?;
    start_writer(&mut pair.source, 300, 0, "full")?;
    drop(connect_agent(&pair.source)?);
    let agent = pair.source.agent_path().display().to_string();
    let mut receiver = pair.receive(&["--once"])?;
    let mut sender = pair.send(&[
        "--agent",
        &agent,
        "--protocol",
        "stop-copy",
        "--max-pause",
        "2s",
        "--on-stall",
        "post-copy",
    ])?;
    let summary = sender.summary(MIGRATION_LIMIT)?;
    assert_eq!(receiver.exit(SHORT)?, 0, "{:?}", receiver.events());
    nobody_was_frozen(&summary)?;
    ensure!(followed(&summary)? > 50_000, "{summary}");
    await_writing(&mut pair.destination)?;
    verify_writer(&mut pair.destination)?;
    results::record("post_copy_on_stall", &json!({"summary": summary}))
}

/// Where only the relay has what follows, that is said before, and after.
#[test]
fn what_only_the_relay_has_is_lost_with_it_and_that_is_said() -> Result<()> {
    let mut following = Following::set_out(&["--copy-held"])?;
    let warned = |event: &Value| {
        let text = event["text"].as_str().unwrap_or("");
        text.contains("if this process dies while memory follows")
    };
    following.sender.await_matching("note", warned, SHORT)?;
    following.await_some(10_000_000)?;
    following.sender.signal(Signal::KILL)?;
    let deadline = Instant::now() + SHORT;
    while !following.sender.stderr().contains("is lost, and with it") {
        ensure!(Instant::now() < deadline, "{}", following.sender.stderr());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(following.pair.source.status()?, "postmigrate");
    Ok(())
}

/// Neither the destination nor the relay is there any more: the guardian tries until somebody decides.
#[test]
fn an_operator_takes_the_vm_back_from_a_guardian() -> Result<()> {
    let mut following = Following::set_out(&[])?;
    following.await_some(10_000_000)?;
    let connected = following.sender.await_event("connected", SHORT)?;
    let session = connected["session"].as_str().context("no session")?;
    following.pair.destination.kill();
    following.sender.signal(Signal::KILL)?;
    following.receiver.exit(SHORT)?;
    let resolve = |more: &[&str]| -> Result<String> {
        let output = command(&following.pair.lab, Host::A)
            .args([&["resolve", session], more].concat())
            .output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let deadline = Instant::now() + SHORT;
    while !following.sender.stderr().contains("or `unmoor resolve") {
        ensure!(Instant::now() < deadline, "{}", following.sender.stderr());
        std::thread::sleep(Duration::from_millis(50));
    }
    let asked = resolve(&[])?;
    ensure!(asked.contains("--run-here"), "{asked}");
    let taken = resolve(&["--run-here"])?;
    let wrote = following.sender.stderr();
    ensure!(wrote.contains("has decided"), "{taken} {wrote}");
    // As it was at the switchover, and nothing of its memory is lost.
    following.pair.source.wait_status("running", SHORT)?;
    await_writing(&mut following.pair.source)?;
    verify_writer(&mut following.pair.source)?;
    let unknown = resolve(&[])?;
    ensure!(unknown.contains("nothing is known here"), "{unknown}");
    Ok(())
}

/// Moves a VM to a QEMU that does not start it, and compares.
fn memory_is_equal(agent: bool, more: &[&str]) -> Result<Value> {
    let options = guest(agent);
    let mut waiting = options.as_destination();
    waiting.paused = true;
    let mut pair = Pair::with(&options, &waiting, Some("1gbit"))?;
    start_writer(&mut pair.source, 200, 0, "full")?;
    let list = pair.lab.run_dir().join("left-behind");
    let mut receiver = pair.receive(&["--once"])?;
    let (channel, left) = (
        pair.source.agent_path().display().to_string(),
        list.display().to_string(),
    );
    let mut words = vec!["--protocol", "post-copy"];
    if agent {
        drop(connect_agent(&pair.source)?);
        words.extend(["--agent", &channel, "--left-behind", &left]);
    }
    words.extend(more);
    let summary = pair.send(&words)?.summary(MIGRATION_LIMIT)?;
    assert_eq!(receiver.exit(SHORT)?, 0, "{:?}", receiver.events());
    ensure!(followed(&summary)? > 10_000, "{summary}");
    ensure!(summary["running_at_destination"] == false, "{summary}");
    let left = match agent {
        true => left_behind(&list)?,
        false => Vec::new(),
    };
    unmoor_tests::memory_is_equal(&mut pair.source, &mut pair.destination, &left)?;
    pair.destination.qmp("cont", &json!({}))?;
    await_writing(&mut pair.destination)?;
    verify_writer(&mut pair.destination)?;
    Ok(summary)
}

#[test]
fn memory_that_has_followed_is_equal_to_the_byte() -> Result<()> {
    let read = memory_is_equal(true, &[])?;
    let copied = memory_is_equal(true, &["--copy-held"])?;
    results::record("post_copy_memory", &json!({"read": read, "copied": copied}))
}

/// Nobody says whose memory it is: whatever has not been sent once by the switchover follows.
#[test]
fn a_vm_without_an_agent_runs_before_its_memory_is_there() -> Result<()> {
    let summary = memory_is_equal(false, &["--audit"])?;
    ensure!(summary["audit"]["differing"] == 0, "{summary}");
    results::record("post_copy_whole", &json!({"summary": summary}))
}
