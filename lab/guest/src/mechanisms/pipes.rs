//! Pipes, and the calls that move data into them without copying; terminals.

#![expect(unsafe_code, reason = "system calls that the standard library lacks")]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::ptr;

use super::group::Group;
use super::group::Side::{A, B};
use super::group::{hear, say};
use super::sys::{self, c_path, check, complete, raw};
use crate::Outcome;

pub(super) fn pipe(group: &Group) -> Outcome {
    fill_pipe(group, |pipe| say(pipe))
}

/// a fills a pipe, from which b reads.
fn fill_pipe(group: &Group, fill: fn(&io::PipeWriter) -> Outcome) -> Outcome {
    let (reader, writer) = io::pipe()?;
    group.start(B, &[reader.as_fd()], |b| {
        b.begin()?;
        hear(&reader)
    })?;
    group.start(A, &[writer.as_fd()], |a| {
        a.begin()?;
        fill(&writer)
    })?;
    Ok(())
}

pub(super) fn fifo(group: &Group) -> Outcome {
    let path = group.path("object");
    // SAFETY: the kernel reads the string up to its end and keeps no pointer.
    check(unsafe { libc::mkfifo(c_path(&path)?.as_ptr(), 0o600) })?;
    group.start(B, &[], |b| {
        b.begin()?;
        hear(File::open(&path)?)
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        say(File::options().write(true).open(&path)?)
    })?;
    Ok(())
}

/// b is blocked before the start.
pub(super) fn blocked(group: &Group) -> Outcome {
    let (reader, writer) = io::pipe()?;
    group.start(B, &[reader.as_fd()], |b| {
        b.ready()?;
        hear(&reader)
    })?;
    group.start(A, &[writer.as_fd()], |a| {
        a.begin()?;
        say(&writer)
    })?;
    Ok(())
}

pub(super) fn splice(group: &Group) -> Outcome {
    fill_pipe(group, |pipe| {
        let (own_reader, own_writer) = io::pipe()?;
        say(&own_writer)?;
        let none = ptr::null_mut();
        // SAFETY: pipes have no offsets.
        let moved = unsafe { libc::splice(raw(&own_reader), none, raw(pipe), none, 4, 0) };
        complete(moved, 4)?;
        Ok(())
    })
}

pub(super) fn tee(group: &Group) -> Outcome {
    fill_pipe(group, |pipe| {
        let (own_reader, own_writer) = io::pipe()?;
        say(&own_writer)?;
        // SAFETY: no memory is involved.
        complete(unsafe { libc::tee(raw(&own_reader), raw(pipe), 4, 0) }, 4)?;
        Ok(())
    })
}

pub(super) fn vmsplice(group: &Group) -> Outcome {
    fill_pipe(group, |pipe| {
        static WORD: [u8; 4] = *b"word";
        let part = libc::iovec {
            iov_base: WORD.as_ptr().cast_mut().cast(),
            iov_len: WORD.len(),
        };
        // SAFETY: the data live for ever, and nobody changes them.
        let moved = unsafe { libc::vmsplice(raw(pipe), &raw const part, 1, 0) };
        complete(moved, WORD.len())?;
        Ok(())
    })
}

pub(super) fn sendfile(group: &Group) -> Outcome {
    let path = group.path("object");
    fs::write(&path, "word")?;
    let (ours, theirs) = UnixStream::pair()?;
    group.start(B, &[theirs.as_fd()], |b| {
        b.begin()?;
        hear(&theirs)
    })?;
    group.start(A, &[ours.as_fd()], |a| {
        a.begin()?;
        let file = File::open(&path)?;
        // SAFETY: the file is read from where it is, no offset is passed.
        let moved = unsafe { libc::sendfile(raw(&ours), raw(&file), ptr::null_mut(), 4) };
        complete(moved, 4)?;
        Ok(())
    })?;
    Ok(())
}

pub(super) fn terminal(group: &Group) -> Outcome {
    let (master, slave) = sys::terminal()?;
    group.start(B, &[slave.as_fd()], |b| {
        b.begin()?;
        hear(&slave)?;
        say(&slave)
    })?;
    group.start(A, &[master.as_fd()], |a| {
        a.begin()?;
        say(&master)?;
        hear(&master)
    })?;
    Ok(())
}
