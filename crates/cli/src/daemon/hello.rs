//! What the two ends of a managed VM's migration tell each other besides the VM.

use serde::{Deserialize, Serialize};

use super::domain::DomainName;
use super::name::Name;
use crate::send::Failure;

/// What a source says, in the place of a VM's facts, which libvirt compares.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Errand {
    /// The socket, in the destination's folder of its own name, at which QEMU waits.
    pub(crate) socket: Name,
    /// It is there for this one migration: nothing is left of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) once: bool,
    /// The VM in which processes are frozen, which are to be thawed there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) thaw: Option<DomainName>,
}

/// What a destination answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Its name, and with it the folder of the socket.
    pub(crate) name: Name,
}

impl Errand {
    /// Reads what the source says.
    pub(super) fn read(facts: &str) -> Result<Self, Failure> {
        serde_json::from_str(facts).map_err(|error| {
            Failure::Failed(format!(
                "the source is no unmoord, or of another release ({error}): `unmoor send` needs `unmoor receive` at the other end"
            ))
        })
    }

    /// What the source says.
    pub(crate) fn write(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

impl Place {
    /// Reads what the destination answers.
    pub(crate) fn read(facts: &str) -> Result<Self, Failure> {
        serde_json::from_str(facts).map_err(|error| {
            Failure::Failed(format!(
                "the destination is no unmoord, or of another release ({error}): `unmoor migrate` needs unmoord there"
            ))
        })
    }

    /// What the destination answers.
    pub(super) fn write(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_no_daemon_or_wants_another_folder_is_told() {
        let said = Errand {
            socket: "0.sock".parse().unwrap(),
            once: true,
            thaw: Some("a vm".parse().unwrap()),
        };
        let read = Errand::read(&said.write()).unwrap();
        assert_eq!((read.socket, read.thaw), (said.socket, said.thaw));
        let before = Errand::read(r#"{"socket":"0.sock"}"#).unwrap();
        assert_eq!((read.once, before.once, before.thaw), (true, false, None));
        for wrong in [
            "{}",
            "",
            r#"{"socket":"../../etc/x"}"#,
            r#"{"socket":"0.sock","thaw":"../x"}"#,
            r#"{"socket":"0.sock","thaw":""}"#,
        ] {
            assert!(Errand::read(wrong).is_err(), "{wrong}");
        }
        assert!(Place::read("{}").is_err());
        let place = Place {
            name: "b".parse().unwrap(),
        };
        assert_eq!(Place::read(&place.write()).unwrap().name, place.name);
    }
}
