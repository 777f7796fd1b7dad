//! Which probes this kernel has a place for, and how they are attached.

use std::ffi::OsStr;
use std::io::Read;

use anyhow::{Context, Result};
use libbpf_rs::btf::{Btf, types};
use libbpf_rs::{Link, OpenObject, ProgramAttachType, ProgramMut, ProgramType};
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// What costs a pipe, a socket or a futex several percent even while nothing is recorded.
const HOT: [&str; 4] = [
    "file_permission",
    "socket_sendmsg",
    "socket_recvmsg",
    "sched_waking",
];

/// Switches off the programs for which this kernel has no place, and chooses the way of the
/// others. Returns the names of those switched off.
pub(super) fn fit(object: &mut OpenObject) -> Result<Vec<String>> {
    let btf = Btf::from_vmlinux().context("this kernel has no type information (BTF)")?;
    let has_function = |name: &str| btf.type_by_name::<types::Func<'_>>(name).is_some();
    let lsm = lsm_is_active();
    let mut missing = Vec::new();
    for mut program in object.progs_mut() {
        let section = program.section().to_string_lossy().into_owned();
        let name = program.name().to_string_lossy().into_owned();
        // The one hook whose wrapper takes other arguments has a program for each.
        let replaced = match section.as_str() {
            "lsm/mmap_file" => !lsm,
            "fentry/security_mmap_file" => lsm,
            _ => false,
        };
        if replaced {
            program.set_autoload(false);
            continue;
        }
        let found = match section.split_once('/') {
            Some(("lsm", hook)) if lsm => has_function(&format!("bpf_lsm_{hook}")),
            Some(("lsm", hook)) => {
                // The same arguments, one call earlier.
                let wrapper = format!("security_{hook}");
                let found = has_function(&wrapper);
                if found {
                    program.set_prog_type(ProgramType::Tracing);
                    program.set_attach_type(ProgramAttachType::TraceFentry);
                    program.set_attach_target(0, Some(wrapper))?;
                }
                found
            }
            Some(("fentry", function)) => has_function(function),
            Some(("tp_btf", event)) => btf
                .type_by_name::<types::Typedef<'_>>(&format!("btf_trace_{event}"))
                .is_some(),
            _ => true,
        };
        if !found {
            program.set_autoload(false);
            missing.push(name);
        }
    }
    // Two names of one hook, of which every kernel has one.
    let is_truncate = |name: &String| name.ends_with("_truncate");
    if missing.iter().filter(|name| is_truncate(name)).count() < 2 {
        missing.retain(|name| !is_truncate(name));
    }
    Ok(missing)
}

/// Whether a program is one of those that follow processes, rather than read what stands.
pub(super) fn is_probe(section: &OsStr) -> bool {
    !section.to_string_lossy().starts_with("iter/")
}

/// Whether a probe is in the way of what programs do all the time: reading, writing, waking.
pub(super) fn is_hot(name: &OsStr) -> bool {
    HOT.iter().any(|hot| name == *hot)
}

/// Attaches a probe.
pub(super) fn attach(program: &ProgramMut<'_>) -> libbpf_rs::Result<Link> {
    // The library knows the way from the section's name, which a wrapper does not go by.
    match program.prog_type() {
        ProgramType::Tracing => program.attach_trace(),
        _ => program.attach(),
    }
}

/// Whether the kernel calls BPF programs from its security hooks. A program attaches without
/// complaint where it does not.
fn lsm_is_active() -> bool {
    active_modules().is_ok_and(|modules| modules.trim().split(',').any(|name| name == "bpf"))
}

/// The list is in a file system that may not be mounted: a private mount leaves no trace.
fn active_modules() -> Result<String> {
    let system = fsopen("securityfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&system)?;
    let mount = fsmount(
        &system,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?;
    let file = openat(
        &mount,
        "lsm",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut text = String::new();
    std::fs::File::from(file).read_to_string(&mut text)?;
    Ok(text)
}
