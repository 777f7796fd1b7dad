//! Contact with the outside. The clean group does the same within the machine.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::thread::sleep;
use std::time::Duration;

use super::group::Group;
use super::group::Side::{A, B};
use super::group::{Lacking, Member, hear, say};
use super::sockets::{self, vsock_address, vsock_stream};
use super::sys::{self, Address};
use crate::Outcome;

/// Longest wait for an answer that need not come.
const ANSWER: Duration = Duration::from_secs(2);
/// Where the outside may answer datagrams.
const ECHO_PORT: u16 = 7007;
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100);
/// A protocol for experiments.
const ETHERTYPE: u16 = 0x88b5;
/// Between two tries at a busy line.
const BUSY: Duration = Duration::from_millis(20);

/// The tainted group's only member.
fn alone(group: &Group, contact: impl FnOnce() -> Outcome) -> Outcome {
    group.start(A, &[], |a| {
        a.wait_for_go()?;
        contact()
    })?;
    Ok(())
}

/// An attempt is contact enough.
fn attempted<T>(result: io::Result<T>) -> Outcome {
    const UNANSWERED: [ErrorKind; 7] = [
        ErrorKind::TimedOut,
        ErrorKind::WouldBlock,
        ErrorKind::ConnectionRefused,
        ErrorKind::ConnectionReset,
        ErrorKind::HostUnreachable,
        ErrorKind::NetworkUnreachable,
        ErrorKind::AddrNotAvailable,
    ];
    match result {
        Err(error) if !UNANSWERED.contains(&error.kind()) => Err(error.into()),
        _ => Ok(()),
    }
}

pub(super) fn udp4_send(group: &Group) -> Outcome {
    if !group.tainted() {
        return sockets::udp4(group);
    }
    // The contact that every tainted group has.
    group.start(A, &[], Member::begin)?;
    Ok(())
}

pub(super) fn udp4_recv(group: &Group) -> Outcome {
    if !group.tainted() {
        return sockets::udp4(group);
    }
    alone(group, || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((*group.outside.ip(), ECHO_PORT))?;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.send(b"word")?;
        attempted(socket.recv(&mut [0; 4]))
    })
}

pub(super) fn tcp4_connect(group: &Group) -> Outcome {
    if !group.tainted() {
        return sockets::tcp4(group);
    }
    alone(group, || {
        let outside = SocketAddr::from(group.outside);
        attempted(TcpStream::connect_timeout(&outside, ANSWER))
    })
}

pub(super) fn udp6(group: &Group) -> Outcome {
    if !group.tainted() {
        return sockets::udp6(group);
    }
    alone(group, || {
        let socket = UdpSocket::bind("[::]:0")?;
        attempted(socket.send_to(b"word", (OUTSIDE6, group.outside.port())))
    })
}

pub(super) fn tcp6(group: &Group) -> Outcome {
    if !group.tainted() {
        return sockets::tcp6(group);
    }
    alone(group, || {
        let outside = SocketAddr::from((OUTSIDE6, group.outside.port()));
        attempted(TcpStream::connect_timeout(&outside, ANSWER))
    })
}

/// A socket that sends and receives ICMP messages.
fn icmp() -> io::Result<UdpSocket> {
    let socket = sys::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)?;
    Ok(OwnedFd::from(socket).into())
}

fn ping(to: Ipv4Addr) -> Outcome {
    // A request for an echo: its type, its code and the sum over both.
    icmp()?.send_to(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0], (to, 0))?;
    Ok(())
}

pub(super) fn raw_icmp(group: &Group) -> Outcome {
    if group.tainted() {
        return alone(group, || ping(*group.outside.ip()));
    }
    let receiver = icmp()?;
    // Only what comes from there.
    receiver.connect((Ipv4Addr::LOCALHOST, 0))?;
    group.start(B, &[receiver.as_fd()], |b| {
        b.begin()?;
        receiver.recv(&mut [0; 64])?;
        Ok(())
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        ping(Ipv4Addr::LOCALHOST)
    })?;
    Ok(())
}

/// The address of all stations on a link.
fn everybody(interface: &CStr) -> io::Result<libc::sockaddr_ll> {
    let mut address = libc::sockaddr_ll::empty();
    address.sll_family = sys::family(libc::AF_PACKET);
    address.sll_protocol = ETHERTYPE.to_be();
    address.sll_ifindex = sys::interface(interface)?;
    address.sll_halen = 6;
    address.sll_addr[..6].fill(0xff);
    Ok(address)
}

fn send_frame(to: &libc::sockaddr_ll) -> Outcome {
    let mut frame = [0; 64];
    frame[..6].fill(0xff);
    frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
    // Of no protocol: it does not receive.
    let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    sys::send_to(&socket, &frame, to)?;
    Ok(())
}

pub(super) fn packet(group: &Group) -> Outcome {
    if group.tainted() {
        let address = everybody(c"eth0")?;
        return alone(group, || send_frame(&address));
    }
    let address = everybody(c"lo")?;
    let receiver = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    sys::bind(&receiver, &address)?;
    group.start(B, &[receiver.as_fd()], |b| {
        b.begin()?;
        (&receiver).read_exact(&mut [0; 64])?;
        Ok(())
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        send_frame(&address)
    })?;
    Ok(())
}

/// Starts a new line on a device.
fn write_line(device: &str) -> Outcome {
    let opened = File::options()
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(device);
    let mut opened = opened.map_err(|error| Lacking(format!("{device}: {error}")))?;
    // The line may be busy with what others write.
    loop {
        match opened.write_all(b"\n") {
            Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(BUSY),
            other => return Ok(other?),
        }
    }
}

/// The clean group uses a terminal that has no line.
pub(super) fn serial(group: &Group) -> Outcome {
    if group.tainted() {
        return alone(group, || write_line("/dev/ttyS0"));
    }
    let (master, slave) = sys::terminal()?;
    group.start(B, &[master.as_fd()], |b| {
        b.begin()?;
        hear(&master)
    })?;
    group.start(A, &[slave.as_fd()], |a| {
        a.begin()?;
        say(&slave)
    })?;
    Ok(())
}

/// The clean group uses devices that lead nowhere.
pub(super) fn console(group: &Group) -> Outcome {
    if group.tainted() {
        return alone(group, || write_line("/dev/console"));
    }
    group.start(B, &[], |b| {
        b.begin()?;
        File::open("/dev/zero")?.read_exact(&mut [0; 4])?;
        Ok(())
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        write_line("/dev/null")
    })?;
    Ok(())
}

pub(super) fn vsock(group: &Group) -> Outcome {
    if !group.tainted() {
        return sockets::vsock(group);
    }
    // Whether there is such a thing at all.
    vsock_stream()?;
    alone(group, || {
        let address = vsock_address(libc::VMADDR_CID_HOST, group.outside.port().into());
        attempted(sys::connect(&vsock_stream()?, &address))
    })
}
