//! A migration that runs is asked and told things; one that was cut off is settled by an operator.

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::relay::{self, Unmoor};
use lab::{HOST_A, HOST_B, Host, VmOptions, results};
use rustix::process::Signal;
use serde_json::{Value, json};
use unmoor_tests::{
    MIGRATION_LIMIT, Pair, SHORT, await_writing, metrics_of_a, start_writer, verify_writer,
};

/// What is measured over: as long as a limit must hold for.
const SECOND: Duration = Duration::from_secs(1);

fn pair(writer: &str) -> Result<Pair> {
    let mut pair = Pair::new(&VmOptions::default())?;
    start_writer(&mut pair.source, 96, 8, writer)?;
    Ok(pair)
}

fn ask(pair: &Pair, host: Host, words: &[&str]) -> Result<Output> {
    Ok(relay::command(&pair.lab, host).args(words).output()?)
}

fn text(output: &Output) -> String {
    let bytes = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn status(pair: &Pair, host: Host) -> Result<Value> {
    let output = ask(pair, host, &["status", "--json"])?;
    ensure!(output.status.success(), "{}", text(&output));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// A gate before the commit.
fn gate(pair: &Pair) -> Result<(PathBuf, String)> {
    let gate = pair.lab.run_dir().join("gate");
    rustix::fs::mkfifoat(rustix::fs::CWD, &gate, 0o600.into())?;
    let hold = format!("read go < {}", gate.display());
    Ok((gate, hold))
}

/// Bytes a second on the link, over a second: the least and the most that it can have been. To read
/// the counter takes a while itself.
#[derive(Debug, serde::Serialize)]
struct Rate {
    least: f64,
    most: f64,
}

impl Rate {
    fn now(pair: &Pair) -> Result<Rate> {
        let read = || -> Result<_> {
            let asked = Instant::now();
            let bytes = pair.lab.link_bytes()?.from_a;
            Ok((asked, bytes, Instant::now()))
        };
        let (asked, before, told) = read()?;
        std::thread::sleep(SECOND);
        let (asked_again, after, told_again) = read()?;
        let over = |seconds: Duration| (after - before) as f64 / seconds.as_secs_f64();
        Ok(Rate {
            least: over(told_again - asked),
            most: over(asked_again - told),
        })
    }

    fn is_about(&self, expected: f64) -> bool {
        self.most > expected * 0.95 && self.least < expected * 1.05
    }
}

#[test]
fn a_limit_is_kept_and_can_be_changed() -> Result<()> {
    let pair = pair("full")?;
    pair.lab.send_single_segments()?;
    let (gate, hold) = gate(&pair)?;
    let mut receiver = pair.receive(&["--once"])?;
    // The lab's network cards say that they do 10 Gbit/s: one percent of that.
    let limited = ["--bandwidth", "1%", "--bind", HOST_A];
    let fixed = ["--compress", "none", "--before-commit", &hold];
    let mut sender = pair.send(&[&limited[..], &fixed].concat())?;
    let gone = |event: &Value| event["wire_bytes"].as_u64() > Some(4_000_000);
    sender.await_matching("progress", gone, SHORT)?;

    let seen = [Rate::now(&pair)?, Rate::now(&pair)?];
    let said = &status(&pair, Host::A)?["running"][0];
    assert_eq!(said["bandwidth_bytes_per_s"], 12_500_000);
    assert_eq!(said["role"], "send");
    let path = said["path"].as_str().unwrap_or_default();
    assert!(path.starts_with(&format!("{HOST_A}:")), "{path}");
    assert!(path.contains(&format!("{HOST_B}:")), "{path}");
    assert_eq!(status(&pair, Host::B)?["running"][0]["role"], "receive");
    for rate in &seen {
        assert!(rate.is_about(12.5e6), "{rate:?} bytes a second");
    }

    let session = said["session"].as_str().context("no session")?.to_owned();
    let tuned = ask(
        &pair,
        Host::A,
        &["tune", &session[..6], "--bandwidth", "200Mbit"],
    )?;
    assert!(tuned.status.success(), "{}", text(&tuned));
    let faster = Rate::now(&pair)?;
    assert!(faster.is_about(25e6), "{faster:?} after tuning");

    let refused = ask(&pair, Host::B, &["tune", "--bandwidth", "none"])?;
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    let other = ask(
        &pair,
        Host::A,
        &["tune", "ffff-not-one", "--bandwidth", "none"],
    )?;
    assert!(text(&other).contains("unmoor status"), "{}", text(&other));
    let tuned = ask(&pair, Host::A, &["tune", "--bandwidth", "none"])?;
    assert!(tuned.status.success(), "{}", text(&tuned));
    fs::write(&gate, "go\n")?;
    let summary = sender.summary(MIGRATION_LIMIT)?;
    assert_eq!(receiver.exit(SHORT)?, 0);

    let none = ask(&pair, Host::A, &["status"])?;
    assert_eq!(text(&none), "no migration runs here\n");
    let kept = ask(&pair, Host::A, &["history"])?;
    assert!(text(&kept).contains(&session[..8]), "{}", text(&kept));
    assert!(text(&kept).contains("moved in"), "{}", text(&kept));
    let kept = ask(&pair, Host::A, &["history", "--json"])?;
    let kept: Value = serde_json::from_slice(&kept.stdout)?;
    assert_eq!(kept["outcome"]["wire_bytes"], summary["wire_bytes"]);
    assert!(kept["samples"].as_array().is_some_and(|all| all.len() > 5));
    results::record(
        "bandwidth",
        &json!({"limit": 12.5e6, "seen": seen, "tuned_to": 25e6, "then": faster}),
    )
}

#[test]
fn metrics_are_served_while_it_runs() -> Result<()> {
    let pair = pair("full")?;
    let mut receiver = pair.receive(&["--once"])?;
    let metrics = format!("{HOST_A}:9090");
    let mut sender = pair.send(&["--bandwidth", "100Mbit", "--metrics", &metrics])?;
    let gone = |event: &Value| event["wire_bytes"].as_u64() > Some(4_000_000);
    sender.await_matching("progress", gone, SHORT)?;
    let answer = metrics_of_a(&pair.lab)?;
    let wire = answer
        .lines()
        .find_map(|line| line.strip_prefix("unmoor_wire_bytes "));
    let wire: u64 = wire.context(answer.clone())?.parse()?;
    assert!(wire > 4_000_000, "{answer}");
    assert!(
        answer.contains("unmoor_phase{phase=\"sending memory\"} 1"),
        "{answer}"
    );
    assert!(answer.contains("unmoor_pages{fate=\"sent\"}"), "{answer}");
    sender.summary(MIGRATION_LIMIT)?;
    assert_eq!(receiver.exit(SHORT)?, 0);
    Ok(())
}

/// A VM that is loaded at the destination and rests at the source: its commit was lost on the way.
struct InDoubt {
    pair: Pair,
    receiver: Unmoor,
    /// The session's name.
    name: String,
}

fn in_doubt() -> Result<InDoubt> {
    let mut pair = pair("full")?;
    let (gate, hold) = gate(&pair)?;
    let limits = ["--peer-timeout", "3s", "--reconnect", "1s"];
    let receiver = pair.receive(&[&limits[..], &["--once"]].concat())?;
    let mut sender = pair.send(&[&limits[..], &["--before-commit", &hold]].concat())?;
    sender.await_event("ready", MIGRATION_LIMIT)?;
    // Nobody notices yet: the commit is recorded, and gets lost.
    pair.lab.set_link(false)?;
    fs::write(&gate, "go\n")?;
    sender.await_event("committed", SHORT)?;
    let told = |event: &Value| {
        let text = event["text"].as_str();
        text.is_some_and(|text| text.contains("unmoor resolve"))
    };
    receiver.await_matching("note", told, SHORT)?;
    // It would go on asking for a minute.
    sender.signal(Signal::INT)?;
    assert_eq!(sender.exit(MIGRATION_LIMIT)?, 5, "{:?}", sender.events());
    pair.source.wait_status("postmigrate", SHORT)?;
    let connected = sender.await_event("connected", SHORT)?;
    Ok(InDoubt {
        pair,
        receiver,
        name: connected["session"].as_str().context("no session")?.into(),
    })
}

#[test]
fn an_operator_lets_the_destination_run() -> Result<()> {
    let InDoubt {
        mut pair,
        mut receiver,
        name,
    } = in_doubt()?;

    let doubt = status(&pair, Host::A)?;
    assert_eq!(doubt["in_doubt"][0]["session"], *name);
    assert_eq!(status(&pair, Host::B)?["running"][0]["in_doubt"], true);
    let asked = ask(&pair, Host::A, &["resolve", &name])?;
    assert_eq!(asked.status.code(), Some(5), "{}", text(&asked));
    assert!(text(&asked).contains("--run-here"), "{}", text(&asked));
    let asked = ask(&pair, Host::B, &["resolve", &name[..8]])?;
    assert_eq!(asked.status.code(), Some(5), "{}", text(&asked));
    assert!(text(&asked).contains("postmigrate"), "{}", text(&asked));
    let run = ask(&pair, Host::B, &["resolve", &name[..8], "--run-here"])?;
    assert!(run.status.success(), "{}", text(&run));
    pair.destination.wait_status("running", SHORT)?;

    // The link is back: the source hears it from the destination, and keeps its copy at rest.
    pair.lab.set_link(true)?;
    let refused = ask(&pair, Host::A, &["resolve", &name, "--run-here"])?;
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused));
    assert!(
        text(&refused).contains("not resumed here"),
        "{}",
        text(&refused)
    );
    assert_eq!(status(&pair, Host::A)?["in_doubt"], json!([]));
    assert_eq!(pair.source.status()?, "postmigrate");
    verify_writer(&mut pair.destination)?;
    await_writing(&mut pair.destination)?;
    assert_eq!(receiver.exit(MIGRATION_LIMIT)?, 0);
    Ok(())
}

#[test]
fn an_operator_keeps_the_vm_at_the_source() -> Result<()> {
    let InDoubt {
        mut pair,
        mut receiver,
        name,
    } = in_doubt()?;
    let given_up = ask(&pair, Host::B, &["resolve", &name[..8], "--give-up"])?;
    assert!(given_up.status.success(), "{}", text(&given_up));
    assert_eq!(receiver.exit(SHORT)?, 4, "{:?}", receiver.events());
    pair.destination.wait_ended(SHORT)?;
    let run = ask(&pair, Host::A, &["resolve", &name, "--run-here"])?;
    assert!(run.status.success(), "{}", text(&run));
    pair.source.wait_status("running", SHORT)?;
    assert_eq!(status(&pair, Host::A)?["in_doubt"], json!([]));
    verify_writer(&mut pair.source)?;
    await_writing(&mut pair.source)?;
    Ok(())
}

/// The link is back before anybody has decided: asking is enough.
#[test]
fn a_commit_that_was_lost_is_delivered_when_somebody_asks() -> Result<()> {
    let InDoubt {
        mut pair,
        mut receiver,
        name,
    } = in_doubt()?;
    pair.lab.set_link(true)?;
    let settled = ask(&pair, Host::A, &["resolve", &name[..8]])?;
    assert!(settled.status.success(), "{}", text(&settled));
    assert!(
        text(&settled).contains("the VM runs at"),
        "{}",
        text(&settled)
    );
    assert_eq!(status(&pair, Host::A)?["in_doubt"], json!([]));
    assert_eq!(receiver.exit(SHORT)?, 0, "{:?}", receiver.events());
    verify_writer(&mut pair.destination)?;
    assert_eq!(pair.source.status()?, "postmigrate");
    Ok(())
}

/// While the source is connected, or may come back, it decides.
#[test]
fn nobody_decides_over_a_source_that_is_there() -> Result<()> {
    let pair = pair("full")?;
    let (gate, hold) = gate(&pair)?;
    let mut receiver = pair.receive(&["--once"])?;
    let mut sender = pair.send(&["--before-commit", &hold])?;
    let ready = sender.await_event("connected", MIGRATION_LIMIT)?;
    sender.await_event("ready", MIGRATION_LIMIT)?;
    let name = ready["session"].as_str().context("no session")?;
    for decision in ["--run-here", "--give-up"] {
        let refused = ask(&pair, Host::B, &["resolve", name, decision])?;
        assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
        assert!(text(&refused).contains("decides"), "{}", text(&refused));
    }
    let unknown = ask(&pair, Host::A, &["resolve", name])?;
    assert!(
        text(&unknown).contains("nothing to resolve"),
        "{}",
        text(&unknown)
    );
    fs::write(&gate, "go\n")?;
    sender.summary(MIGRATION_LIMIT)?;
    assert_eq!(receiver.exit(SHORT)?, 0);
    Ok(())
}
