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

impl Source {
    /// QEMU may have a return path: what is said there is fetched with
    /// [`take_for_qemu`](Source::take_for_qemu), and the destination is asked to let the VM start
    /// without waiting for QEMU to complete, since QEMU waits for that.
    pub fn serve_return_path(&mut self) {
        self.for_qemu = Some(Vec::new());
    }

    /// Moves what QEMU is to be told to the end of `out`.
    pub fn take_for_qemu(&mut self, out: &mut Vec<u8>) {
        if let Some(waiting) = &mut self.for_qemu {
            out.append(waiting);
        }
    }

    /// The destination's QEMU has loaded everything, to the end mark.
    pub(super) fn has_loaded(&mut self) {
        if let Some(for_qemu) = &mut self.for_qemu {
            Message::Shut(0).put(for_qemu);
        }
    }

    /// A command that concerns the two QEMUs alone. The destination half opens its own QEMU's path.
    pub(super) fn command(&mut self, id: u16, payload: &[u8]) -> Result<(), Fault> {
        let Some(for_qemu) = &mut self.for_qemu else {
            return Err(Fault::Unsupported {
                feature: "its return path",
                remedy: "switch the capability `return-path` off at the source",
            });
        };
        match (id, <[u8; 4]>::try_from(payload)) {
            (command::OPEN_RETURN_PATH, _) => Ok(()),
            (command::PING, Ok(value)) => {
                Message::Pong(u32::from_be_bytes(value)).put(for_qemu);
                Ok(())
            }
            _ => Err(Fault::Unsupported {
                feature: "post-copy",
                remedy: "switch the capability `postcopy-ram` off (with virsh: without --postcopy)",
            }),
        }
    }
}
