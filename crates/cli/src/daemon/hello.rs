//! What the two daemons tell each other besides the VM.

use serde::{Deserialize, Serialize};

use super::name::Name;
use crate::send::Failure;

/// In the place of a VM's facts, which libvirt compares.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Managed {
    /// The socket, in the destination's folder of its own name, at which QEMU waits.
    pub(super) socket: Name,
}

impl Managed {
    /// Reads what the source says.
    pub(super) fn read(facts: &str) -> Result<Self, Failure> {
        serde_json::from_str(facts).map_err(|error| {
            Failure::Failed(format!(
                "the source is no unmoord, or of another release ({error}): `unmoor send` needs `unmoor receive` at the other end"
            ))
        })
    }

    /// What the source says.
    pub(super) fn write(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_no_daemon_or_wants_another_folder_is_told() {
        let said = Managed {
            socket: "0.sock".parse().unwrap(),
        };
        assert_eq!(Managed::read(&said.write()).unwrap().socket, said.socket);
        for wrong in ["{}", "", r#"{"socket":"../../etc/x"}"#] {
            assert!(Managed::read(wrong).is_err(), "{wrong}");
        }
    }
}
