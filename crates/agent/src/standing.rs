//! What `/proc` tells of standing facts, for kernels without probes: sockets through which the
//! outside may speak at any moment, and memory that is shared.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use depgraph::{Direction, Interface, ObjectId, ObjectKind};

use crate::tracker::{Edge, Origin, Task, What};

/// The kernel's number of the state of a listening socket.
const TCP_LISTEN: u8 = 10;

/// A socket as `/proc/net` lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    inode: u64,
    local: SocketAddr,
    remote: SocketAddr,
    state: u8,
}

/// A line of `/proc/PID/maps` that is shared.
#[derive(Debug, PartialEq, Eq)]
struct Shared {
    object: ObjectId,
    direction: Direction,
}

/// Listed sockets by their inodes, with the way out that each is, if it is one.
type Sockets = HashMap<u64, Option<What>>;

/// What stands for these processes. `own` are the machine's addresses.
pub(crate) fn edges(tasks: &[Task], own: &HashSet<IpAddr>) -> Vec<Edge> {
    // A process may hold sockets of a namespace that is not its own.
    let mut sockets = Sockets::new();
    let mut spaces = HashSet::new();
    for task in tasks {
        let process = format!("/proc/{}", task.id.pid);
        if let Ok(space) = fs::read_link(format!("{process}/ns/net"))
            && spaces.insert(space)
        {
            list_sockets(&Path::new(&process).join("net"), own, &mut sockets);
        }
    }
    let mut edges = Vec::new();
    for task in tasks {
        let mut found = held_sockets(task.id.pid, &sockets);
        let maps = fs::read(format!("/proc/{}/maps", task.id.pid)).unwrap_or_default();
        let maps = String::from_utf8_lossy(&maps);
        let flows = maps.lines().filter_map(shared);
        found.extend(flows.map(|shared| What::Flow(shared.object, shared.direction)));
        edges.extend(found.into_iter().map(|what| Edge {
            process: task.id,
            what,
            origin: Origin::Standing,
        }));
    }
    edges
}

/// Adds the sockets of one network namespace.
fn list_sockets(folder: &Path, own: &HashSet<IpAddr>, sockets: &mut Sockets) {
    let file = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    type Judge = fn(&Socket, &HashSet<IpAddr>) -> Option<What>;
    for (name, judge) in [
        ("tcp", tcp as Judge),
        ("tcp6", tcp),
        ("udp", udp),
        ("udp6", udp),
        ("raw", raw),
        ("raw6", raw),
    ] {
        let text = file(name);
        let listed = text.lines().filter_map(socket);
        sockets.extend(listed.map(|socket| (socket.inode, judge(&socket, own))));
    }
    let packet = file("packet");
    let inodes = packet.lines().filter_map(|line| inode(line, 8));
    sockets.extend(inodes.map(|inode| (inode, Some(What::External(Interface::Packet, None)))));
}

/// The ways out among the sockets that a process holds.
fn held_sockets(pid: u32, sockets: &Sockets) -> Vec<What> {
    let mut found = Vec::new();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"));
    for entry in descriptors.into_iter().flatten().flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let Some(inode) = target.to_str().and_then(socket_inode) else {
            continue;
        };
        match sockets.get(&inode) {
            Some(what) => found.extend(*what),
            None if is_harmless(&entry.path()) => {}
            None => found.push(What::Unknown),
        }
    }
    found
}

/// Whether a socket that is in none of the lists leads nowhere outside: one within the machine, or
/// one that is bound to nothing yet.
fn is_harmless(descriptor: &Path) -> bool {
    let mut name = [0; 32];
    let Ok(length) = rustix::fs::getxattr(descriptor, "system.sockprotoname", &mut name[..]) else {
        // It may have been closed meanwhile.
        return !descriptor.exists();
    };
    let name = String::from_utf8_lossy(&name[..length]);
    matches!(
        name.trim_end_matches('\0'),
        "UNIX" | "UNIX-STREAM" | "NETLINK" | "ALG" | "TCP" | "TCPv6" | "UDP" | "UDPv6"
    )
}

fn tcp(socket: &Socket, own: &HashSet<IpAddr>) -> Option<What> {
    if socket.state == TCP_LISTEN {
        let outside = !socket.local.ip().is_loopback();
        return outside.then_some(What::External(Interface::TcpListening, Some(socket.local)));
    }
    let outside = socket.remote.port() != 0 && !is_own(socket.remote.ip(), own);
    outside.then_some(What::External(Interface::Tcp, Some(socket.remote)))
}

fn udp(socket: &Socket, own: &HashSet<IpAddr>) -> Option<What> {
    let connected = socket.remote.port() != 0;
    let (peer, outside) = if connected {
        (socket.remote, !is_own(socket.remote.ip(), own))
    } else {
        // It hears everybody, unless it is bound to the loopback.
        let local = socket.local;
        (local, local.port() != 0 && !local.ip().is_loopback())
    };
    outside.then_some(What::External(Interface::Udp, Some(peer)))
}

/// Hears everything of its protocol, which stands where others have their port.
fn raw(socket: &Socket, _own: &HashSet<IpAddr>) -> Option<What> {
    let protocol = u8::try_from(socket.local.port()).unwrap_or(u8::MAX);
    Some(What::External(Interface::OtherIp { protocol }, None))
}

fn is_own(address: IpAddr, own: &HashSet<IpAddr>) -> bool {
    address.is_loopback() || address.is_unspecified() || own.contains(&address)
}

/// A line of tcp, udp or raw, or of their like for version 6. Its head is none, and neither is a
/// socket that no process holds any more.
fn socket(line: &str) -> Option<Socket> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = address(fields.next()?)?;
    let remote = address(fields.next()?)?;
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    Some(Socket {
        inode: inode(line, 9)?,
        local,
        remote,
        state,
    })
}

fn inode(line: &str, field: usize) -> Option<u64> {
    let inode = line.split_ascii_whitespace().nth(field)?.parse().ok()?;
    (inode != 0).then_some(inode)
}

/// `0100007F:1F90`: the address in words of 32 bits as they are in memory, the port as a number.
fn address(text: &str) -> Option<SocketAddr> {
    let (digits, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = digits.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    };
    let address = match digits.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

/// `socket:[4711]`
fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// `START-END PERMISSIONS OFFSET DEVICE INODE PATH`
fn shared(line: &str) -> Option<Shared> {
    let mut fields = line.split_ascii_whitespace();
    let permissions = fields.nth(1)?.as_bytes();
    let (major, minor) = fields.nth(1)?.split_once(':')?;
    let inode: u64 = fields.next()?.parse().ok()?;
    let path = fields.next().unwrap_or("");
    // Its own ring with the kernel; all of them have one inode.
    if permissions.get(3) != Some(&b's') || path.starts_with("anon_inode:[io_uring]") {
        return None;
    }
    let major = u64::from_str_radix(major, 16).ok()?;
    let minor = u64::from_str_radix(minor, 16).ok()?;
    Some(Shared {
        object: ObjectId {
            kind: ObjectKind::SharedMemory,
            a: ((major << 20) | minor) << 32,
            b: inode,
        },
        direction: if permissions.get(1) == Some(&b'w') {
            Direction::Both
        } else {
            Direction::Reads
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

    fn native(address: &str) -> String {
        let bytes: Vec<u8> = match address.parse() {
            Ok(IpAddr::V4(v4)) => v4.octets().to_vec(),
            Ok(IpAddr::V6(v6)) => v6.octets().to_vec(),
            Err(_) => Vec::new(),
        };
        let words = bytes.chunks_exact(4).map(|word| {
            let word: [u8; 4] = word.try_into().unwrap_or_default();
            format!("{:08X}", u32::from_ne_bytes(word))
        });
        words.collect()
    }

    fn line(local: (&str, u16), remote: (&str, u16), state: u8) -> Option<Socket> {
        let end = |(address, port)| format!("{}:{port:04X}", native(address));
        socket(&format!(
            "   0: {} {} {state:02X} 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0",
            end(local),
            end(remote),
        ))
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_are_words_as_in_memory() {
        for (text, expected) in [
            ("0100007F:1F90", "127.0.0.1:8080"),
            ("0A004D0A:0007", "10.77.0.10:7"),
            ("00000000000000000000000001000000:0016", "[::1]:22"),
            ("B80D0120000000000000000001000000:01BB", "[2001:db8::1]:443"),
            // Mapped addresses are those of version 4.
            ("0000000000000000FFFF00000A004D0A:0050", "10.77.0.10:80"),
        ] {
            assert_eq!(
                address(text).map(|end| end.to_string()).as_deref(),
                Some(expected)
            );
        }
        for bad in [
            "",
            "0100007F",
            "0100007:1",
            "0100007F:10000",
            "x100007F:1",
            "äöü\u{20ac}:1",
        ] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_socket_is_a_line() {
        let found = line(("10.77.0.10", 80), ("10.77.0.1", 5000), 1);
        assert_eq!(
            found,
            Some(Socket {
                inode: 4711,
                local: ([10, 77, 0, 10], 80).into(),
                remote: ([10, 77, 0, 1], 5000).into(),
                state: 1,
            })
        );
        assert_eq!(TCP.lines().find_map(socket), None);
        assert_eq!(socket(""), None);
        // In TIME_WAIT nobody holds it.
        assert_eq!(
            socket("0: 0100007F:1 0100007F:2 06 0:0 0:0 0 0 0 0 3 0"),
            None
        );
    }

    fn verdict(
        judge: fn(&Socket, &HashSet<IpAddr>) -> Option<What>,
        local: (&str, u16),
        remote: (&str, u16),
        state: u8,
    ) -> Option<Interface> {
        let own = HashSet::from([IpAddr::from([10, 77, 0, 10])]);
        match line(local, remote, state).and_then(|socket| judge(&socket, &own)) {
            Some(What::External(interface, _)) => Some(interface),
            _ => None,
        }
    }

    #[test]
    fn listening_counts_unless_on_the_loopback() {
        let of = |local| verdict(tcp, (local, 80), ("0.0.0.0", 0), TCP_LISTEN);
        assert_eq!(of("0.0.0.0"), Some(Interface::TcpListening));
        assert_eq!(of("10.77.0.10"), Some(Interface::TcpListening));
        assert_eq!(of("::"), Some(Interface::TcpListening));
        assert_eq!(of("127.0.0.1"), None);
        assert_eq!(of("::1"), None);
    }

    #[test]
    fn a_connection_counts_if_its_peer_is_elsewhere() {
        let of = |remote| verdict(tcp, ("10.77.0.10", 80), (remote, 5000), 1);
        assert_eq!(of("10.77.0.1"), Some(Interface::Tcp));
        assert_eq!(of("::ffff:10.77.0.1"), Some(Interface::Tcp));
        assert_eq!(of("2001:db8::1"), Some(Interface::Tcp));
        assert_eq!(of("10.77.0.10"), None);
        assert_eq!(of("127.0.0.1"), None);
        assert_eq!(of("::1"), None);
    }

    #[test]
    fn datagrams_count_from_whoever_may_send_them() {
        let of = |local, remote| verdict(udp, local, remote, 7);
        let nobody = ("0.0.0.0", 0);
        assert_eq!(of(("0.0.0.0", 53), nobody), Some(Interface::Udp));
        assert_eq!(of(("127.0.0.1", 53), nobody), None);
        assert_eq!(of(("0.0.0.0", 0), nobody), None);
        let peer = |address| of(("0.0.0.0", 4000), (address, 53));
        assert_eq!(peer("10.77.0.1"), Some(Interface::Udp));
        assert_eq!(peer("127.0.0.1"), None);
    }

    #[test]
    fn a_raw_socket_tells_its_protocol() {
        let found = verdict(raw, ("0.0.0.0", 1), ("0.0.0.0", 0), 7);
        assert_eq!(found, Some(Interface::OtherIp { protocol: 1 }));
    }

    #[test]
    fn a_packet_socket_is_found_by_its_inode() {
        let head = "sk       RefCnt Type Proto  Iface R Rmem   User   Inode";
        let line = "ffff8881002f4000 3      3    0003   2     1 0      0      20931";
        assert_eq!(inode(head, 8), None);
        assert_eq!(inode(line, 8), Some(20931));
    }

    #[test]
    fn descriptors_name_sockets() {
        assert_eq!(socket_inode("socket:[4711]"), Some(4711));
        assert_eq!(socket_inode("pipe:[4711]"), None);
        assert_eq!(socket_inode("socket:[x]"), None);
    }

    #[test]
    fn shared_mappings_are_told_from_private_ones() {
        let object = |a: u64, b| ObjectId {
            kind: ObjectKind::SharedMemory,
            a: a << 32,
            b,
        };
        for (line, expected) in [
            (
                "7f0000000000-7f0000001000 rw-s 00000000 00:01 1027    /memfd:x (deleted)",
                Some((object(1, 1027), Direction::Both)),
            ),
            (
                "7f0000000000-7f0000001000 r--s 00000000 fe:02 12      /a b",
                Some((object((0xfe << 20) | 2, 12), Direction::Reads)),
            ),
            (
                "7f0000000000-7f0000001000 rw-p 00000000 fe:02 12 /lib/x",
                None,
            ),
            ("7f0000000000-7f0000001000 rw-p 00000000 00:00 0", None),
            (
                "7f0000000000-7f0000001000 rw-s 00000000 00:0e 1049  anon_inode:[io_uring]",
                None,
            ),
            ("", None),
        ] {
            let found = shared(line).map(|shared| (shared.object, shared.direction));
            assert_eq!(found, expected, "{line}");
        }
    }

    #[test]
    fn sockets_of_this_process_are_found() {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let inner = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (_one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let task = Task {
            id: depgraph::ProcessId {
                pid: std::process::id(),
                start: 0,
            },
            parent: 0,
            tracer: None,
            is_kernel: false,
            name: String::new(),
        };
        let found: Vec<What> = edges(&[task], &HashSet::new())
            .into_iter()
            .map(|edge| edge.what)
            .collect();
        let listening = |listener: &std::net::TcpListener| {
            What::External(Interface::TcpListening, listener.local_addr().ok())
        };
        assert!(found.contains(&listening(&listener)), "{found:?}");
        assert!(!found.contains(&listening(&inner)), "{found:?}");
        assert!(!found.contains(&What::Unknown), "{found:?}");
    }
}
