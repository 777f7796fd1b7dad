//! The lab: two hosts and a client on one machine, and what is needed to watch a VM move.
//!
//! ```text
//!   client 10.77.0.1 ──┐ switch ┌── host A 10.77.0.2, tap0 ── VM 10.77.0.10
//!                      └────────┤
//!                               └── host B 10.77.0.3, tap0 ── (the same VM, later)
//!   host A 10.78.0.2 ═══ migration link, rate limited ═══ host B 10.78.0.3
//! ```
//!
//! Hosts and client are network namespaces. Everything that is started is ended when its handle is
//! dropped, and by the kernel should this process die: what a killed run may leave behind
//! (namespaces) the next run removes.
//!
//! `lab/setup.sh` provides QEMU, libvirt, the guest's kernels and its image; `lab/versions.sh` further
//! versions; `lab/debian.sh` larger guests.

pub mod client;
pub mod libvirt;
pub mod machine;
pub mod net;
pub mod ram;
pub mod relay;
pub mod results;
pub mod saved;
pub mod stock;
pub mod usage;
pub mod versions;
pub mod vm;

use std::path::{Path, PathBuf};

pub use libvirt::{LibvirtOptions, LibvirtVersion};
pub use net::{Host, Lab, LabOptions, LinkBytes};
pub use versions::Missing;
pub use vm::{Image, Kernel, QemuVersion, Vm, VmOptions};

/// Address of host A on the migration link.
pub const HOST_A: &str = "10.78.0.2";
/// Address of host B on the migration link.
pub const HOST_B: &str = "10.78.0.3";
/// The address of the client outside.
pub const CLIENT: &str = "10.77.0.1";
/// The guest's address, the same on both hosts.
pub const GUEST: &str = "10.77.0.10";

/// The checkout's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or_else(|| Path::new("."))
}

/// Where `lab/setup.sh` put things.
pub fn provisions() -> PathBuf {
    root().join("target/lab")
}

/// A program of this workspace, built optimised.
pub fn program(name: &str) -> PathBuf {
    root().join("target/release").join(name)
}
