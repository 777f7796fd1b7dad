//! What the kernel says of its security modules.

use std::fs::File;
use std::io::Read;

use anyhow::Result;
use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// Whether the kernel calls BPF programs from its security hooks. A program attaches without
/// complaint where it does not.
pub(super) fn is_active() -> bool {
    security_file("lsm").is_ok_and(|modules| modules.trim().split(',').any(|name| name == "bpf"))
}

/// A file of the kernel's security file system. That may not be mounted: a private mount leaves no
/// trace.
pub(super) fn security_file(name: &str) -> Result<String> {
    let system = fsopen("securityfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&system)?;
    let mount = fsmount(
        &system,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?;
    let file = openat(
        &mount,
        name,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut text = String::new();
    File::from(file).read_to_string(&mut text)?;
    Ok(text)
}
