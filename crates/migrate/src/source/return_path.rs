//! A source QEMU that has a return path of its own.
//!
//! Where somebody else manages the VM (libvirt does), QEMU is told to open one: it then completes its
//! migration only when the destination has said, on that path, that it has loaded everything. So the
//! word of the destination's own QEMU is passed on, and not given before it has come: whoever waits for
//! QEMU to complete learns what they would have learnt without a relay.

use qemu_stream::command;
use qemu_stream::return_path::Message;
use wire::Capabilities;

use super::{Source, SourcePhase};
use crate::Fault;

/// What QEMU is told.
#[derive(Debug, Default)]
pub(super) struct ReturnPath {
    is_open: bool,
    /// The destination's QEMU agrees to the switchover, and this QEMU has been told.
    is_agreed: bool,
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

    /// Whether the destination passes on that its QEMU agrees to the switchover, known from its `Accept`
    /// on. A QEMU whose capability `switchover-ack` is on waits for that.
    pub fn hears_of_agreement(&self) -> bool {
        self.uses.has(Capabilities::SWITCHOVER_ACK)
    }

    /// What this side can do: it does not offer to receive what no QEMU here waits for.
    pub(super) fn offers(&self) -> Capabilities {
        match self.return_path {
            Some(_) => Capabilities::OURS,
            None => Capabilities::OURS.without(Capabilities::SWITCHOVER_ACK),
        }
    }

    /// The destination's QEMU agrees to the switchover. QEMU is told once, and not any more when the
    /// end of its stream is on the way: a VM that stands waits for no agreement.
    pub(super) fn is_agreed(&mut self) {
        if self.phase < SourcePhase::Committed
            && let Some(path) = &mut self.return_path
            && !std::mem::replace(&mut path.is_agreed, true)
        {
            Message::SwitchoverAck.put(&mut path.waiting);
        }
    }

    /// What to do about a QEMU that does not switch over.
    pub(super) fn way_to_a_switchover(&self) -> &'static str {
        match &self.return_path {
            Some(path) if !path.is_agreed && !self.hears_of_agreement() => {
                "with its capability `switchover-ack` on (libvirt 10 and newer switch it on) it waits for the destination's word, which the release of unmoor there does not pass on: install the same release on both hosts"
            }
            Some(path) if !path.is_agreed => {
                "with its capability `switchover-ack` on it waits for the destination QEMU's word, which has not come: switch it on at both QEMUs, or off at both"
            }
            _ => {
                "`query-migrate` on its monitor and its log may say what it waits for; then move the VM again"
            }
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
