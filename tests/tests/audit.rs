//! The audit: what QEMU has lost track of is found, on real QEMU.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use lab::relay::command;
use lab::{Host, QemuVersion, Vm, VmOptions, ram, results};
use serde_json::{Value, json};
use unmoor_tests::backend::Backend;
use unmoor_tests::{MIGRATION_LIMIT, Pair, SHORT, await_writing, start_writer, verify_writer};

const PAGE: usize = 4096;
/// Guest memory that is written behind QEMU's back: from, to.
const BEHIND: (u64, u64) = (1 << 20, 20 << 20);

fn guest(backend: Backend) -> VmOptions {
    backend.give_to(VmOptions::default())
}

/// QEMU's memory, seen as the guest's: one flips bits in it, and QEMU does not notice.
struct BehindItsBack {
    memory: File,
    /// Where the guest's address 0 is.
    base: u64,
}

impl BehindItsBack {
    fn of(vm: &mut Vm) -> Result<Self> {
        // Below 640 KiB and above 1 MiB main memory is in one piece.
        let question = json!({"command-line": "gpa2hva 0x100000"});
        let answer = vm.qmp("human-monitor-command", &question)?;
        let text = answer.as_str().context("no text")?.trim();
        let (_, address) = text.rsplit_once("0x").context("no address")?;
        let base = u64::from_str_radix(address, 16)? - 0x10_0000;
        let path = format!("/proc/{}/mem", vm.pid());
        let memory = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(BehindItsBack { memory, base })
    }

    /// Changes so many pages that are not all zeros, and tells which.
    fn change(&self, count: usize) -> Result<Vec<u64>> {
        let mut changed = Vec::new();
        let mut page = [0; PAGE];
        for address in (BEHIND.0..BEHIND.1).step_by(PAGE * 7) {
            self.memory.read_exact_at(&mut page, self.base + address)?;
            if page.iter().any(|byte| *byte != 0) && changed.len() < count {
                self.memory
                    .write_all_at(&[page[9] ^ 0x40], self.base + address + 9)?;
                changed.push(address);
            }
        }
        ensure!(changed.len() == count, "only {} pages", changed.len());
        Ok(changed)
    }
}

/// Moves a VM that stands, of which pages are changed behind QEMU's back when they have been sent.
fn behind_its_back(backend: Backend, audit: &str) -> Result<(Value, Vec<u64>, ram::RamDiff)> {
    let options = guest(backend);
    let mut pair = Pair::new(&options)?;
    start_writer(&mut pair.source, 64, 0, "full")?;
    pair.source.qmp("stop", &json!({}))?;
    let behind = BehindItsBack::of(&mut pair.source)?;
    let mut receiver = pair.receive(&["--once"])?;
    let slowly = ["--compress", "none", "--bandwidth", "200Mbit", audit];
    let mut sender = pair.send(&slowly)?;
    // Whatever is at lower addresses has gone by then.
    let gone = |event: &Value| event["wire_bytes"].as_u64() > Some(BEHIND.1 + (4 << 20));
    sender.await_matching("progress", gone, SHORT)?;
    let changed = behind.change(50)?;
    let summary = sender.summary(MIGRATION_LIMIT)?;
    assert_eq!(receiver.exit(SHORT)?, 0);
    assert_eq!(summary["digest"], "equal");
    assert_eq!(summary["audit"]["differing"], changed.len(), "{summary}");
    assert_eq!(summary["audit"]["shared"], backend == Backend::Shared);
    let diff = ram::compare(&mut pair.source, &mut pair.destination)?;
    Ok((summary, changed, diff))
}

fn is_repaired(backend: Backend) -> Result<()> {
    let (summary, changed, diff) = behind_its_back(backend, "--audit")?;
    assert_eq!(summary["audit"]["repaired"], changed.len());
    ensure!(diff.differing.is_empty(), "{:x?}", diff.differing);
    results::record(&format!("audit_repairs_{backend:?}"), &summary)
}

#[test]
fn what_qemu_forgets_is_repaired() -> Result<()> {
    is_repaired(Backend::Private)
}

#[test]
fn what_qemu_forgets_is_repaired_in_shared_memory() -> Result<()> {
    is_repaired(Backend::Shared)
}

#[test]
fn what_qemu_forgets_is_only_told_if_that_is_wanted() -> Result<()> {
    let (summary, changed, diff) = behind_its_back(Backend::Shared, "--audit=report")?;
    assert_eq!(summary["audit"]["repaired"], 0);
    assert_eq!(diff.differing, changed);
    Ok(())
}

/// A guest that writes as fast as it can, on its way to a QEMU that runs it.
fn audited(options: &VmOptions) -> Result<Value> {
    let mut pair = Pair::new(options)?;
    start_writer(&mut pair.source, 96, 8, "full")?;
    let summary = pair.migrate(&["--audit"])?;
    await_writing(&mut pair.destination)?;
    verify_writer(&mut pair.destination)?;
    ensure!(
        summary["audit"]["pages"].as_u64() >= Some(512 << 8),
        "{summary}"
    );
    Ok(summary)
}

#[test]
fn nothing_is_found_where_nothing_is_forgotten() -> Result<()> {
    for backend in Backend::ALL {
        let summary = audited(&guest(backend))?;
        assert_eq!(summary["audit"]["differing"], 0, "{summary}");
        results::record(&format!("audit_{backend:?}"), &summary)?;
    }
    Ok(())
}

#[test]
#[ignore = "several minutes"]
fn nothing_is_found_in_twenty_runs_in_a_row() -> Result<()> {
    let mut runs = Vec::new();
    for run in 0..20 {
        let backend = Backend::ALL[run % 2];
        let summary = audited(&guest(backend)).with_context(|| format!("run {run}"))?;
        assert_eq!(summary["audit"]["differing"], 0, "run {run}: {summary}");
        runs.push(summary["audit"].clone());
    }
    results::record("audit_twenty_times", &Value::Array(runs))
}

/// QEMU 7.2 loses dirty pages under emulation, about every other time, and the guest is the worse
/// for it unless they are repaired.
#[test]
#[ignore = "several minutes"]
fn what_qemu_7_2_loses_is_repaired() -> Result<()> {
    let mut options = guest(Backend::Private);
    options.version = QemuVersion::V7_2;
    let mut runs = Vec::new();
    let mut caught = 0;
    for run in 0..20 {
        let summary = audited(&options).with_context(|| format!("run {run}"))?;
        caught += summary["audit"]["differing"].as_u64().unwrap_or(0);
        runs.push(summary["audit"].clone());
    }
    ensure!(caught > 0, "it lost nothing: {runs:?}");
    results::record("audit_qemu_7_2", &Value::Array(runs))
}

/// `unmoor check` says beforehand whether it will work.
#[test]
fn it_is_known_beforehand_whether_memory_can_be_read() -> Result<()> {
    for backend in Backend::ALL {
        let pair = Pair::new(&guest(backend))?;
        let output = command(&pair.lab, Host::A)
            .args(["check", "--json", "--qmp"])
            .arg(pair.source.qmp_path())
            .output()?;
        let answer: Value = serde_json::from_slice(&output.stdout)?;
        let memory = json!({
            "readable": true,
            "complete": true,
            "shared": backend == Backend::Shared,
            "why": null,
        });
        assert_eq!(answer["memory"], memory, "{answer}");
    }
    Ok(())
}

/// Before anything begins.
#[test]
fn another_process_is_not_taken_for_qemu() -> Result<()> {
    let mut pair = Pair::new(&guest(Backend::Private))?;
    let receiver = pair.receive(&[])?;
    let ours = std::process::id().to_string();
    let mut sender = pair.send(&["--audit", "--qemu-pid", &ours])?;
    assert_eq!(sender.exit(SHORT)?, 3, "{:?}", sender.events());
    let failed = sender.await_event("failed", SHORT)?;
    let error = failed["error"].as_str().unwrap_or_default();
    ensure!(error.contains("--qemu-pid"), "{error}");
    pair.source.wait_status("running", SHORT)?;
    drop(receiver);
    Ok(())
}
