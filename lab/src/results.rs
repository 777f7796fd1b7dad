//! Figures as JSON under `target/results`, one file for each target of the Makefile.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

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
