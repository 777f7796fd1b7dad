//! What the probes tell: mirrors `bpf/tracker.h`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use depgraph::{Direction, Interface, ObjectId, ObjectKind, ProcessId, Relation};

pub(crate) const KEY: usize = 32;
pub(crate) const EDGE: usize = KEY + 24;
pub(crate) const TASK: usize = 48;

/// Something a process was seen to do, or a fact that stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) process: ProcessId,
    pub(crate) what: What,
    pub(crate) origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Flow(ObjectId, Direction),
    External(Interface, Option<SocketAddr>),
    Relation(ProcessId, Relation),
    Waits,
    /// What could not be looked at: the bits are the kinds of objects that it may have gone through.
    Unseen(u64),
    /// Of a kind that this agent does not know: its probes are of another version.
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Event,
    Standing,
    Held,
}

/// A process of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) id: ProcessId,
    pub(crate) parent: u32,
    pub(crate) tracer: Option<ProcessId>,
    pub(crate) is_kernel: bool,
    pub(crate) name: String,
}

/// Reads fields one after another.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }

    fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }

    fn name(&mut self) -> String {
        let name: [u8; 16] = self.take();
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(16);
        String::from_utf8_lossy(&name[..end]).into_owned()
    }
}

impl Edge {
    /// From a record of [`EDGE`] bytes.
    pub(crate) fn read(record: &[u8]) -> Edge {
        let mut fields = Fields(record);
        let pid = fields.u32();
        let kind = fields.u16();
        let direction = fields.u8();
        let relation = fields.u8();
        let start = fields.u64();
        let (a, b) = (fields.u64(), fields.u64());
        let address = Ipv6Addr::from(fields.take::<16>());
        let port = fields.u16();
        let origin = fields.u16();
        let peer = (port != 0 || !address.is_unspecified())
            .then(|| SocketAddr::new(IpAddr::V6(address).to_canonical(), port));
        let what = match kind {
            16 => interface(a).map(|interface| What::External(interface, peer)),
            17 => related(a, b, relation),
            18 => Some(What::Unseen(a)),
            _ => flow(kind, a, b, direction),
        };
        Edge {
            process: ProcessId { pid, start },
            what: what.unwrap_or(What::Unknown),
            origin: match origin {
                0 => Origin::Event,
                2 => Origin::Held,
                _ => Origin::Standing,
            },
        }
    }
}

impl Task {
    /// From a record of [`TASK`] bytes.
    pub(crate) fn read(record: &[u8]) -> Task {
        let mut fields = Fields(record);
        let pid = fields.u32();
        let parent = fields.u32();
        let start = fields.u64();
        let tracer = fields.u32();
        let is_kernel = fields.u32() != 0;
        let tracer_start = fields.u64();
        Task {
            id: ProcessId { pid, start },
            parent,
            tracer: (tracer != 0).then_some(ProcessId {
                pid: tracer,
                start: tracer_start,
            }),
            is_kernel,
            name: fields.name(),
        }
    }
}

/// The kinds of objects whose bits are set.
pub(crate) fn kinds(bits: u64) -> impl Iterator<Item = ObjectKind> {
    (0..16)
        .filter(move |number| bits & (1 << number) != 0)
        .filter_map(object_kind)
}

fn object_kind(number: u16) -> Option<ObjectKind> {
    use ObjectKind as K;
    Some(match number {
        1 => K::Pipe,
        2 => K::UnixSocket,
        3 => K::Tcp,
        4 => K::Udp,
        5 => K::Vsock,
        6 => K::Netlink,
        7 => K::Terminal,
        8 => K::File,
        9 => K::SharedMemory,
        10 => K::MessageQueue,
        11 => K::Semaphore,
        12 => K::PosixQueue,
        13 => K::Event,
        14 => K::BlockDevice,
        15 => K::Device,
        _ => return None,
    })
}

fn flow(kind: u16, a: u64, b: u64, direction: u8) -> Option<What> {
    let kind = object_kind(kind)?;
    let direction = match direction {
        1 => Direction::Reads,
        2 => Direction::Writes,
        3 => Direction::Both,
        _ => return None,
    };
    Some(What::Flow(ObjectId { kind, a, b }, direction))
}

fn interface(a: u64) -> Option<Interface> {
    let detail = u32::try_from(a & 0xffff_ffff).ok()?;
    Some(match a >> 32 {
        0 => Interface::Tcp,
        1 => Interface::TcpListening,
        2 => Interface::Udp,
        3 => Interface::OtherIp {
            protocol: u8::try_from(detail).unwrap_or(u8::MAX),
        },
        4 => Interface::Packet,
        5 => Interface::Vsock,
        6 => Interface::OtherSocket {
            family: u16::try_from(detail).unwrap_or(u16::MAX),
        },
        7 => {
            let (major, minor) = device(u64::from(detail));
            Interface::Serial { major, minor }
        }
        8 => Interface::NetworkFileSystem { magic: detail },
        _ => return None,
    })
}

/// Splits the kernel's number of a device.
pub(crate) fn device(number: u64) -> (u16, u32) {
    let major = u16::try_from((number >> 20) & 0xfff).unwrap_or(0);
    (major, u32::try_from(number & 0xf_ffff).unwrap_or(0))
}

fn related(pid: u64, start: u64, relation: u8) -> Option<What> {
    let other = ProcessId {
        pid: u32::try_from(pid).ok()?,
        start,
    };
    let relation = match relation {
        1 => Relation::Forked,
        2 => Relation::Signalled,
        3 => Relation::Traced,
        4 => Relation::Woke,
        5 => Relation::Exited,
        6 => Relation::Ended,
        7 => return Some(What::Waits),
        _ => return None,
    };
    Some(What::Relation(other, relation))
}
