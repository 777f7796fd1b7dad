//! Connections that are lost and come back: the migration goes on where it was.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::relay::{PORT, Unmoor};
use lab::{HOST_B, Host, VmOptions, ram, results};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use unmoor_tests::{MIGRATION_LIMIT, Pair, SHORT, await_writing, start_writer, verify_writer};
use wire::{Message, Preamble, put_control};

/// A VM under load, on its way over a slow link, with a gate before the commit.
struct OnTheWay {
    pair: Pair,
    sender: Unmoor,
    receiver: Unmoor,
    gate: PathBuf,
}

fn set_out(reconnect: &str) -> Result<OnTheWay> {
    set_out_over("1", reconnect)
}

fn set_out_over(connections: &str, reconnect: &str) -> Result<OnTheWay> {
    let options = VmOptions::default();
    let mut waiting = options.as_destination();
    waiting.paused = true;
    let mut pair = Pair::with(&options, &waiting, Some("1gbit"))?;
    start_writer(&mut pair.source, 96, 8, "full")?;
    let gate = pair.lab.run_dir().join("gate");
    rustix::fs::mkfifoat(rustix::fs::CWD, &gate, 0o600.into())?;
    let hold = format!("read go < {}", gate.display());
    let limits = ["--peer-timeout", "3s", "--reconnect", reconnect];
    let receiver = pair.receive(&[&limits[..], &["--once"]].concat())?;
    let slow = [
        "--bandwidth",
        "200Mbit",
        "--before-commit",
        &hold,
        "--connections",
        connections,
    ];
    let sender = pair.send(&[&limits[..], &slow].concat())?;
    Ok(OnTheWay {
        pair,
        sender,
        receiver,
        gate,
    })
}

impl OnTheWay {
    /// Waits until so many bytes have gone.
    fn await_bytes(&self, bytes: u64) -> Result<()> {
        let gone = |event: &Value| event["wire_bytes"].as_u64() > Some(bytes);
        self.sender.await_matching("progress", gone, SHORT)?;
        Ok(())
    }

    /// Waits until nothing more can be sent: two reports in a row tell of the same bytes.
    fn await_silence(&self) -> Result<()> {
        let mut last = (0.0, 0);
        loop {
            let later = |event: &Value| event["t_ms"].as_f64() > Some(last.0);
            let progress = self.sender.await_matching("progress", later, SHORT)?;
            let bytes = progress["wire_bytes"].as_u64().context("no bytes")?;
            if bytes == last.1 {
                return Ok(());
            }
            last = (progress["t_ms"].as_f64().context("no time")?, bytes);
        }
    }

    /// Ports at host A of the connections between the halves.
    fn ports(&self) -> Result<Vec<u16>> {
        let filter = format!("dport = :{PORT}");
        let output = self
            .pair
            .lab
            .command(Host::A, "ss")
            .args(["--no-header", "--numeric", "--tcp", &filter])
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let local = |line: &str| {
            let address = line.split_ascii_whitespace().nth(3)?;
            address.rsplit_once(':')?.1.parse().ok()
        };
        Ok(text.lines().filter_map(local).collect())
    }

    /// Resets every connection between the halves, on both hosts.
    fn kill_connections(&self) -> Result<()> {
        self.kill("")
    }

    /// Resets those connections of which this is true at host A, on both hosts.
    fn kill(&self, more: &str) -> Result<()> {
        let there = more.replace("sport", "dport");
        for (host, end, more) in [(Host::A, "dport", more), (Host::B, "sport", &there)] {
            let filter = format!("{end} = :{PORT} {more}");
            let status = self
                .pair
                .lab
                .command(host, "ss")
                .args(["--kill", "--tcp", &filter])
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status()?;
            ensure!(status.success(), "ss --kill: {status}");
        }
        Ok(())
    }

    /// Waits until both sides have come back so often.
    fn await_resumed(&self, times: usize) -> Result<Vec<Value>> {
        let mut seen = Vec::new();
        for half in [&self.receiver, &self.sender] {
            seen.clear();
            let mut last = 0.0;
            for _ in 0..times {
                let later = |event: &Value| event["t_ms"].as_f64() > Some(last);
                let resumed = half.await_matching("resumed", later, SHORT)?;
                last = resumed["t_ms"].as_f64().context("no time")?;
                seen.push(resumed);
            }
        }
        Ok(seen)
    }

    /// Opens the gate: the VM moves, its memory equal to the byte.
    fn arrive(mut self) -> Result<Value> {
        fs::write(&self.gate, "go\n")?;
        let summary = self.sender.summary(MIGRATION_LIMIT)?;
        assert_eq!(
            self.receiver.exit(SHORT)?,
            0,
            "{:?}",
            self.receiver.events()
        );
        assert_eq!(summary["digest"], "equal");
        let diff = ram::compare(&mut self.pair.source, &mut self.pair.destination)?;
        assert!(diff.differing.is_empty(), "{diff:x?}");
        self.pair.destination.qmp("cont", &json!({}))?;
        verify_writer(&mut self.pair.destination)?;
        Ok(summary)
    }
}

#[test]
fn killed_connections_come_back() -> Result<()> {
    let way = set_out("20s")?;
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
    let summary = way.arrive()?;
    results::record(
        "killed_connections",
        &json!({"resumed": resumed, "summary": summary}),
    )
}

/// A session over several connections: each of them is killed, then all.
#[test]
fn connections_of_several_are_killed_one_by_one() -> Result<()> {
    let way = set_out_over("3", "20s")?;
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
    let summary = way.arrive()?;
    results::record(
        "connections_killed_one_by_one",
        &json!({"resumed": resumed, "summary": summary}),
    )
}

/// Both sides notice by the other's silence.
fn down_for_a_while(name: &str, moment: impl FnOnce(&OnTheWay) -> Result<()>) -> Result<()> {
    let way = set_out("20s")?;
    moment(&way)?;
    way.pair.lab.set_link(false)?;
    for (half, words) in [
        (&way.sender, "trying to connect again"),
        (&way.receiver, "waiting for it to come back"),
    ] {
        let told = |event: &Value| {
            let text = event["text"].as_str();
            text.is_some_and(|text| text.contains(words))
        };
        half.await_matching("note", told, SHORT)?;
    }
    way.pair.lab.set_link(true)?;
    let resumed = way.await_resumed(1)?;
    let summary = way.arrive()?;
    results::record(name, &json!({"resumed": resumed, "summary": summary}))
}

#[test]
fn the_link_is_down_while_memory_travels() -> Result<()> {
    down_for_a_while("link_down_in_the_first_pass", |way| {
        way.await_bytes(8_000_000)
    })
}

#[test]
#[ignore = "the whole matrix"]
fn the_link_is_down_in_a_later_pass() -> Result<()> {
    down_for_a_while("link_down_in_a_later_pass", |way| {
        let later = |event: &Value| event["pass"].as_u64() >= Some(2);
        way.sender.await_matching("pass", later, MIGRATION_LIMIT)?;
        Ok(())
    })
}

/// The VM stands: a commit is not sent into the void.
#[test]
fn the_link_is_down_before_the_commit() -> Result<()> {
    down_for_a_while("link_down_before_the_commit", |way| {
        way.sender.await_event("ready", MIGRATION_LIMIT)?;
        Ok(())
    })
}

/// A connection that stays away for too long: the VM runs on at the source, and nothing waits at
/// the destination.
#[test]
fn a_cut_that_lasts_too_long() -> Result<()> {
    let mut way = set_out("3s")?;
    way.await_bytes(8_000_000)?;
    way.pair.lab.set_link(false)?;
    let lost = |event: &Value| {
        let text = event["text"].as_str();
        text.is_some_and(|text| text.contains("trying to connect again for 3s"))
    };
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
    let way = set_out("20s")?;
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
    let summary = way.arrive()?;
    results::record("a_wrong_ticket", &summary)
}

/// The guardian's verdict reaches a destination that waits for its source to come back.
#[test]
fn a_source_that_does_not_come_back() -> Result<()> {
    let mut way = set_out("20s")?;
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
    let mut way = set_out("60s")?;
    way.await_bytes(4_000_000)?;
    let qemu = Pid::from_raw(way.pair.destination.pid().try_into()?).context("no pid")?;
    // Nobody takes what arrives any more: it stays in the sockets between the two hosts.
    kill_process(qemu, Signal::STOP)?;
    way.await_silence()?;
    way.sender.signal(Signal::KILL)?;
    let early = |event: &Value| {
        let text = event["text"].as_str();
        text.is_some_and(|text| text.contains("told that the source is gone"))
    };
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
