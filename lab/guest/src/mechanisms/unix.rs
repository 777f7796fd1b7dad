//! Unix sockets.

#![expect(unsafe_code, reason = "descriptors that are passed over sockets")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use super::group::Group;
use super::group::Side::{A, B};
use super::group::{hear, say};
use super::sys::{self, Address, check, complete, owned};
use crate::Outcome;

pub(super) fn pair(group: &Group) -> Outcome {
    let (ours, theirs) = UnixStream::pair()?;
    group.start(B, &[theirs.as_fd()], |b| {
        b.begin()?;
        hear(&theirs)?;
        say(&theirs)
    })?;
    group.start(A, &[ours.as_fd()], |a| {
        a.begin()?;
        say(&ours)?;
        hear(&ours)
    })?;
    Ok(())
}

/// b is blocked before the start.
pub(super) fn blocked(group: &Group) -> Outcome {
    let (ours, theirs) = UnixStream::pair()?;
    group.start(B, &[theirs.as_fd()], |b| {
        b.ready()?;
        hear(&theirs)
    })?;
    group.start(A, &[ours.as_fd()], |a| {
        a.begin()?;
        say(&ours)
    })?;
    Ok(())
}

pub(super) fn stream(group: &Group) -> Outcome {
    connect(group, &SocketAddr::from_pathname(group.path("socket"))?)
}

pub(super) fn abstracted(group: &Group) -> Outcome {
    let name = group.path("socket");
    let name = SocketAddr::from_abstract_name(name.as_os_str().as_encoded_bytes())?;
    connect(group, &name)
}

fn connect(group: &Group, address: &SocketAddr) -> Outcome {
    let listener = UnixListener::bind_addr(address)?;
    group.start(B, &[listener.as_fd()], |b| {
        b.begin()?;
        let (stream, _) = listener.accept()?;
        hear(&stream)?;
        say(&stream)
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        let stream = UnixStream::connect_addr(address)?;
        say(&stream)?;
        hear(&stream)
    })?;
    Ok(())
}

pub(super) fn datagram(group: &Group) -> Outcome {
    let path = group.path("socket");
    let socket = File::from(OwnedFd::from(UnixDatagram::bind(&path)?));
    group.start(B, &[socket.as_fd()], |b| {
        b.begin()?;
        hear(&socket)
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        UnixDatagram::unbound()?.send_to(b"word", &path)?;
        Ok(())
    })?;
    Ok(())
}

pub(super) fn sequenced(group: &Group) -> Outcome {
    let address = unix_address(&group.path("socket"))?;
    let socket = || sys::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0);
    let listener = socket()?;
    sys::bind(&listener, &address)?;
    sys::listen(&listener)?;
    group.start(B, &[listener.as_fd()], |b| {
        b.begin()?;
        let socket = sys::accept(&listener)?;
        hear(&socket)?;
        say(&socket)
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        let socket = socket()?;
        sys::connect(&socket, &address)?;
        say(&socket)?;
        hear(&socket)
    })?;
    Ok(())
}

fn unix_address(path: &Path) -> io::Result<libc::sockaddr_un> {
    let mut address = libc::sockaddr_un::empty();
    address.sun_family = sys::family(libc::AF_UNIX);
    let path = path.as_os_str().as_encoded_bytes();
    // The last byte ends the path.
    if path.len() >= address.sun_path.len() {
        return Err(io::Error::other("the path is too long for a socket"));
    }
    for (to, byte) in address.sun_path.iter_mut().zip(path) {
        *to = byte.cast_signed();
    }
    Ok(address)
}

/// a passes the end of a pipe of its own to b, which writes to it.
pub(super) fn rights(group: &Group) -> Outcome {
    let (ours, theirs) = UnixStream::pair()?;
    group.start(B, &[theirs.as_fd()], |b| {
        b.begin()?;
        say(File::from(receive(&theirs)?))
    })?;
    group.start(A, &[ours.as_fd()], |a| {
        a.begin()?;
        let (reader, writer) = io::pipe()?;
        send(&ours, &writer)?;
        drop(writer);
        hear(reader)
    })?;
    Ok(())
}

/// Room for a control message with one descriptor, aligned as its head requires.
#[repr(C, align(8))]
struct Control([u8; 24]);

/// A message of one byte with one descriptor; calls with its head and the place of the descriptor.
fn message<T>(run: impl FnOnce(&mut libc::msghdr, *mut libc::cmsghdr) -> T) -> T {
    let mut byte = [0_u8];
    let mut control = Control([0; 24]);
    let mut part = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    // SAFETY: a plain C structure of numbers and pointers.
    let mut head: libc::msghdr = unsafe { std::mem::zeroed() };
    head.msg_iov = &raw mut part;
    head.msg_iovlen = 1;
    head.msg_control = (&raw mut control).cast();
    head.msg_controllen = size_of::<Control>();
    // SAFETY: the head is complete, and the room suffices for a control message.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const head) };
    run(&mut head, first)
}

fn send(socket: &UnixStream, passed: &impl AsRawFd) -> io::Result<()> {
    message(|head, control| {
        let size = RawFd::BITS / u8::BITS;
        // SAFETY: the control message is aligned and has room for one descriptor.
        unsafe {
            (*control).cmsg_level = libc::SOL_SOCKET;
            (*control).cmsg_type = libc::SCM_RIGHTS;
            (*control).cmsg_len = libc::CMSG_LEN(size) as usize;
            let data = libc::CMSG_DATA(control).cast::<RawFd>();
            data.write_unaligned(passed.as_raw_fd());
        }
        // SAFETY: all that the head points to is valid.
        complete(unsafe { libc::sendmsg(socket.as_raw_fd(), head, 0) }, 1)
    })
}

fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    message(|head, control| {
        // SAFETY: all that the head points to is valid.
        check(unsafe { libc::recvmsg(socket.as_raw_fd(), head, 0) })?;
        if head.msg_controllen < size_of::<libc::cmsghdr>() + size_of::<RawFd>() {
            return Err(io::Error::other("no descriptor came"));
        }
        // SAFETY: the kernel has filled the control message.
        owned(unsafe { libc::CMSG_DATA(control).cast::<RawFd>().read_unaligned() })
    })
}
