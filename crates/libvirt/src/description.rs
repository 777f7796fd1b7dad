//! What libvirt's XML says of a VM and of a host, as far as a migration cares.

use std::path::PathBuf;

use roxmltree::{Document, Node};

use crate::Error;

/// The port of the VM's virtio-serial device at which the agent listens.
const AGENT: &str = "org.unmoor.0";

/// A VM's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The agent's channel.
    pub agent: Channel,
    /// The guest's memory is a file that others can map, too.
    pub memory_is_shared: bool,
    /// The machine's type.
    pub machine: String,
    /// The VM has a device that channels can be added to while it runs.
    pub has_serial_controller: bool,
}

/// The agent's channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channel {
    /// The VM has none.
    Missing,
    /// It has one that is no socket here, or has none yet since the VM does not run.
    NoSocket,
    /// Its socket.
    Socket(PathBuf),
}

impl Description {
    /// What a VM without an agent's channel has to be given.
    pub const AGENT_CHANNEL: &str = "<channel type='unix'>\n  <source mode='bind'/>\n  <target type='virtio' name='org.unmoor.0'/>\n</channel>\n";

    /// Reads it.
    pub fn parse(xml: &str) -> Result<Self, Error> {
        let document = Document::parse(xml)?;
        let root = document.root_element();
        let devices = child(root, "devices");
        let agent = devices
            .into_iter()
            .flat_map(|devices| devices.children())
            .filter(|device| device.has_tag_name("channel"))
            .find(|device| {
                child(*device, "target")
                    .is_some_and(|target| target.attribute("name") == Some(AGENT))
            })
            .map_or(Channel::Missing, |device| {
                let source = child(device, "source");
                match source.and_then(|source| source.attribute("path")) {
                    Some(path) if device.attribute("type") == Some("unix") => {
                        Channel::Socket(path.into())
                    }
                    _ => Channel::NoSocket,
                }
            });
        let access = child(root, "memoryBacking").and_then(|backing| child(backing, "access"));
        let kind = child(root, "os").and_then(|os| child(os, "type"));
        Ok(Description {
            agent,
            memory_is_shared: access
                .is_some_and(|access| access.attribute("mode") == Some("shared")),
            machine: kind
                .and_then(|kind| kind.attribute("machine"))
                .unwrap_or_default()
                .to_owned(),
            has_serial_controller: devices
                .into_iter()
                .flat_map(|devices| devices.children())
                .any(|device| {
                    device.has_tag_name("controller")
                        && device.attribute("type") == Some("virtio-serial")
                }),
        })
    }
}

/// The UUID in what libvirt says of a host.
pub(crate) fn host_uuid(capabilities: &str) -> Result<Option<String>, Error> {
    let document = Document::parse(capabilities)?;
    let host = child(document.root_element(), "host");
    let uuid = host.and_then(|host| child(host, "uuid"));
    Ok(uuid
        .and_then(|uuid| uuid.text())
        .map(|text| text.trim().to_owned()))
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As libvirt 9.0 tells it, with the parts left out that nobody asks for.
    const RUNNING: &str = "<domain type='kvm' id='3'>
  <name>db</name>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os>
  <devices>
    <controller type='virtio-serial' index='0'><alias name='virtio-serial0'/></controller>
    <channel type='unix'>
      <source mode='bind' path='/run/libvirt/qemu/channel/3-db/org.qemu.guest_agent.0'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='disconnected'/>
    </channel>
    <channel type='unix'>
      <source mode='bind' path='/run/libvirt/qemu/channel/3-db/org.unmoor.0'/>
      <target type='virtio' name='org.unmoor.0' state='connected'/>
    </channel>
  </devices>
</domain>";

    #[test]
    fn the_channel_of_the_agent_is_found_among_others() {
        let said = Description::parse(RUNNING).unwrap();
        let path = "/run/libvirt/qemu/channel/3-db/org.unmoor.0";
        assert_eq!(said.agent, Channel::Socket(path.into()));
        assert!(said.memory_is_shared && said.has_serial_controller);
        assert_eq!(said.machine, "pc-q35-10.0");
    }

    #[test]
    fn a_vm_without_any_of_it() {
        let said = Description::parse("<domain><devices/></domain>").unwrap();
        assert_eq!(said.agent, Channel::Missing);
        assert!(!said.memory_is_shared && !said.has_serial_controller);
        let bare = Description::parse("<domain/>").unwrap();
        assert_eq!(bare.agent, Channel::Missing);
        assert!(Description::parse("no XML").is_err());
    }

    #[test]
    fn what_is_added_is_found_afterwards() {
        let channel = Description::AGENT_CHANNEL;
        let said = Description::parse(&format!("<domain><devices>{channel}</devices></domain>"));
        assert_eq!(said.unwrap().agent, Channel::NoSocket);
    }

    #[test]
    fn a_host_is_known_by_its_uuid() {
        let told = "<capabilities><host><uuid> 6c1a8a5e-0000 </uuid></host></capabilities>";
        assert_eq!(host_uuid(told).unwrap().as_deref(), Some("6c1a8a5e-0000"));
        assert_eq!(host_uuid("<capabilities/>").unwrap(), None);
    }
}
