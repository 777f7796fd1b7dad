//! Connections that are lost and come back: the migration goes on where it was.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::relay::PORT;
use lab::{HOST_B, Host, results};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use unmoor_tests::on_the_way::{OnTheWay, Outset};
use unmoor_tests::{MIGRATION_LIMIT, SHORT, await_writing, verify_writer};
use wire::{Message, Preamble, put_control};

#[test]
fn killed_connections_come_back() -> Result<()> {
    let way = Outset::new("20s").set_out()?;
    way.await_bytes(8_000_000)?;
    way.kill_connections()?;
    way.await_resumed(1)?;
    let later = |event: &Value| event["pass"].as_u64() >= Some(2);
    way.sender.await_matching("pass", later, MIGRATION_LIMIT)?;
    way.kill_connections()?;
    way.await_resumed(2)?;
    way.sender.await_event("ready", MIGRATION_LIMIT)?;
    way.kill_connections()?;
    let resumed = way.await_resumed(3)?;
    way.open_the_gate()?;
    let summary = way.arrive()?;
    results::record(
        "killed_connections",
        &json!({"resumed": resumed, "summary": summary}),
    )
}

/// A session over several connections: each of them is killed, then all.
#[test]
fn connections_of_several_are_killed_one_by_one() -> Result<()> {
    let way = Outset::new("20s").over("3").set_out()?;
    way.await_bytes(4_000_000)?;
    for lost in 0..3 {
        let ports = way.ports()?;
        ensure!(ports.len() == 3, "{ports:?}");
        way.kill(&format!("and sport = :{}", ports[lost]))?;
        way.await_resumed(lost + 1)?;
    }
    way.sender.await_event("ready", MIGRATION_LIMIT)?;
    way.kill_connections()?;
    let resumed = way.await_resumed(4)?;
    ensure!(way.ports()?.len() == 3, "not as many as before");
    let path = resumed[3]["path"].as_str().unwrap_or_default();
    assert!(path.ends_with("over 3 connections"), "{path}");
    way.open_the_gate()?;
    let summary = way.arrive()?;
    results::record(
        "connections_killed_one_by_one",
        &json!({"resumed": resumed, "summary": summary}),
    )
}

/// What a cut falls into.
#[derive(Debug, Clone, Copy)]
enum Moment {
    FirstPass,
    LaterPass,
    /// The job is paused, its memory travels.
    Frozen,
    /// The VM stands, the destination has everything.
    Ready,
    /// The same, and the source wants to commit.
    Commit,
}

impl Moment {
    fn await_it(self, way: &OnTheWay) -> Result<()> {
        match self {
            Moment::FirstPass => way.await_bytes(8_000_000)?,
            Moment::LaterPass => {
                let later = |event: &Value| event["pass"].as_u64() >= Some(2);
                way.sender.await_matching("pass", later, MIGRATION_LIMIT)?;
            }
            Moment::Frozen => {
                way.sender.await_event("frozen", MIGRATION_LIMIT)?;
            }
            Moment::Ready | Moment::Commit => {
                way.sender.await_event("ready", MIGRATION_LIMIT)?;
            }
        }
        Ok(())
    }
}

/// A note of one of the halves with these words.
fn noted(words: &str) -> impl Fn(&Value) -> bool {
    move |event| {
        event["text"]
            .as_str()
            .is_some_and(|text| text.contains(words))
    }
}

/// The link is down until both sides have noticed by the other's silence.
fn down_until_noticed(moment: Moment) -> Result<()> {
    let way = Outset::new("20s").set_out()?;
    moment.await_it(&way)?;
    way.pair.lab.set_link(false)?;
    for (half, words) in [
        (&way.sender, "trying to connect again"),
        (&way.receiver, "waiting for it to come back"),
    ] {
        half.await_matching("note", noted(words), SHORT)?;
    }
    way.pair.lab.set_link(true)?;
    let resumed = way.await_resumed(1)?;
    way.open_the_gate()?;
    let summary = way.arrive()?;
    results::record(
        &format!("link_down_{moment:?}"),
        &json!({"resumed": resumed, "summary": summary}),
    )
}

#[test]
fn the_link_is_down_while_memory_travels() -> Result<()> {
    down_until_noticed(Moment::FirstPass)
}

/// The VM stands: a commit is not sent into the void.
#[test]
fn the_link_is_down_before_the_commit() -> Result<()> {
    down_until_noticed(Moment::Ready)
}

/// The link is down for so long, whether the halves notice or not.
fn down_for(moment: Moment, time: Duration, connections: &str) -> Result<Value> {
    let outset = Outset::new("30s").over(connections);
    let way = match moment {
        Moment::Frozen => outset.with_agent().set_out()?,
        _ => outset.set_out()?,
    };
    moment.await_it(&way)?;
    way.pair.lab.set_link(false)?;
    if matches!(moment, Moment::Commit) {
        way.open_the_gate()?;
    }
    // The time is what is tested: nothing happens that could be awaited.
    std::thread::sleep(time);
    way.pair.lab.set_link(true)?;
    if !matches!(moment, Moment::Commit) {
        way.open_the_gate()?;
    }
    way.arrive()
}

/// In this phase, for each time, over one connection and over several.
fn down_for_any_time(moment: Moment) -> Result<()> {
    let mut runs = Vec::new();
    for seconds in [1, 5, 20] {
        for connections in ["1", "3"] {
            let time = Duration::from_secs(seconds);
            let what = format!("{seconds} s, {connections} connections");
            let summary = down_for(moment, time, connections).context(what.clone())?;
            runs.push(json!({"what": what, "summary": summary}));
        }
    }
    results::record(&format!("link_down_for_any_time_{moment:?}"), &json!(runs))
}

#[test]
#[ignore = "the whole matrix"]
fn the_link_is_down_for_any_time_in_the_first_pass() -> Result<()> {
    down_for_any_time(Moment::FirstPass)
}

#[test]
#[ignore = "the whole matrix"]
fn the_link_is_down_for_any_time_in_a_later_pass() -> Result<()> {
    down_for_any_time(Moment::LaterPass)
}

#[test]
#[ignore = "the whole matrix"]
fn the_link_is_down_for_any_time_while_a_job_is_paused() -> Result<()> {
    down_for_any_time(Moment::Frozen)
}

#[test]
#[ignore = "the whole matrix"]
fn the_link_is_down_for_any_time_before_the_commit() -> Result<()> {
    down_for_any_time(Moment::Ready)
}

#[test]
#[ignore = "the whole matrix"]
fn the_link_is_down_for_any_time_in_the_commit() -> Result<()> {
    down_for_any_time(Moment::Commit)
}

/// A connection that stays away for too long: the VM runs on at the source, and nothing waits at
/// the destination.
#[test]
fn a_cut_that_lasts_too_long() -> Result<()> {
    let mut way = Outset::new("3s").set_out()?;
    way.await_bytes(8_000_000)?;
    way.pair.lab.set_link(false)?;
    let lost = noted("trying to connect again for 3s");
    way.sender.await_matching("note", lost, SHORT)?;
    let since = Instant::now();
    assert_eq!(way.sender.exit(SHORT)?, 1, "{:?}", way.sender.events());
    let took = since.elapsed();
    let told = way.sender.await_event("failed", Duration::ZERO)?;
    let error = told["error"].as_str().context("no error")?;
    assert!(error.contains("did not come back within 3s"), "{error}");
    assert_eq!(way.receiver.exit(SHORT)?, 1, "{:?}", way.receiver.events());
    way.pair.destination.wait_ended(SHORT)?;
    way.pair.source.wait_status("running", SHORT)?;
    await_writing(&mut way.pair.source)?;
    verify_writer(&mut way.pair.source)?;
    results::record(
        "cut_too_long",
        &json!({"after_ms": took.as_secs_f64() * 1e3, "told": told}),
    )
}

/// Who does not know the ticket does not get the session, though he names it.
#[test]
fn a_wrong_ticket() -> Result<()> {
    let way = Outset::new("20s").set_out()?;
    way.await_bytes(4_000_000)?;
    let connected = way.sender.await_event("connected", Duration::ZERO)?;
    let name = connected["session"].as_str().context("no session")?;
    let mut session = [0; 16];
    for (byte, digits) in session.iter_mut().zip(name.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits)?, 16)?;
    }
    let mut bytes = Vec::new();
    Preamble::OURS.put(&mut bytes);
    let resume = Message::Resume {
        session,
        ticket: [0; 32],
        received: 0,
    };
    put_control(&resume, &mut bytes);
    let file = way.pair.lab.run_dir().join("resume");
    fs::write(&file, bytes)?;
    let port = PORT.to_string();
    let output = way
        .pair
        .lab
        .command(Host::A, "bash")
        .args(["-c", "exec 3<>/dev/tcp/$0/$1; cat \"$2\" >&3; cat <&3"])
        .args([HOST_B, &port])
        .arg(&file)
        .output()?;
    let answer = String::from_utf8_lossy(&output.stdout);
    assert!(answer.contains("another migration"), "{answer}");
    way.sender.await_event("ready", MIGRATION_LIMIT)?;
    let resumed = way.receiver.events();
    assert!(resumed.iter().all(|event| event["event"] != "resumed"));
    way.open_the_gate()?;
    let summary = way.arrive()?;
    results::record("a_wrong_ticket", &summary)
}

/// The guardian's verdict reaches a destination that waits for its source to come back.
#[test]
fn a_source_that_does_not_come_back() -> Result<()> {
    let mut way = Outset::new("20s").set_out()?;
    way.await_bytes(8_000_000)?;
    way.sender.signal(Signal::KILL)?;
    let since = Instant::now();
    assert!([1, 4].contains(&way.receiver.exit(SHORT)?));
    let took = since.elapsed();
    let told = (way.receiver.events(), way.sender.stderr());
    assert!(took < Duration::from_secs(15), "it waited: {told:?}");
    way.pair.source.wait_status("running", SHORT)?;
    verify_writer(&mut way.pair.source)?;
    way.pair.destination.wait_ended(SHORT)?;
    Ok(())
}

/// The same while the destination has not read all that the source had sent, and so cannot know
/// yet that it is gone.
#[test]
fn a_verdict_comes_before_the_last_of_the_memory() -> Result<()> {
    let mut way = Outset::new("60s").set_out()?;
    way.await_bytes(4_000_000)?;
    let qemu = Pid::from_raw(way.pair.destination.pid().try_into()?).context("no pid")?;
    // Nobody takes what arrives any more: it stays in the sockets between the two hosts.
    kill_process(qemu, Signal::STOP)?;
    way.await_silence()?;
    way.sender.signal(Signal::KILL)?;
    let early = noted("told that the source is gone");
    way.receiver.await_matching("note", early, SHORT)?;
    kill_process(qemu, Signal::CONT)?;
    assert!([1, 4].contains(&way.receiver.exit(SHORT)?));
    let lost = way.receiver.events();
    assert!(!format!("{lost:?}").contains("waiting for it"), "{lost:?}");
    way.pair.source.wait_status("running", SHORT)?;
    verify_writer(&mut way.pair.source)?;
    way.pair.destination.wait_ended(SHORT)?;
    Ok(())
}
