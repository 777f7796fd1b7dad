//! Names of objects, for people to read.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use depgraph::{ObjectId, ObjectKind, ProcessId, Via};
use guest_proto::shortened;

const NAME_MAX: usize = 160;

/// Looks names up once.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: HashMap<ObjectId, String>,
}

impl Names {
    /// The name of what connects two processes, if it has one.
    pub(crate) fn of(&mut self, via: Via, parties: [ProcessId; 2]) -> String {
        let Via::Object { object, .. } = via else {
            return String::new();
        };
        self.known
            .entry(object)
            .or_insert_with(|| match object.kind {
                ObjectKind::File | ObjectKind::SharedMemory | ObjectKind::Pipe => {
                    let name = parties.iter().find_map(|id| path(*id, object));
                    shortened(&name.unwrap_or_default(), NAME_MAX)
                }
                ObjectKind::Udp => format!("port {}", object.a),
                // A listening socket, apart from its connections.
                ObjectKind::Tcp if object.b == u64::MAX => format!("to port {}", object.a),
                _ => String::new(),
            })
            .clone()
    }
}

/// The path of a file that the process has open or mapped. Pipes have one only if they are named.
fn path(id: ProcessId, object: ObjectId) -> Option<String> {
    ["fd", "map_files"]
        .into_iter()
        .flat_map(|folder| fs::read_dir(format!("/proc/{}/{folder}", id.pid)))
        .flatten()
        .flatten()
        .find(|entry| {
            fs::metadata(entry.path()).is_ok_and(|found| {
                found.ino() == object.b && kernel_device(found.dev()) == object.a >> 32
            })
        })
        .and_then(|entry| fs::read_link(entry.path()).ok())
        .map(|path: PathBuf| path.to_string_lossy().into_owned())
        .filter(|path| path.starts_with('/'))
}

/// A device's number as the kernel keeps it, from the one that programs see.
fn kernel_device(number: u64) -> u64 {
    let major = (number >> 8) & 0xfff;
    let minor = (number & 0xff) | ((number >> 12) & 0xf_ff00);
    (major << 20) | minor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_turned_round() {
        // 8:17, and a minor beyond eight bits.
        assert_eq!(kernel_device(0x811), (8 << 20) | 17);
        assert_eq!(kernel_device(0x10_0300), (3 << 20) | 0x100);
    }
}
