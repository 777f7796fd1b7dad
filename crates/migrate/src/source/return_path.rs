//! A source QEMU that has a return path of its own.
//!
//! Where somebody else manages the VM (libvirt does), QEMU is told to open one: it then completes its
//! migration only when the destination has said, on that path, that it has loaded everything. So the
//! word of the destination's own QEMU is passed on, and not given before it has come: whoever waits for
//! QEMU to complete learns what they would have learnt without a relay.

use qemu_stream::command;
use qemu_stream::return_path::Message;

use super::Source;
use crate::Fault;

/// What QEMU is told.
#[derive(Debug, Default)]
pub(super) struct ReturnPath {
    is_open: bool,
    waiting: Vec<u8>,
}

impl Source {
    /// QEMU has a return path: what is said there is fetched with
    /// [`take_for_qemu`](Source::take_for_qemu), and the commit is asked for without waiting for QEMU
    /// to complete, since QEMU waits for what the commit brings. A QEMU that has none is refused: it
    /// would complete before anything is proven.
    pub fn serve_return_path(&mut self) {
        self.return_path = Some(ReturnPath::default());
    }

    /// Moves what QEMU is to be told to the end of `out`.
    pub fn take_for_qemu(&mut self, out: &mut Vec<u8>) {
        if let Some(path) = &mut self.return_path {
            out.append(&mut path.waiting);
        }
    }

    /// Whether QEMU completes only when it is told that everything is loaded.
    pub(super) fn qemu_waits(&self) -> bool {
        self.return_path.is_some()
    }

    /// The destination's QEMU has loaded everything, to the end mark.
    pub(super) fn has_loaded(&mut self) {
        if let Some(path) = &mut self.return_path {
            Message::Shut(0).put(&mut path.waiting);
        }
    }

    /// Memory begins: by now QEMU has opened its return path, if it has one.
    pub(super) fn check_return_path(&self) -> Result<(), Fault> {
        match &self.return_path {
            Some(path) if !path.is_open => Err(Fault::Unsupported {
                feature: "no return path",
                remedy: "switch the capability `return-path` on at the source, as libvirt does",
            }),
            _ => Ok(()),
        }
    }

    /// A command that concerns the two QEMUs alone. The destination half opens its own QEMU's path.
    pub(super) fn command(&mut self, id: u16, payload: &[u8]) -> Result<(), Fault> {
        let Some(path) = &mut self.return_path else {
            return Err(Fault::Unsupported {
                feature: "its return path",
                remedy: "switch the capability `return-path` off at the source",
            });
        };
        match (id, <[u8; 4]>::try_from(payload)) {
            (command::OPEN_RETURN_PATH, _) => {
                path.is_open = true;
                Ok(())
            }
            (command::PING, Ok(value)) => {
                Message::Pong(u32::from_be_bytes(value)).put(&mut path.waiting);
                Ok(())
            }
            _ => Err(Fault::Unsupported {
                feature: "post-copy",
                remedy: "switch the capability `postcopy-ram` off (with virsh: without --postcopy)",
            }),
        }
    }
}
