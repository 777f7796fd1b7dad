//! A VM of libvirt's: its name, and where its agent is found by it.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The port at which the agent listens.
const AGENT: &str = "org.unmoor.0";
/// Longest name of a VM that is not cut short where it is part of a path, in characters.
const SHORT: usize = 20;
/// Longest name of a VM, in bytes.
const LONGEST: usize = 255;

/// A VM's name for libvirt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct DomainName(String);

impl FromStr for DomainName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_name = (1..=LONGEST).contains(&text.len()) && !text.contains(['/', '\0', '\n']);
        match is_name {
            true => Ok(DomainName(text.to_owned())),
            false => Err(format!("{text:?} is no name of a VM")),
        }
    }
}

impl TryFrom<String> for DomainName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DomainName> for String {
    fn from(name: DomainName) -> Self {
        name.0
    }
}

impl DomainName {
    /// The socket of this VM's agent in one of the folders in which libvirt makes such sockets:
    /// `FOLDER/domain-NUMBER-NAME/org.unmoor.0`, since libvirt 9.7 without `domain-`, with a name that is
    /// cut short. VMs of names that begin alike may be meant: the one started last, which waits for
    /// its memory.
    pub(super) fn agent(&self, folders: &[PathBuf]) -> Option<PathBuf> {
        let folders = folders
            .iter()
            .filter_map(|folder| fs::read_dir(folder).ok());
        let vms = folders.flatten().filter_map(Result::ok);
        let found = vms.filter_map(|vm| {
            let number = self.number(vm.file_name().to_str()?)?;
            let socket = vm.path().join(AGENT);
            socket.exists().then_some((number, socket))
        });
        found
            .max_by_key(|(number, _)| *number)
            .map(|(_, socket)| socket)
    }

    /// The number in the name of a folder of this VM's.
    fn number(&self, folder: &str) -> Option<u32> {
        let folder = folder.strip_prefix("domain-").unwrap_or(folder);
        let (number, name) = folder.split_once('-')?;
        let short: String = self.0.chars().take(SHORT).collect();
        (name == short).then(|| number.parse().ok()).flatten()
    }
}

/// Folders in which libvirt makes the sockets of VMs' channels.
pub(super) fn channel_folders() -> Vec<PathBuf> {
    let folders = [
        "/run/libvirt/qemu/channel",
        "/var/lib/libvirt/qemu/channel/target",
    ];
    folders.map(|folder| Path::new(folder).to_owned()).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_socket_is_found_among_those_of_other_vms() {
        let folder = tempfile::tempdir().unwrap();
        let make = |vm: &str| {
            let vm = folder.path().join(vm);
            fs::create_dir(&vm).unwrap();
            fs::write(vm.join(AGENT), "").unwrap();
        };
        for vm in [
            "domain-3-db",
            "domain-12-db",
            "domain-13-db2",
            "20-other-db",
        ] {
            make(vm);
        }
        // One without an agent.
        fs::create_dir(folder.path().join("domain-30-db")).unwrap();
        make("7-a-name-that-is-cut-s");
        let folders = [folder.path().join("none"), folder.path().to_owned()];
        let of = |name: &str| {
            let socket = name.parse::<DomainName>().unwrap().agent(&folders)?;
            let vm = socket.parent()?.file_name()?;
            vm.to_str().map(str::to_owned)
        };
        assert_eq!(of("db").as_deref(), Some("domain-12-db"));
        assert_eq!(of("db2").as_deref(), Some("domain-13-db2"));
        let long = of("a-name-that-is-cut-short");
        assert_eq!(long.as_deref(), Some("7-a-name-that-is-cut-s"));
        assert_eq!(of("d"), None);
    }
}
