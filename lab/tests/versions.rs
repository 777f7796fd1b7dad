//! Every version that the lab has works: kernels boot, QEMUs boot a guest, libvirts run a VM.

use anyhow::{Context, Result, ensure};
use lab::libvirt::{DOMAIN, Libvirt, describe};
use lab::{
    Host, Kernel, Lab, LabOptions, LibvirtOptions, LibvirtVersion, Missing, QemuVersion, Vm,
    VmOptions, results,
};
use serde_json::{Map, Value, json};

/// Tries each of several versions. One that the archive did not have is told and recorded as such; all
/// others have to work.
fn each<T: Copy>(
    name: &str,
    all: &[T],
    label: fn(T) -> &'static str,
    exact: fn(T) -> Result<String, Missing>,
    attempt: fn(T) -> Result<String>,
) -> Result<()> {
    let mut told = Map::new();
    let mut wrong = Vec::new();
    for &one in all {
        let label = label(one);
        let outcome = match exact(one) {
            Err(missing @ Missing::NotHad { .. }) => {
                println!("{name} {label} was not tried: {missing}");
                json!({"not had": missing.to_string()})
            }
            Err(missing) => {
                wrong.push(missing.to_string());
                continue;
            }
            Ok(exact) => match attempt(one).with_context(|| format!("{name} {label} ({exact})")) {
                Ok(said) => {
                    println!("{name} {label} ({exact}) works: {said}");
                    json!({"exact": exact, "said": said})
                }
                Err(error) => {
                    wrong.push(format!("{error:#}"));
                    continue;
                }
            },
        };
        told.insert(label.to_owned(), outcome);
    }
    results::record(&format!("versions_{name}"), &Value::Object(told))?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Boots a guest, which tells its kernel and reaches its services.
fn boots(options: &VmOptions) -> Result<String> {
    let lab = Lab::new(&LabOptions::default())?;
    let mut vm = Vm::start(&lab, Host::A, options)?;
    vm.wait_booted()?;
    ensure!(vm.guest("redis-cli ping")? == "PONG\n", "Redis is silent");
    vm.guest("ping -c 1 -W 10 10.77.0.1")?;
    Ok(vm.guest("uname -r")?.trim().to_owned())
}

fn kernel_boots(kernel: Kernel) -> Result<String> {
    let release = boots(&VmOptions {
        kernel,
        ..VmOptions::default()
    })?;
    let expected = kernel.release();
    ensure!(release == expected, "{release} runs, not {expected}");
    Ok(release)
}

fn qemu_boots(version: QemuVersion) -> Result<String> {
    boots(&VmOptions {
        version,
        ..VmOptions::default()
    })
}

fn libvirt_runs_a_vm(version: LibvirtVersion) -> Result<String> {
    let lab = Lab::new(&LabOptions::default())?;
    let options = LibvirtOptions {
        version,
        ..LibvirtOptions::default()
    };
    let libvirt = Libvirt::start(&lab, Host::A, &options)?;
    libvirt.create(&describe(&VmOptions::default(), 512)?)?;
    let release = libvirt.control()?.run("uname -r")?;
    ensure!(libvirt.state()?.as_deref() == Some("running"));
    // The one that it is to have, and a client and a daemon that are of the same version.
    let said = libvirt.virsh(&["version", "--daemon"])?;
    let said = said.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(said.contains("QEMU 10.0."), "{said}");
    ensure!(release.trim() == Kernel::V6_1.release(), "{release}");
    // A system's programs have a client library of their own, which may be older.
    let mut client = libvirt.command(LibvirtVersion::V9_0.virsh());
    let output = client
        .args(["-c", &libvirt.uri(), "domstate", DOMAIN])
        .output()?;
    let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(state == "running", "a client of 9.0: {output:?}");
    Ok(said)
}

#[test]
#[ignore = "slow: run by make test-slow"]
fn every_kernel_boots() -> Result<()> {
    each(
        "kernel",
        &Kernel::ALL,
        Kernel::label,
        Kernel::exact,
        kernel_boots,
    )
}

#[test]
#[ignore = "slow: run by make test-slow"]
fn every_qemu_boots_a_guest() -> Result<()> {
    each(
        "qemu",
        &QemuVersion::ALL,
        QemuVersion::label,
        QemuVersion::exact,
        qemu_boots,
    )
}

#[test]
#[ignore = "slow: run by make test-slow"]
fn every_libvirt_runs_a_vm() -> Result<()> {
    each(
        "libvirt",
        &LibvirtVersion::ALL,
        LibvirtVersion::label,
        LibvirtVersion::exact,
        libvirt_runs_a_vm,
    )
}
