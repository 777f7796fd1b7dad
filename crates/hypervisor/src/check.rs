//! Whether a VM can be moved, and whether two QEMUs fit each other.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

use crate::{Error, MigrationStatus, RunState, Version, Vm, VmFacts};

/// The oldest QEMU whose stream is known.
const OLDEST: Version = Version {
    major: 6,
    minor: 2,
    micro: 0,
};
/// The versions that were tried: the table that people read.
const TRIED: &str = include_str!("../../../docs/versions.md");

/// The newest QEMU that was tried.
fn newest_tried() -> Option<Version> {
    let mut newest = None;
    for line in TRIED.lines() {
        let mut cells = line.split('|').map(str::trim).skip(1);
        if cells.next() == Some("QEMU") {
            newest = newest.max(cells.next().and_then(version));
        }
    }
    newest
}

/// A version as the table has it.
fn version(text: &str) -> Option<Version> {
    let mut numbers = text.split('.').map(|number| number.parse().ok());
    Some(Version {
        major: numbers.next()??,
        minor: numbers.next()??,
        micro: numbers.next().flatten().unwrap_or(0),
    })
}

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Worth knowing.
    Note,
    /// Stands in the way.
    Blocker,
}

/// One thing found, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it weighs.
    pub level: Level,
    /// What was found.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.fix)
    }
}

/// All that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    fn add(&mut self, level: Level, what: impl Into<String>, fix: impl Into<String>) {
        self.findings.push(Finding {
            level,
            what: what.into(),
            fix: fix.into(),
        });
    }

    fn block(&mut self, what: impl Into<String>, fix: impl Into<String>) {
        self.add(Level::Blocker, what, fix);
    }

    fn note(&mut self, what: impl Into<String>, fix: impl Into<String>) {
        self.add(Level::Note, what, fix);
    }

    /// Everything.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter()
    }

    /// What stands in the way.
    pub fn blockers(&self) -> impl Iterator<Item = &Finding> {
        self.iter().filter(|one| one.level == Level::Blocker)
    }

    /// What is worth knowing.
    pub fn notes(&self) -> impl Iterator<Item = &Finding> {
        self.iter().filter(|one| one.level == Level::Note)
    }
}

/// Whether the VM of a running QEMU can be moved away.
pub fn check_source(vm: &mut Vm) -> Result<Report, Error> {
    let mut report = Report::default();
    match vm.status()? {
        RunState::Running | RunState::Paused => {}
        RunState::InMigrate => report.block(
            "this QEMU waits for a VM itself",
            "name the QMP socket of the QEMU that runs the VM",
        ),
        RunState::PostMigrate => report.block(
            "this VM has already been moved away",
            "if it should run here all the same, and runs nowhere else, resume it with `cont`",
        ),
        other => report.block(
            format!("the VM is in state `{other}`"),
            "bring it to `running` or `paused` first",
        ),
    }
    let info = vm.migration_info()?;
    if let MigrationStatus::UnderWay(state) = info.status {
        report.block(
            format!("a migration of this VM is under way ({state})"),
            "wait for it, or end it with `migrate_cancel`",
        );
    }
    for reason in info.blocked_reasons {
        report.block(
            format!("QEMU forbids migration: {reason}"),
            "unplug what it names, or start the VM without it",
        );
    }
    common(vm, &mut report)?;
    disks(vm, &mut report)?;
    Ok(report)
}

/// Whether a QEMU can take a VM.
pub fn check_destination(vm: &mut Vm) -> Result<Report, Error> {
    let mut report = Report::default();
    let state = vm.status()?;
    if state != RunState::InMigrate {
        report.block(
            format!("this QEMU does not wait for a VM (its state is `{state}`)"),
            "start it with the source's command line and `-incoming defer`",
        );
    }
    if vm.migration_info()?.status != MigrationStatus::None {
        report.block(
            "this QEMU has begun to take a VM already",
            "start it afresh with `-incoming defer`",
        );
    }
    common(vm, &mut report)?;
    Ok(report)
}

fn common(vm: &mut Vm, report: &mut Report) -> Result<(), Error> {
    let version = vm.version();
    if version < OLDEST {
        report.block(
            format!("QEMU {version} is older than {OLDEST}"),
            "use QEMU 6.2 or newer",
        );
    } else if let Some(newest) = newest_tried()
        && (version.major, version.minor) > (newest.major, newest.minor)
    {
        report.note(
            format!("QEMU {version} is newer than any that was tried ({newest})"),
            "if its stream has changed, the migration ends with an error and the VM runs on",
        );
    }
    let capabilities = vm.capabilities()?;
    for (name, what) in [
        ("multifd", "QEMU would open connections of its own"),
        ("block", "disks would travel in the stream"),
        ("dirty-bitmaps", "dirty bitmaps would travel in the stream"),
        ("rdma-pin-all", "RDMA bypasses the relay"),
        ("x-colo", "COLO replicates instead of moving"),
    ] {
        if capabilities.get(name) == Some(&true) {
            report.block(
                format!("the capability `{name}` is on: {what}"),
                format!("switch it off with migrate-set-capabilities ({name}=off)"),
            );
        }
    }
    let parameters = vm.parameters()?;
    let credentials = parameters.get("tls-creds").and_then(Value::as_str);
    if credentials.is_some_and(|name| !name.is_empty()) {
        report.block(
            "QEMU encrypts its stream (parameter `tls-creds`)",
            "clear it with migrate-set-parameters (tls-creds=\"\"): between QEMU and unmoor the stream does not leave the host",
        );
    }
    // QEMU below 8.2 has no modes.
    let mode = parameters.get("mode").and_then(Value::as_str);
    if let Some(mode) = mode.filter(|mode| *mode != "normal") {
        report.block(
            format!("QEMU's migration mode is {mode}, which moves a stopped VM to a new QEMU on its host"),
            "set it back with migrate-set-parameters (mode=normal)",
        );
    }
    for device in vm.facts()?.devices {
        if device.starts_with("vfio") {
            report.block(
                format!("the passed-through device {device} cannot travel"),
                "unplug it first",
            );
        }
    }
    Ok(())
}

fn disks(vm: &mut Vm, report: &mut Report) -> Result<(), Error> {
    let drives = vm.ask("query-block", &json!({}))?;
    for drive in drives.as_array().into_iter().flatten() {
        let image = &drive["inserted"];
        if image.is_object() && image["ro"] != true {
            report.note(
                format!(
                    "the VM writes to the disk {}",
                    image["file"].as_str().unwrap_or("without a name")
                ),
                "it must be on storage that both hosts reach: memory and devices are moved, disks are not",
            );
        }
    }
    Ok(())
}

/// Whether a VM fits the QEMU that waits for it.
pub fn compare(source: &VmFacts, destination: &VmFacts) -> Report {
    let mut report = Report::default();
    if source.machine_type != destination.machine_type {
        report.block(
            format!(
                "the destination QEMU has machine type {}, the source {}",
                destination.machine_type, source.machine_type
            ),
            format!(
                "start the destination QEMU with -machine {}",
                source.machine_type
            ),
        );
    }
    if source.memory_bytes != destination.memory_bytes {
        report.block(
            format!(
                "the destination QEMU has {} of RAM, the source {}",
                mebibytes(destination.memory_bytes),
                mebibytes(source.memory_bytes)
            ),
            format!(
                "start the destination QEMU with -m {}k",
                source.memory_bytes >> 10
            ),
        );
    }
    if source.vcpus != destination.vcpus {
        report.block(
            format!(
                "the destination QEMU has {} vCPU, the source {}",
                destination.vcpus, source.vcpus
            ),
            format!("start the destination QEMU with -smp {}", source.vcpus),
        );
    }
    let missing = difference(&source.devices, &destination.devices);
    let extra = difference(&destination.devices, &source.devices);
    if !missing.is_empty() {
        report.block(
            format!(
                "the destination QEMU lacks devices that the source has ({})",
                missing.join(", ")
            ),
            "start it with the source's -device options",
        );
    }
    if !extra.is_empty() {
        report.block(
            format!(
                "the destination QEMU has devices that the source lacks ({})",
                extra.join(", ")
            ),
            "start it without them",
        );
    }
    if destination.qemu_version < source.qemu_version {
        report.note(
            format!(
                "the destination's QEMU {} is older than the source's {}",
                destination.qemu_version, source.qemu_version
            ),
            "that works for machine types that the older one knows",
        );
    }
    report
}

/// What `these` have more of than `those`; both are sorted.
fn difference(these: &[String], those: &[String]) -> Vec<String> {
    let mut those = those.to_vec();
    these
        .iter()
        .filter(|one| match those.iter().position(|other| other == *one) {
            Some(at) => {
                those.swap_remove(at);
                false
            }
            None => true,
        })
        .cloned()
        .collect()
}

fn mebibytes(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    if bytes.is_multiple_of(MIB) {
        format!("{} MiB", bytes / MIB)
    } else {
        format!("{} KiB", bytes >> 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_versions_is_read() {
        let newest = newest_tried().unwrap();
        assert!(newest >= version("11.1.3").unwrap(), "{newest}");
        assert_eq!(version("10"), None);
        assert_eq!(version("newest"), None);
    }

    fn facts() -> VmFacts {
        VmFacts {
            qemu_version: Version {
                major: 10,
                minor: 0,
                micro: 2,
            },
            machine_type: "pc-q35-10.0".into(),
            memory_bytes: 512 << 20,
            vcpus: 2,
            devices: vec!["virtio-net-pci".into(), "virtio-serial-pci".into()],
            no_post_copy: None,
        }
    }

    fn blocker(change: impl FnOnce(&mut VmFacts)) -> String {
        let mut other = facts();
        change(&mut other);
        let report = compare(&facts(), &other);
        let blockers: Vec<_> = report.blockers().map(ToString::to_string).collect();
        assert_eq!(blockers.len(), 1, "{blockers:?}");
        blockers[0].clone()
    }

    #[test]
    fn equal_vms_fit() {
        assert_eq!(compare(&facts(), &facts()), Report::default());
    }

    #[test]
    fn every_difference_says_what_to_change() {
        assert_eq!(
            blocker(|f| f.memory_bytes = 256 << 20),
            "the destination QEMU has 256 MiB of RAM, the source 512 MiB: start the destination QEMU with -m 524288k"
        );
        assert!(blocker(|f| f.machine_type = "pc-q35-7.2".into()).contains("-machine pc-q35-10.0"));
        assert!(blocker(|f| f.vcpus = 4).contains("-smp 2"));
        assert!(
            blocker(|f| drop(f.devices.pop()))
                .contains("lacks devices that the source has (virtio-serial-pci)")
        );
        assert!(
            blocker(|f| f.devices.push("virtio-net-pci".into()))
                .contains("that the source lacks (virtio-net-pci)")
        );
    }

    #[test]
    fn an_older_destination_is_worth_a_note() {
        let mut old = facts();
        old.qemu_version.major = 7;
        let report = compare(&facts(), &old);
        assert_eq!((report.blockers().count(), report.notes().count()), (0, 1));
    }
}
