//! Figures as JSON under `target/results`, one file for each target of the Makefile.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use crate::machine::{Machine, version_of};
use crate::root;

/// Where results go.
pub fn folder() -> PathBuf {
    root().join("target/results")
}

/// Keeps one record of a test, to be gathered by [`gather`]: tests run in several processes, and
/// each writes files of its own.
pub fn record(name: &str, record: &impl Serialize) -> Result<()> {
    let target = std::env::var("UNMOOR_RECORD").unwrap_or_else(|_| "test-e2e".into());
    let folder = folder().join(format!("{target}.d"));
    fs::create_dir_all(&folder)?;
    let text = serde_json::to_vec_pretty(record)?;
    fs::write(folder.join(format!("{name}.json")), text)?;
    Ok(())
}

/// Keeps how long a test has had its lab, if it is a test that runs: its thread has its name.
pub fn record_time(took: Duration) -> Result<()> {
    let thread = std::thread::current();
    let (Some(test), Ok(program)) = (thread.name(), std::env::current_exe()) else {
        return Ok(());
    };
    let program = program.file_stem().and_then(|name| name.to_str());
    // Cargo puts a hash behind the name of a program of tests.
    let Some((file, _)) = program.and_then(|name| name.rsplit_once('-')) else {
        return Ok(());
    };
    let times = format!("times.{file}.{test}").replace("::", ".");
    record(&times, &json!({"seconds": took.as_secs_f64()}))
}

/// How many of the slowest tests are told.
const SLOWEST: usize = 15;

/// The slowest tests of a target, with the sum of all.
pub fn slowest(target: &str) -> Result<String> {
    let text = fs::read(folder().join(format!("{target}.json")))?;
    let results: Value = serde_json::from_slice(&text)?;
    let records = results["results"].as_object();
    let mut times: Vec<(f64, &str)> = records
        .into_iter()
        .flatten()
        .filter_map(|(name, record)| {
            Some((record["seconds"].as_f64()?, name.strip_prefix("times.")?))
        })
        .collect();
    times.sort_by(|one, other| other.0.total_cmp(&one.0));
    let sum: f64 = times.iter().map(|(seconds, _)| seconds).sum();
    let mut text = format!(
        "{} tests with a lab took {sum:.0} s; the slowest:\n",
        times.len()
    );
    for (seconds, name) in times.iter().take(SLOWEST) {
        text += &format!("  {seconds:6.1} s  {name}\n");
    }
    Ok(text)
}

/// The table of `docs/versions.md`, from the records of `make test-versions`.
pub fn versions_table(target: &str) -> Result<String> {
    let text = fs::read(folder().join(format!("{target}.json")))?;
    let results: Value = serde_json::from_slice(&text)?;
    let mut table = String::from(
        "# Versions that were tried\n\n\
         Made by `make test-versions`. A QEMU that is newer than every one here is used all the same, with\n\
         a note: `unmoor check` reads this table. \"Newest\" is the newest that Debian's archive had on the\n\
         day of the run.\n\n\
         | part | version | what was done | outcome |\n|---|---|---|---|\n",
    );
    for (name, record) in results["results"].as_object().into_iter().flatten() {
        let Some(name) = name.strip_prefix("versions_") else {
            continue;
        };
        let (part, what) = name.split_once('_').unwrap_or((name, ""));
        let part = match part {
            "qemu" => "QEMU",
            other => other,
        };
        let exact = record["versions"].as_array();
        let exact: Vec<&str> = exact
            .into_iter()
            .flatten()
            .filter_map(|version| version.as_str().map(upstream))
            .collect();
        let (version, outcome) = match (&exact[..], record["not_had"].as_str()) {
            ([first, ..], None) => (*first, brief(&record["outcome"])),
            (_, why) => ("not had", why.unwrap_or("").to_owned()),
        };
        let done = match exact.get(1..) {
            Some([to]) => format!("{what}, {to}"),
            Some([_, ..]) => format!("with {}", exact[1..].join(" and ")),
            _ => what.to_owned(),
        };
        table += &format!(
            "| {part} | {version} | {} | {outcome} |\n",
            done.replace('_', " ")
        );
    }
    Ok(table)
}

/// `1:10.0.2+ds-2` is 10.0.2.
pub fn upstream(package: &str) -> &str {
    let version = package.split_once(':').map_or(package, |(_, rest)| rest);
    version.split(['+', '-', '~']).next().unwrap_or(version)
}

/// Figures in one line.
fn brief(outcome: &Value) -> String {
    match outcome {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| match value {
                Value::Object(_) => format!("{}: {}", name.replace('_', " "), brief(value)),
                _ => format!("{} {}", name.replace('_', " "), brief(value)),
            });
            fields.collect::<Vec<_>>().join(", ")
        }
        Value::Number(number) => number
            .as_f64()
            .map_or(String::new(), |it| format!("{it:.0}")),
        Value::String(text) => text.clone(),
        Value::Null => "none".into(),
        other => other.to_string(),
    }
}

/// Gathers the records of `target` into one file.
pub fn gather(target: &str) -> Result<PathBuf> {
    let mut records = serde_json::Map::new();
    for entry in fs::read_dir(folder().join(format!("{target}.d")))
        .into_iter()
        .flatten()
    {
        let path = entry?.path();
        if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
            records.insert(name.to_owned(), serde_json::from_slice(&fs::read(&path)?)?);
        }
    }
    write(target, &Value::Object(records))
}

/// Writes the results of `target`, with what they depend on.
pub fn write(target: &str, results: &impl Serialize) -> Result<PathBuf> {
    fs::create_dir_all(folder())?;
    let path = folder().join(format!("{target}.json"));
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let whole = json!({
        "target": target,
        "command": format!("make {target}"),
        "unix_time": at.as_secs(),
        "machine": Machine::here(),
        "versions": {
            "unmoor": env!("CARGO_PKG_VERSION"),
            "rustc": version_of(&mut Command::new("rustc")),
        },
        "results": results,
    });
    fs::write(&path, serde_json::to_vec_pretty(&whole)?)?;
    Ok(path)
}
