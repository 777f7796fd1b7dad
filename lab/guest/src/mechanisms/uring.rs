//! The same through `io_uring`.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use super::group::Side::{A, B};
use super::group::{Group, Lacking, hear, heard, say};
use super::ring::{ASYNC, POLLED, Ring};
use crate::Outcome;

const WORD: &[u8; 4] = b"word";

/// Whether there are such rings: an administrator may have forbidden them.
fn probe(setup: u32) -> Outcome {
    match Ring::new(setup, 0) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Err(Lacking(format!("io_uring: {error}")).into())
        }
        other => other.map(drop).map_err(Into::into),
    }
}

pub(super) fn pipe(group: &Group) -> Outcome {
    through_pipe(group, 0, 0)
}

pub(super) fn asynchronous(group: &Group) -> Outcome {
    through_pipe(group, 0, ASYNC)
}

pub(super) fn polled(group: &Group) -> Outcome {
    through_pipe(group, POLLED, 0)
}

fn through_pipe(group: &Group, setup: u32, flags: u8) -> Outcome {
    probe(setup)?;
    let (reader, writer) = io::pipe()?;
    group.start(B, &[reader.as_fd()], |b| {
        b.begin()?;
        let mut word = [0; 4];
        Ring::kept(setup, flags)?.read(&reader, &mut word)?;
        heard(&word)
    })?;
    group.start(A, &[writer.as_fd()], |a| {
        a.begin()?;
        Ring::kept(setup, flags)?.write(&writer, WORD)?;
        Ok(())
    })?;
    Ok(())
}

pub(super) fn send(group: &Group) -> Outcome {
    probe(0)?;
    if group.tainted() {
        return sender(group, "0.0.0.0:0", group.outside.into());
    }
    let receiver = UdpSocket::bind("127.0.0.1:0")?;
    group.start(B, &[receiver.as_fd()], |b| {
        b.begin()?;
        let mut word = [0; 4];
        let count = receiver.recv(&mut word)?;
        heard(&word[..count])
    })?;
    sender(group, "127.0.0.1:0", receiver.local_addr()?)
}

fn sender(group: &Group, from: &str, to: SocketAddr) -> Outcome {
    group.start(A, &[], |a| {
        // Its only contact is the one by the ring.
        a.wait_for_go()?;
        let socket = UdpSocket::bind(from)?;
        socket.connect(to)?;
        Ring::kept(0, 0)?.send(&socket, WORD)?;
        Ok(())
    })?;
    Ok(())
}

pub(super) fn splice(group: &Group) -> Outcome {
    probe(0)?;
    let (reader, writer) = io::pipe()?;
    group.start(B, &[reader.as_fd()], |b| {
        b.begin()?;
        hear(&reader)
    })?;
    group.start(A, &[writer.as_fd()], |a| {
        a.begin()?;
        let (own_reader, own_writer) = io::pipe()?;
        say(&own_writer)?;
        Ring::kept(0, 0)?.splice(&own_reader, &writer, 4)?;
        Ok(())
    })?;
    Ok(())
}
