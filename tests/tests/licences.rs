//! Every dependency has a licence that `deny.toml` allows.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The quoted strings of `allow = [...]`.
fn allowed() -> Result<Vec<String>> {
    let policy = std::fs::read_to_string(lab::root().join("deny.toml"))?;
    let list = policy
        .split_once("allow = [")
        .and_then(|(_, rest)| rest.split_once(']'))
        .context("no list of licences in deny.toml")?
        .0;
    Ok(list
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect())
}

/// The licence that `exceptions = [...]` allows for one crate.
fn exception(package: &str) -> Result<Option<String>> {
    let policy = std::fs::read_to_string(lab::root().join("deny.toml"))?;
    let line = format!("{{ crate = \"{package}\", allow = [");
    let licence = policy
        .split_once(&line)
        .and_then(|(_, rest)| rest.split('"').nth(1));
    Ok(licence.map(str::to_owned))
}

/// Whether a licence expression can be satisfied: `OR` chooses, `AND` needs all.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let plain = expression.replace(['(', ')'], "").replace('/', " OR ");
    plain.split(" AND ").all(|part| {
        part.split(" OR ")
            .any(|licence| allowed.iter().any(|one| one == licence.trim()))
    })
}

#[test]
fn every_dependency_has_an_allowed_licence() -> Result<()> {
    let allowed = allowed()?;
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(lab::root())
        .output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata: {told}");
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let mut refused = Vec::new();
    for package in packages {
        let name = package["name"].as_str().context("no name")?;
        let licence = package["license"].as_str().unwrap_or("");
        if !satisfied(licence, &allowed) && exception(name)?.as_deref() != Some(licence) {
            refused.push(format!("{name} ({licence})"));
        }
    }
    assert!(packages.len() > 20, "that is not all");
    assert_eq!(refused, Vec::<String>::new());
    Ok(())
}

#[test]
fn a_policy_that_allows_everything_would_show() {
    let allowed = ["MIT".to_owned()];
    assert!(satisfied("MIT OR GPL-3.0", &allowed));
    assert!(!satisfied("MIT AND GPL-3.0", &allowed));
    assert!(!satisfied("GPL-3.0", &allowed));
    assert!(!satisfied("", &allowed));
}
