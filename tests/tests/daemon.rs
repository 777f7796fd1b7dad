//! unmoord between two sockets and nothing else: whoever manages the VMs connects QEMU to one and has
//! QEMU wait at the other. That is what libvirt does, and KubeVirt's virt-handler for it.

use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::relay;
use lab::{HOST_A, HOST_B, Host, program};
use rustix::process::Signal;
use serde_json::{Value, json};
use unmoor_tests::authority::Authority;
use unmoor_tests::sockets::Scene;
use unmoor_tests::{Pair, SHORT, memory_is_equal, metrics_of_a, verify_writer};

#[test]
fn a_vm_moves_between_two_sockets_with_certificates() -> Result<()> {
    let authority = Authority::new()?;
    let (a, b) = (authority.issue(HOST_A)?, authority.issue(HOST_B)?);
    let metrics = format!("{HOST_A}:9090");
    let at_a = ["--tls-dir", &a, "--metrics", &metrics];
    let at_b = ["--tls-dir", &b, "--tls-allow", HOST_A];
    let mut scene = Scene::new(&at_a, &at_b, true)?;
    scene.begin("2.sock", true)?;
    let sent = scene.relays[0].await_event("carried", SHORT)?;
    let received = scene.relays[1].await_event("carried", SHORT)?;
    ensure!(sent["pages"] == received["pages"]);
    ensure!(sent["wire_bytes"] == received["wire_bytes"]);
    ensure!(scene.outcome()? == "completed");
    let served = metrics_of_a(&scene.pair.lab)?;
    for line in [
        "unmoord_migrations_carried_total{way=\"from_here\"} 1",
        "unmoord_migrations_running{way=\"from_here\"} 0",
        &format!(
            "unmoord_wire_bytes_total{{way=\"from_here\"}} {}",
            sent["wire_bytes"]
        ),
    ] {
        ensure!(served.contains(line), "{served}");
    }
    let began = scene.relays[0].await_event("began", SHORT)?;
    let path = began["path"].as_str().unwrap_or_default();
    ensure!(path.contains("TLS 1.3"), "{path}");
    let Pair {
        source,
        destination,
        ..
    } = &mut scene.pair;
    ensure!(source.status()? == "postmigrate");
    memory_is_equal(source, destination, &[])?;
    destination.qmp("cont", &json!({}))?;
    verify_writer(destination)?;
    let pages = sent["pages"].as_u64().context("no count")?;
    ensure!(sent["wire_bytes"].as_u64() < Some(pages * 4096), "{sent}");
    Ok(())
}

/// What libvirt switches on from release 10 on.
const AS_LIBVIRT: [&str; 3] = ["return-path", "switchover-ack", "pause-before-switchover"];

#[test]
fn a_source_that_waits_for_the_destinations_agreement_hears_it() -> Result<()> {
    let acks = &AS_LIBVIRT[..2];
    let mut scene = Scene::new(&[], &[], false)?;
    scene.begin_with("0.sock", acks, acks)?;
    ensure!(scene.outcome()? == "completed");
    scene.pair.destination.wait_status("running", SHORT)?;
    verify_writer(&mut scene.pair.destination)?;
    Ok(())
}

#[test]
fn an_operator_is_waited_for_before_the_switchover() -> Result<()> {
    let mut scene = Scene::new(&[], &[], false)?;
    scene.begin_with("0.sock", &AS_LIBVIRT, &AS_LIBVIRT[..2])?;
    scene.comes_to(&["pre-switchover"])?;
    // For longer than a QEMU may go on without a switchover.
    let long = Duration::from_secs(12);
    let failed = scene.relays[0].await_event("failed", long);
    ensure!(failed.is_err(), "{failed:?}");
    let on = json!({"state": "pre-switchover"});
    scene.pair.source.qmp("migrate-continue", &on)?;
    ensure!(scene.outcome()? == "completed");
    scene.pair.destination.wait_status("running", SHORT)?;
    verify_writer(&mut scene.pair.destination)?;
    Ok(())
}

#[test]
fn a_source_that_waits_for_an_agreement_in_vain_is_given_up() -> Result<()> {
    let mut scene = Scene::new(&[], &[], false)?;
    let begun = Instant::now();
    // The destination's QEMU has nothing to agree to, and says nothing.
    scene.begin_with("0.sock", &AS_LIBVIRT[..2], &[])?;
    let error = scene.failed()?;
    ensure!(begun.elapsed() < SHORT, "{:?}", begun.elapsed());
    ensure!(
        error.contains("QEMU does not switch over although everything has been sent")
            && error.contains("switchover-ack"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_certificate_of_another_is_refused_and_the_vm_stays() -> Result<()> {
    let (ours, theirs) = (Authority::new()?, Authority::new()?);
    let (a, b) = (ours.issue(HOST_A)?, theirs.issue(HOST_B)?);
    let mut scene = Scene::new(&["--tls-dir", &a], &["--tls-dir", &b], false)?;
    scene.begin("0.sock", true)?;
    let error = scene.failed()?;
    ensure!(error.contains("certificate"), "{error}");
    Ok(())
}

#[test]
fn more_than_may_move_are_refused_and_shown() -> Result<()> {
    let mut scene = Scene::new(&["--sessions", "1"], &[], false)?;
    // Somebody who has nothing to say takes the only place.
    let [idle, _] = scene.sockets("3.sock");
    let idle = UnixStream::connect(idle)?;
    scene.relays[1].await_event("began", SHORT)?;
    for (host, role) in [(Host::A, "send"), (Host::B, "receive")] {
        let output = relay::command(&scene.pair.lab, host)
            .args(["status", "--json"])
            .output()?;
        let status: Value = serde_json::from_slice(&output.stdout)?;
        let running = status["running"].as_array().context("no list")?;
        ensure!(running.len() == 1, "{status}");
        ensure!(running[0]["role"] == role, "{status}");
    }
    scene.begin("0.sock", true)?;
    let error = scene.failed()?;
    ensure!(error.contains("--sessions"), "{error}");
    // It goes, and there is room.
    drop(idle);
    let gone = |event: &Value| event["session"] != "" && event["role"] == "send";
    scene.relays[0].await_matching("failed", gone, SHORT)?;
    let [from, _] = scene.sockets("0.sock");
    let outgoing = json!({"uri": format!("unix:{from}")});
    scene.pair.source.qmp("migrate", &outgoing)?;
    ensure!(scene.outcome()? == "completed");
    scene.pair.destination.wait_status("running", SHORT)?;
    verify_writer(&mut scene.pair.destination)?;
    Ok(())
}

#[test]
fn what_would_not_be_safe_or_is_not_known_is_refused() -> Result<()> {
    let mut scene = Scene::new(&[], &[], false)?;
    scene.begin("0.sock", false)?;
    let error = scene.failed()?;
    ensure!(error.contains("return-path"), "{error}");
    // Several connections of QEMU's own, which say so at once.
    let [multifd, _] = scene.sockets("1.sock");
    let mut multifd = UnixStream::connect(multifd)?;
    std::io::Write::write_all(&mut multifd, &[0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1])?;
    let told = |event: &Value| {
        let error = event["error"].as_str().unwrap_or_default();
        error.contains("multifd")
    };
    scene.relays[0].await_matching("failed", told, SHORT)?;
    // Nobody waits at the other end.
    let [from, _] = scene.sockets("2.sock");
    let outgoing = json!({"uri": format!("unix:{from}")});
    let on = json!({"capabilities": [{"capability": "return-path", "state": true}]});
    scene.pair.source.qmp("migrate-set-capabilities", &on)?;
    scene.pair.source.qmp("migrate", &outgoing)?;
    let told = |event: &Value| {
        let error = event["error"].as_str().unwrap_or_default();
        error.contains("no QEMU waits at")
    };
    scene.relays[0].await_matching("failed", told, SHORT)?;
    ensure!(scene.outcome()? == "failed");
    ensure!(scene.pair.source.status()? == "running");
    Ok(())
}

#[test]
fn what_is_wrong_with_its_words_is_said_at_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sockets = folder.path().display().to_string();
    let start = |words: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = Command::new(program("unmoord"));
        relay::keep_apart(&mut command, folder.path(), "unmoord");
        let fixed = [
            "--sockets",
            &sockets,
            "--listen",
            "127.0.0.1:0",
            "--name",
            "a",
        ];
        let output = command.args(fixed).args(words).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.code(), said))
    };
    for (words, code, hint) in [
        (&["--insecure", "--peer", "a=10.0.0.2:1"][..], 3, "own name"),
        (
            &["--insecure", "--peer", "../b=10.0.0.2:1"],
            2,
            "is no name",
        ),
        (&["--insecure", "--peer", "b"], 2, "NAME=HOST:PORT"),
        (&["--tls-dir", "/nowhere"], 3, "/nowhere"),
    ] {
        let (status, said) = start(words)?;
        ensure!(status == Some(code), "{words:?}: {status:?} {said}");
        ensure!(said.contains(hint), "{words:?}: {said}");
    }
    Ok(())
}

#[test]
fn nothing_is_left_of_it() -> Result<()> {
    let mut scene = Scene::new(&[], &[], false)?;
    let [from, _] = scene.sockets("0.sock");
    ensure!(std::path::Path::new(&from).exists());
    for relay in &mut scene.relays {
        relay.signal(Signal::TERM)?;
        ensure!(relay.exit(SHORT)? == 0);
    }
    for host in [Host::A, Host::B] {
        for folder in [
            relay::run_folder(&scene.pair.lab, host),
            relay::sockets(&scene.pair.lab, host).join("a"),
            relay::sockets(&scene.pair.lab, host).join("b"),
        ] {
            let left = std::fs::read_dir(&folder)?.count();
            ensure!(left == 0, "{} has {left} files", folder.display());
        }
    }
    Ok(())
}
