//! Whatever breaks before the commit, the VM runs on at the source, its workload intact, and the
//! destination is gone. What breaks after it has one owner all the same.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::relay::Unmoor;
use lab::{Host, Vm, VmOptions, results};
use rustix::process::Signal;
use serde_json::{Value, json};
use unmoor_tests::{MIGRATION_LIMIT, Pair, SHORT, await_writing, start_writer, verify_writer};

/// A moment of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Point {
    FirstPass,
    LaterPass,
    /// Between the destination's readiness and the commit.
    Ready,
}

const POINTS: [Point; 3] = [Point::FirstPass, Point::LaterPass, Point::Ready];

/// A VM whose writer outruns a link of 200 Mbit/s, but not one of 1 Gbit/s.
fn pair() -> Result<Pair> {
    let mut pair = Pair::new(&VmOptions::default())?;
    start_writer(&mut pair.source, 128, 40, "full")?;
    Ok(pair)
}

/// A migration that has come to a certain point, and stays there if that is `Ready`.
struct Reached {
    sender: Unmoor,
    receiver: Unmoor,
    /// Writing to it lets the migration go on to its commit.
    gate: PathBuf,
}

fn reach(pair: &Pair, point: Point) -> Result<Reached> {
    let gate = pair.lab.run_dir().join("gate");
    let _ = fs::remove_file(&gate);
    rustix::fs::mkfifoat(rustix::fs::CWD, &gate, 0o600.into())?;
    let receiver = pair.receive(&["--once", "--peer-timeout", "3s", "--reconnect", "2s"])?;
    let hold = format!("read go < {}", gate.display());
    let limits = ["--peer-timeout", "3s", "--reconnect", "2s"];
    let sender = match point {
        Point::Ready => pair.send(&[&limits[..], &["--before-commit", &hold]].concat())?,
        _ => pair.send(&[&limits[..], &["--bandwidth", "200Mbit"]].concat())?,
    };
    match point {
        Point::FirstPass => {
            let begun = |event: &Value| event["wire_bytes"].as_u64() > Some(4_000_000);
            sender.await_matching("progress", begun, SHORT)?;
        }
        Point::LaterPass => {
            let later = |event: &Value| event["pass"].as_u64() >= Some(3);
            sender.await_matching("pass", later, MIGRATION_LIMIT)?;
        }
        Point::Ready => {
            sender.await_event("ready", MIGRATION_LIMIT)?;
        }
    }
    Ok(Reached {
        sender,
        receiver,
        gate,
    })
}

/// The VM runs at the source, its memory is intact, its settings are as before, and nothing of
/// the migration is left on either host.
fn lives_on_at_the_source(pair: &mut Pair) -> Result<()> {
    pair.source.wait_status("running", SHORT)?;
    await_writing(&mut pair.source)?;
    verify_writer(&mut pair.source)?;
    pair.destination
        .wait_ended(SHORT)
        .context("the destination QEMU should be gone")?;
    await_only(pair, Host::A, &[pair.source.pid()])?;
    await_only(pair, Host::B, &[])?;
    let parameters = pair.source.qmp("query-migrate-parameters", &json!({}))?;
    ensure!(parameters["max-bandwidth"] == 128 << 20, "{parameters}");
    let capabilities = pair.source.qmp("query-migrate-capabilities", &json!({}))?;
    for capability in capabilities.as_array().context("no list")? {
        ensure!(capability["state"] == false, "{capability}");
    }
    Ok(())
}

/// Waits until only the given processes run at `host`.
fn await_only(pair: &Pair, host: Host, expected: &[u32]) -> Result<()> {
    let deadline = Instant::now() + SHORT;
    loop {
        let pids = pair.lab.pids(host)?;
        if pids == expected {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("at host {host} run {pids:?}, not {expected:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Starts another destination, after the one before has been given up.
fn renew_destination(pair: &mut Pair) -> Result<()> {
    let options = pair.destination.options().clone();
    pair.destination = Vm::start(&pair.lab, Host::B, &options)?;
    Ok(())
}

/// Breaks a migration at every point in the same way; each time the VM must live on, and at the
/// end it must still be able to move.
fn survives(
    name: &str,
    mut break_it: impl FnMut(&mut Pair, &mut Reached) -> Result<Value>,
) -> Result<()> {
    let mut pair = pair()?;
    let mut records = serde_json::Map::new();
    for point in POINTS {
        let mut reached = reach(&pair, point)?;
        let told = break_it(&mut pair, &mut reached).with_context(|| format!("{point:?}"))?;
        lives_on_at_the_source(&mut pair)
            .with_context(|| format!("{point:?}: {}", reached.sender.stderr()))?;
        records.insert(format!("{point:?}"), told);
        renew_destination(&mut pair)?;
    }
    pair.migrate(&[])?;
    verify_writer(&mut pair.destination)?;
    results::record(name, &Value::Object(records))
}

/// Waits for the end with the given exit code, and yields what it told.
fn failed(unmoor: &mut Unmoor, code: i32) -> Result<Value> {
    let ended = unmoor.exit(SHORT)?;
    let told = unmoor.events().last().cloned().unwrap_or_default();
    if ended != code || told["event"] != "failed" {
        bail!(
            "unmoor ended with {ended}, not {code}: {told} {}",
            unmoor.stderr()
        );
    }
    Ok(told)
}

fn at_the_source(told: &Value) -> bool {
    let vm = told["vm"].as_str().unwrap_or("");
    vm.contains("runs on at the source") || vm.contains("resumed at the source")
}

#[test]
fn cancelled_by_a_signal() -> Result<()> {
    survives("cancelled_by_a_signal", |_, reached| {
        reached.sender.signal(Signal::INT)?;
        let told = failed(&mut reached.sender, 4)?;
        assert!(at_the_source(&told), "{told}");
        failed(&mut reached.receiver, 4)?;
        Ok(told)
    })
}

#[test]
fn cancelled_at_the_destination() -> Result<()> {
    survives("cancelled_at_the_destination", |_, reached| {
        reached.receiver.signal(Signal::TERM)?;
        failed(&mut reached.receiver, 4)?;
        let told = failed(&mut reached.sender, 1)?;
        assert!(at_the_source(&told), "{told}");
        Ok(told)
    })
}

#[test]
fn the_destination_relay_is_killed() -> Result<()> {
    survives("destination_relay_killed", |_, reached| {
        reached.receiver.signal(Signal::KILL)?;
        let told = failed(&mut reached.sender, 1)?;
        assert!(at_the_source(&told), "{told}");
        Ok(told)
    })
}

#[test]
fn the_destination_qemu_is_killed() -> Result<()> {
    survives("destination_qemu_killed", |pair, reached| {
        pair.destination.kill();
        failed(&mut reached.receiver, 1)?;
        let told = failed(&mut reached.sender, 1)?;
        assert!(at_the_source(&told), "{told}");
        Ok(told)
    })
}

/// The guardian resumes the VM, and gives the destination its verdict.
#[test]
fn the_source_relay_is_killed() -> Result<()> {
    survives("source_relay_killed", |_, reached| {
        reached.sender.signal(Signal::KILL)?;
        let ended = reached.receiver.exit(SHORT)?;
        assert!([1, 4].contains(&ended), "{ended}");
        Ok(json!(reached.receiver.events().last()))
    })
}

#[test]
fn the_link_is_cut() -> Result<()> {
    survives("link_cut", |pair, reached| {
        pair.lab.set_link(false)?;
        let told = failed(&mut reached.sender, 1)?;
        assert!(at_the_source(&told), "{told}");
        pair.lab.set_link(true)?;
        // A destination that is ready must not decide by itself: nobody told it.
        if reached
            .receiver
            .events()
            .iter()
            .any(|e| e["event"] == "ready")
        {
            reached.receiver.await_matching(
                "note",
                |e| e["text"].as_str().is_some_and(|t| t.contains("not known")),
                SHORT,
            )?;
            assert_eq!(pair.destination.status()?, "inmigrate");
            reached.receiver.signal(Signal::INT)?;
        }
        reached.receiver.exit(SHORT)?;
        Ok(told)
    })
}

#[test]
fn a_time_limit_ends_it() -> Result<()> {
    let mut pair = pair()?;
    let mut receiver = pair.receive(&["--once"])?;
    let mut sender = pair.send(&["--bandwidth", "200Mbit", "--timeout", "4s"])?;
    let told = failed(&mut sender, 4)?;
    assert!(
        told["error"]
            .as_str()
            .unwrap_or("")
            .contains("--timeout 4s"),
        "{told}"
    );
    failed(&mut receiver, 4)?;
    lives_on_at_the_source(&mut pair)
}

#[test]
fn a_failing_hook_keeps_the_vm_here() -> Result<()> {
    let mut pair = pair()?;
    let _receiver = pair.receive(&["--once"])?;
    let mut sender = pair.send(&["--before-commit", "echo no >&2; exit 3"])?;
    let told = failed(&mut sender, 1)?;
    assert!(
        told["error"]
            .as_str()
            .unwrap_or("")
            .contains("--before-commit failed"),
        "{told}"
    );
    assert!(at_the_source(&told), "{told}");
    lives_on_at_the_source(&mut pair)
}

/// Somebody resumes the source with another monitor while the destination is ready: committing
/// now would make two copies run.
#[test]
fn a_source_that_was_resumed_is_not_committed() -> Result<()> {
    let mut pair = pair()?;
    let mut reached = reach(&pair, Point::Ready)?;
    pair.source.qmp("cont", &json!({}))?;
    fs::write(&reached.gate, "go\n")?;
    let told = failed(&mut reached.sender, 1)?;
    assert!(
        told["error"].as_str().unwrap_or("").contains("resumed"),
        "{told}"
    );
    lives_on_at_the_source(&mut pair)
}

/// The VM runs at the destination alone.
fn lives_at_the_destination(pair: &mut Pair) -> Result<()> {
    pair.destination.wait_status("running", SHORT)?;
    await_writing(&mut pair.destination)?;
    verify_writer(&mut pair.destination)?;
    assert_eq!(pair.source.status()?, "postmigrate");
    await_only(pair, Host::A, &[pair.source.pid()])?;
    await_only(pair, Host::B, &[pair.destination.pid()])
}

/// The commit is recorded and sent, but does not arrive: the source asks again until the
/// destination has heard it.
#[test]
fn a_commit_that_is_lost_is_repeated() -> Result<()> {
    let mut pair = pair()?;
    let mut reached = reach(&pair, Point::Ready)?;
    pair.lab.set_link(false)?;
    fs::write(&reached.gate, "go\n")?;
    reached.sender.await_event("committed", SHORT)?;
    reached.receiver.await_matching(
        "note",
        |e| e["text"].as_str().is_some_and(|t| t.contains("not known")),
        SHORT,
    )?;
    assert_eq!(pair.destination.status()?, "inmigrate");
    assert_eq!(pair.source.status()?, "postmigrate");
    pair.lab.set_link(true)?;
    let summary = reached.sender.summary(MIGRATION_LIMIT)?;
    assert_eq!(reached.receiver.exit(SHORT)?, 0);
    results::record("lost_commit_repeated", &summary)?;
    lives_at_the_destination(&mut pair)
}

/// The source relay dies after the commit was recorded: the guardian leaves the VM at rest, and
/// sees to it that the destination has heard.
#[test]
fn the_source_relay_dies_after_the_commit() -> Result<()> {
    let mut pair = pair()?;
    let mut reached = reach(&pair, Point::Ready)?;
    // The destination stands still, so that the answer does not come first.
    reached.receiver.signal(Signal::STOP)?;
    fs::write(&reached.gate, "go\n")?;
    reached.sender.await_event("committed", SHORT)?;
    reached.sender.signal(Signal::KILL)?;
    reached.receiver.signal(Signal::CONT)?;
    assert_eq!(reached.receiver.exit(MIGRATION_LIMIT)?, 0);
    lives_at_the_destination(&mut pair)
}
