//! The machine that the lab runs on.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde::Serialize;

use crate::{Kernel, QemuVersion, versions};

/// What results depend on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Processors.
    pub cores: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The host kernel's release.
    pub kernel: String,
    /// The release of the kernel that guests have where nothing else is said.
    pub guest_kernel: String,
    /// The exact versions of all that the lab has.
    pub versions: BTreeMap<String, String>,
    /// `kvm` or `tcg`.
    pub accelerator: &'static str,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let cpu = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown", |(_, name)| name);
        let memory_kib: u64 = read("/proc/meminfo")
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
            .unwrap_or(0);
        Machine {
            cpu: cpu.to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_kib * 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            guest_kernel: Kernel::V6_1.release(),
            versions: versions::all(),
            accelerator: accelerator(),
        }
    }
}

/// `kvm` where the processor can and a guest really starts with it, `tcg` elsewhere. A `/dev/kvm`
/// alone proves nothing.
pub fn accelerator() -> &'static str {
    static CHOICE: OnceLock<&'static str> = OnceLock::new();
    CHOICE.get_or_init(|| {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let can = cpuinfo
            .lines()
            .find(|line| line.starts_with("flags"))
            .is_some_and(|flags| flags.split(' ').any(|flag| flag == "vmx" || flag == "svm"));
        if can && kvm_works() { "kvm" } else { "tcg" }
    })
}

/// Starts a machine without a guest under KVM and has it end itself.
fn kvm_works() -> bool {
    let mut qemu = Command::new(QemuVersion::V10_0.program());
    qemu.args([
        "-machine",
        "q35,accel=kvm",
        "-display",
        "none",
        "-nodefaults",
    ])
    .args(["-S", "-monitor", "stdio"])
    .stdin(Stdio::piped())
    .stdout(Stdio::null())
    .stderr(Stdio::null());
    let probe = || {
        let mut child = qemu.spawn().ok()?;
        use std::io::Write;
        child.stdin.take()?.write_all(b"quit\n").ok()?;
        child.wait().ok()
    };
    let mut probe = probe;
    probe().is_some_and(|status| status.success())
}

/// The first line that a program prints about its version.
pub fn version_of(command: &mut Command) -> String {
    command
        .arg("--version")
        .output()
        .ok()
        .and_then(|output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines().next().map(str::to_owned)
        })
        .unwrap_or_else(|| "unknown".to_owned())
}
