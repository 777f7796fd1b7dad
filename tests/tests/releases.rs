//! An old release beside this one: each works with the other, or says why it does not.
//!
//! `tests/releases.sh` builds the old one, and says in `UNMOOR_OLD_RELEASE` where its programs are.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use lab::{CLIENT, Host, Lab, LabOptions, Vm, VmOptions, program, results};
use serde_json::json;
use unmoor_tests::mechanisms::wait_for;
use unmoor_tests::sockets::Scene;
use unmoor_tests::{Pair, SHORT, start_writer, verify_writer};

fn old(name: &str) -> Result<PathBuf> {
    let folder = std::env::var_os("UNMOOR_OLD_RELEASE");
    let folder = folder.context("no old release: run tests/releases.sh")?;
    Ok(PathBuf::from(folder).join(name))
}

/// What libvirt does from release 10 on; before, without the acknowledgement.
const BEFORE: [&str; 1] = ["return-path"];
const SINCE: [&str; 2] = ["return-path", "switchover-ack"];

#[test]
#[ignore = "builds an old release: run by tests/releases.sh"]
fn an_old_unmoord_and_a_new_one() -> Result<()> {
    let (ours, theirs) = (program("unmoord"), old("unmoord")?);
    for (name, programs) in [
        ("old_to_new", [&*theirs, &*ours]),
        ("new_to_old", [&*ours, &*theirs]),
    ] {
        let mut scene = Scene::of(programs, &[], &[], false)?;
        scene.begin_with("0.sock", &BEFORE, &[])?;
        ensure!(scene.outcome()? == "completed", "{name}");
        scene.pair.destination.wait_status("running", SHORT)?;
        verify_writer(&mut scene.pair.destination)?;
    }
    // The old one throws the acknowledgement away: the new one at the source ends it, in words.
    let mut scene = Scene::of([&ours, &theirs], &[], &[], false)?;
    scene.begin_with("0.sock", &SINCE, &SINCE)?;
    let error = scene.failed()?;
    ensure!(error.contains("switchover-ack"), "{error}");
    results::record(
        "old_unmoord",
        &json!({"new_to_old_with_switchover_ack": error}),
    )
}

/// A guest with an agent of the old release.
fn with_old_agent(lab: &Lab, vm: &mut Vm) -> Result<()> {
    let folder = old("unmoor-agent")?;
    let folder = folder.parent().context("no folder")?;
    let mut serving = lab
        .command(Host::Client, "python3")
        .args(["-m", "http.server", "8000", "--bind", CLIENT, "--directory"])
        .arg(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let fetched = wait_for(
        vm,
        "the old agent",
        &format!("wget -q -O /run/agent http://{CLIENT}:8000/unmoor-agent"),
    );
    serving.kill()?;
    serving.wait()?;
    fetched?;
    vm.guest("chmod +x /run/agent; setsid /run/agent >/run/agent.log 2>&1 </dev/null &")?;
    Ok(())
}

#[test]
#[ignore = "builds an old release: run by tests/releases.sh"]
fn an_old_agent_and_a_new_host() -> Result<()> {
    let guest = VmOptions {
        memory: "1G".into(),
        ..VmOptions::default()
    };
    let mut pair = Pair::new(&guest)?;
    with_old_agent(&pair.lab, &mut pair.source)?;
    drop(unmoor_tests::connect_agent(&pair.source)?);
    start_writer(&mut pair.source, 300, 0, "full")?;
    let channel = |vm: &Vm| vm.agent_path().display().to_string();
    let mut receiver = pair.receive(&["--once", "--agent", &channel(&pair.destination)])?;
    let mut sender = pair.send(&["--agent", &channel(&pair.source)])?;
    let summary = sender.summary(unmoor_tests::MIGRATION_LIMIT)?;
    ensure!(receiver.exit(SHORT)? == 0);
    ensure!(
        summary["frozen"].as_array().map(Vec::len) == Some(1),
        "{summary}"
    );
    verify_writer(&mut pair.destination)?;
    Ok(())
}

#[test]
#[ignore = "builds an old release: run by tests/releases.sh"]
fn a_new_agent_and_an_old_host() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let options = VmOptions {
        agent: true,
        ..VmOptions::default()
    };
    let mut vm = Vm::start(&lab, Host::A, &options)?;
    vm.wait_booted()?;
    drop(unmoor_tests::connect_agent(&vm)?);
    let output = Command::new(old("unmoor")?)
        .args(["explain", "--json", "--window", "1s", "--agent"])
        .arg(vm.agent_path())
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stdout)?;
    ensure!(told.contains("redis-server"), "{told}");
    Ok(())
}
