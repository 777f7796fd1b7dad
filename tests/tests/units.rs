//! The systemd units: systemd understands them, and they are as closed as they claim to be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The units, as instances; what they start is not installed here, so something else stands for it.
fn installed(folder: &Path) -> Result<Vec<PathBuf>> {
    let root = lab::root();
    let mut units = vec![root.join("crates/agent/unmoor-agent.service")];
    for entry in fs::read_dir(root.join("dist/systemd"))? {
        units.push(entry?.path());
    }
    let mut copies = Vec::new();
    for unit in units
        .iter()
        .filter(|unit| unit.extension().is_some_and(|it| it == "service"))
    {
        let text = fs::read_to_string(unit)?;
        let text = text
            .replace("/usr/bin/unmoor-agent", "/bin/true")
            .replace("/usr/bin/unmoord", "/bin/true")
            .replace("/usr/bin/unmoor", "/bin/true")
            // No manual pages are installed either.
            .replace("Documentation=", "#");
        let name = unit.file_name().context("no name")?.to_string_lossy();
        let copy = folder.join(name.replace('@', "@vm1"));
        fs::write(&copy, text)?;
        copies.push(copy);
    }
    Ok(copies)
}

#[test]
fn systemd_understands_the_units() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let units = installed(folder.path())?;
    assert_eq!(units.len(), 4);
    let output = Command::new("systemd-analyze")
        .arg("verify")
        .args(&units)
        .output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && told.is_empty(), "{told}");
    Ok(())
}

/// In tenths of systemd's measure of what a service could do: 10 is anything.
#[test]
fn the_relays_may_do_little() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for unit in installed(folder.path())? {
        if unit.ends_with("unmoor-agent.service") {
            // Root, by what it is for.
            continue;
        }
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--threshold=25"])
            .arg(&unit)
            .output()?;
        let told = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{told}");
    }
    Ok(())
}

/// A relay that ends must not take along who saves its VM.
#[test]
fn no_unit_ends_a_guardian() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for unit in installed(folder.path())? {
        if unit.ends_with("unmoord.service") {
            // It has none: libvirt decides.
            continue;
        }
        let text = fs::read_to_string(&unit)?;
        ensure!(text.contains("\nKillMode=process\n"), "{}", unit.display());
    }
    Ok(())
}
