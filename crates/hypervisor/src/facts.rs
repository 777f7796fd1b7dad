//! What a VM is: compared between the two hosts before anything is moved.

use std::fmt;

use serde::{Deserialize, Serialize};

/// QEMU's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Patch level.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// Facts about a VM that must fit between the two hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmFacts {
    /// QEMU's version.
    pub qemu_version: Version,
    /// For example `pc-q35-10.0`.
    pub machine_type: String,
    /// RAM, plugged-in memory included, in bytes.
    pub memory_bytes: u64,
    /// Virtual CPUs.
    pub vcpus: u64,
    /// Types of the devices that the user added, sorted.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Why memory cannot follow after the switchover; told by a destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_post_copy: Option<String>,
}
