//! What `unmoor plan` and `unmoor send` foretell, and what then happens.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use lab::client::{RedisReport, Running};
use lab::{Vm, VmOptions, program, results};
use serde_json::{Value, json};
use unmoor_tests::{MIGRATION_LIMIT, Pair, SHORT, connect_agent, start_writer, verify_writer};

fn plan(vm: &Vm, more: &[&str]) -> Result<Output> {
    let mut command = Command::new(program("unmoor"));
    command.arg("plan").arg("--qmp").arg(vm.qmp_path());
    Ok(command.args(["--bandwidth", "1Gbit"]).args(more).output()?)
}

fn as_json(output: &Output) -> Result<Value> {
    let told = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).with_context(|| told.into_owned())
}

fn protocol<'a>(plan: &'a Value, name: &str) -> Result<&'a Value> {
    let all = plan["protocols"].as_array();
    let found = all.and_then(|all| all.iter().find(|one| one["protocol"] == name));
    found.with_context(|| format!("nothing about {name} in {plan}"))
}

fn number(value: &Value) -> Result<f64> {
    value
        .as_f64()
        .with_context(|| format!("no number: {value}"))
}

/// Outcome over prediction: total time, bytes, longest pause.
fn errors(foretold: &Value, summary: &Value) -> Result<Value> {
    let longest = |pauses: &Value| {
        let all = pauses.as_array().into_iter().flatten();
        all.filter_map(|one| one["pause_ms"].as_f64())
            .reduce(f64::max)
    };
    let ratio =
        |name: &str| Ok::<_, anyhow::Error>(number(&summary[name])? / number(&foretold[name])?);
    let pause = longest(&summary["frozen"]).zip(longest(&foretold["pauses"]));
    Ok(json!({
        "total": ratio("total_ms")?,
        "bytes": ratio("wire_bytes")?,
        "downtime": ratio("downtime_ms")?,
        "pause": pause.map(|(found, foretold)| found / foretold),
    }))
}

fn within_a_factor_of_two(ratios: &Value, names: &[&str]) -> Result<()> {
    for name in names {
        let ratio = number(&ratios[*name])?;
        ensure!(
            (0.5..2.0).contains(&ratio),
            "{name} is {ratio} times what was foretold: {ratios}"
        );
    }
    Ok(())
}

/// Plans, moves, and compares.
fn foretold(pair: &mut Pair, name: &str) -> Result<(Value, Value, Value)> {
    let agent = pair.source.agent_path().display().to_string();
    let output = plan(
        &pair.source,
        &["--json", "--window", "2s", "--agent", &agent],
    )?;
    let before = as_json(&output)?;
    ensure!(output.status.code() == Some(0), "{before}");
    assert_eq!(pair.source.status()?, "running");
    let to = pair.destination.agent_path().display().to_string();
    let mut receiver = pair.receive(&["--once", "--agent", &to])?;
    // How well memory can be compressed is not foreseen.
    let mut sender = pair.send(&["--agent", &agent, "--compress", "none"])?;
    let summary = sender.summary(MIGRATION_LIMIT).with_context(|| {
        let mut events = sender.events();
        events.retain(|event| event["event"] != "progress" && event["event"] != "pass");
        format!("{before} {events:?}")
    })?;
    ensure!(receiver.exit(SHORT)? == 0, "{:?}", receiver.events());
    let planned = errors(protocol(&before, "stop-copy")?, &summary)?;
    let predicted = errors(&summary["predicted"], &summary)?;
    results::record(
        name,
        &json!({"plan": before, "summary": summary, "outcome_by_plan": planned, "outcome_by_prediction": predicted}),
    )?;
    Ok((before, planned, predicted))
}

#[test]
fn a_migration_is_as_it_was_foretold() -> Result<()> {
    let options = VmOptions {
        memory: "1G".into(),
        agent: true,
        ..VmOptions::default()
    };
    let mut pair = Pair::new(&options)?;
    start_writer(&mut pair.source, 200, 0, "full")?;
    let client = Running::redis(&pair.lab, 100)?;
    drop(connect_agent(&pair.source)?);
    let (before, planned, predicted) = foretold(&mut pair, "plan_of_a_writer")?;
    verify_writer(&mut pair.destination)?;
    let seen: RedisReport = client.finish()?;
    assert_eq!((seen.lost, seen.wrong), (0, 0));

    for name in ["pre-copy", "live"] {
        let endless = protocol(&before, name)?;
        assert_eq!(endless["converges"], false, "{endless}");
        assert!(
            endless["why"][0]
                .as_str()
                .is_some_and(|why| why.contains("does not end"))
        );
    }
    assert_eq!(
        (&before["auto"], &before["goals_met"]),
        (&json!("stop-copy"), &json!(true))
    );
    let pauses = protocol(&before, "stop-copy")?["pauses"].as_array();
    assert_eq!(
        pauses.map(|pauses| &pauses[0]["name"]),
        Some(&json!("lab-guest"))
    );
    for ratios in [&planned, &predicted] {
        within_a_factor_of_two(ratios, &["total", "bytes", "pause"])?;
    }
    Ok(())
}

#[test]
fn an_idle_guest_is_as_it_was_foretold() -> Result<()> {
    let options = VmOptions {
        agent: true,
        ..VmOptions::default()
    };
    let mut pair = Pair::new(&options)?;
    drop(connect_agent(&pair.source)?);
    let (before, planned, predicted) = foretold(&mut pair, "plan_of_an_idle_guest")?;
    for name in ["pre-copy", "live", "stop-copy"] {
        let one = protocol(&before, name)?;
        assert_eq!(
            (&one["converges"], &one["odds"]),
            (&json!(true), &json!(1.0)),
            "{one}"
        );
    }
    for ratios in [&planned, &predicted] {
        within_a_factor_of_two(ratios, &["total", "bytes"])?;
    }
    Ok(())
}

#[test]
fn goals_that_cannot_be_met_are_told() -> Result<()> {
    let options = VmOptions {
        agent: true,
        ..VmOptions::default()
    };
    let lab = lab::Lab::new(&lab::LabOptions::default())?;
    let mut vm = Vm::start(&lab, lab::Host::A, &options)?;
    vm.wait_booted()?;
    start_writer(&mut vm, 100, 0, "full")?;
    drop(connect_agent(&vm)?);
    let agent = vm.agent_path().display().to_string();
    let quick = ["--window", "1s", "--agent", &agent];
    let limit = ["--rule", "pause-limit name:lab-guest up-to 700ms"];
    let output = plan(&vm, &[quick.as_slice(), limit.as_slice()].concat())?;
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    for words in [
        "stop-copy, which `auto` chooses, cannot keep to a downtime of 300ms and pauses of 10s",
        "is not paused: that would take",
        "may pause up to 700ms",
    ] {
        assert!(table.contains(words), "{words}: {table}");
    }

    // Without an agent there is QEMU's word only.
    let output = plan(&vm, &["--json"])?;
    let rough = as_json(&output)?;
    assert!(number(&protocol(&rough, "live")?["odds"])? < 1.0, "{rough}");
    assert_eq!(
        (&rough["auto"], &rough["used_is_known"]),
        (&json!("live"), &json!(false))
    );
    assert!(number(&rough["background_bytes_per_s"])? > 50e6, "{rough}");
    assert!(number(&rough["used_bytes"])? > 100e6, "{rough}");

    // Nothing was changed.
    assert_eq!(vm.status()?, "running");
    verify_writer(&mut vm)?;
    results::record("plan_without_agent", &rough)
}
