//! Sockets within the machine.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;

use super::group::Group;
use super::group::Side::{A, B};
use super::group::{hear, heard, say};
use super::sys::{self, Address};
use crate::Outcome;

const LOOPBACK4: &str = "127.0.0.1:0";
const LOOPBACK6: &str = "[::1]:0";

pub(super) fn tcp4(group: &Group) -> Outcome {
    tcp(group, LOOPBACK4)
}

pub(super) fn tcp6(group: &Group) -> Outcome {
    tcp(group, LOOPBACK6)
}

fn tcp(group: &Group, loopback: &str) -> Outcome {
    let listener = TcpListener::bind(loopback)?;
    let address = listener.local_addr()?;
    group.start(B, &[listener.as_fd()], |b| {
        b.begin()?;
        let (stream, _) = listener.accept()?;
        hear(&stream)?;
        say(&stream)
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        let stream = TcpStream::connect(address)?;
        say(&stream)?;
        hear(&stream)
    })?;
    Ok(())
}

pub(super) fn udp4(group: &Group) -> Outcome {
    udp(group, LOOPBACK4)
}

pub(super) fn udp6(group: &Group) -> Outcome {
    udp(group, LOOPBACK6)
}

fn udp(group: &Group, loopback: &str) -> Outcome {
    let socket = UdpSocket::bind(loopback)?;
    let address: SocketAddr = socket.local_addr()?;
    group.start(B, &[socket.as_fd()], |b| {
        b.begin()?;
        let mut word = [0; 4];
        let (count, sender) = socket.recv_from(&mut word)?;
        socket.send_to(&word[..count], sender)?;
        Ok(())
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        let socket = UdpSocket::bind(loopback)?;
        socket.send_to(b"word", address)?;
        let mut word = [0; 4];
        let count = socket.recv(&mut word)?;
        heard(&word[..count])
    })?;
    Ok(())
}

pub(super) fn vsock_stream() -> std::io::Result<File> {
    sys::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)
}

pub(super) fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    let mut address = libc::sockaddr_vm::empty();
    address.svm_family = sys::family(libc::AF_VSOCK);
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

pub(super) fn vsock(group: &Group) -> Outcome {
    let listener = vsock_stream()?;
    // Fails without the kernel's module for it.
    let any_port = vsock_address(libc::VMADDR_CID_LOCAL, libc::VMADDR_PORT_ANY);
    sys::bind(&listener, &any_port)?;
    sys::listen(&listener)?;
    let address: libc::sockaddr_vm = sys::local_address(&listener)?;
    group.start(B, &[listener.as_fd()], |b| {
        b.begin()?;
        let stream = sys::accept(&listener)?;
        hear(&stream)?;
        say(&stream)
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        let stream = vsock_stream()?;
        sys::connect(&stream, &address)?;
        say(&stream)?;
        hear(&stream)
    })?;
    Ok(())
}

pub(super) fn netlink(group: &Group) -> Outcome {
    let socket = || sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_USERSOCK);
    let receiver = socket()?;
    let mut anybody = libc::sockaddr_nl::empty();
    anybody.nl_family = sys::family(libc::AF_NETLINK);
    sys::bind(&receiver, &anybody)?;
    let address: libc::sockaddr_nl = sys::local_address(&receiver)?;
    group.start(B, &[receiver.as_fd()], |b| {
        b.begin()?;
        hear(&receiver)
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        sys::send_to(&socket()?, b"word", &address)?;
        Ok(())
    })?;
    Ok(())
}
