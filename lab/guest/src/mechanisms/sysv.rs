//! System V's and POSIX's objects.

#![expect(unsafe_code, reason = "system calls that the standard library lacks")]

use std::os::fd::{AsFd, OwnedFd};
use std::{io, ptr};

use super::group::Group;
use super::group::Side::{A, B};
use super::group::{heard, let_block};
use super::mapping::{Mapping, PAGE};
use super::sys::{c_path, check, complete, owned, raw};
use crate::Outcome;

const MODE: i32 = libc::IPC_CREAT | 0o600;

pub(super) fn shared_memory(group: &Group) -> Outcome {
    // SAFETY: no memory is involved.
    let id = check(unsafe { libc::shmget(libc::IPC_PRIVATE, PAGE, MODE) })?;
    group.start(B, &[], |b| {
        b.begin()?;
        let memory = Mapping::segment(id)?;
        memory.listen()?;
        // It lives on until the last has let go.
        // SAFETY: no memory is passed.
        check(unsafe { libc::shmctl(id, libc::IPC_RMID, ptr::null_mut()) })?;
        Ok(())
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        Mapping::segment(id)?.tell();
        Ok(())
    })?;
    Ok(())
}

#[repr(C)]
struct Message {
    kind: libc::c_long,
    text: [u8; 4],
}

pub(super) fn messages(group: &Group) -> Outcome {
    // SAFETY: no memory is involved.
    let id = check(unsafe { libc::msgget(libc::IPC_PRIVATE, MODE) })?;
    group.start(B, &[], |b| {
        b.begin()?;
        let mut message = Message {
            kind: 0,
            text: [0; 4],
        };
        // SAFETY: the text has room for four bytes.
        let received = unsafe { libc::msgrcv(id, (&raw mut message).cast(), 4, 0, 0) };
        complete(received, 4)?;
        // SAFETY: no memory is passed.
        check(unsafe { libc::msgctl(id, libc::IPC_RMID, ptr::null_mut()) })?;
        heard(&message.text)
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        let message = Message {
            kind: 1,
            text: *b"word",
        };
        // SAFETY: the text has four bytes.
        check(unsafe { libc::msgsnd(id, (&raw const message).cast(), 4, 0) })?;
        Ok(())
    })?;
    Ok(())
}

/// Changes the first semaphore of a set; blocks while it would become negative.
fn change(id: i32, by: i16) -> io::Result<()> {
    let mut operation = libc::sembuf {
        sem_num: 0,
        sem_op: by,
        sem_flg: 0,
    };
    // SAFETY: there is one operation.
    check(unsafe { libc::semop(id, &raw mut operation, 1) })?;
    Ok(())
}

pub(super) fn semaphore(group: &Group) -> Outcome {
    // SAFETY: no memory is involved.
    let id = check(unsafe { libc::semget(libc::IPC_PRIVATE, 1, MODE) })?;
    group.start(B, &[], |b| {
        b.begin()?;
        b.mark("waiting")?;
        change(id, -1)?;
        // SAFETY: this command takes no argument.
        check(unsafe { libc::semctl(id, 0, libc::IPC_RMID) })?;
        Ok(())
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        a.wait_for("waiting")?;
        let_block();
        change(id, 1)?;
        Ok(())
    })?;
    Ok(())
}

pub(super) fn posix_queue(group: &Group) -> Outcome {
    let queue = make_queue(group)?;
    group.start(B, &[queue.as_fd()], |b| {
        b.begin()?;
        let mut word = [0_u8; 4];
        let (place, room) = (word.as_mut_ptr().cast(), word.len());
        // SAFETY: the place has that room; the priority is not asked for.
        check(unsafe { libc::mq_receive(raw(&queue), place, room, ptr::null_mut()) })?;
        heard(&word)
    })?;
    group.start(A, &[queue.as_fd()], |a| {
        a.begin()?;
        // SAFETY: the string has that length.
        check(unsafe { libc::mq_send(raw(&queue), c"word".as_ptr(), 4, 0) })?;
        Ok(())
    })?;
    Ok(())
}

/// A queue that lives as long as its descriptors.
fn make_queue(group: &Group) -> io::Result<OwnedFd> {
    let name = c_path(format!("/lab-{}", group.name().replace('/', "-")).as_ref())?;
    // SAFETY: a plain C structure of numbers.
    let mut limits: libc::mq_attr = unsafe { std::mem::zeroed() };
    limits.mq_maxmsg = 1;
    limits.mq_msgsize = 4;
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    // SAFETY: the name and the limits are valid for the call; so many arguments go with the flags.
    let queue = owned(unsafe { libc::mq_open(name.as_ptr(), flags, 0o600, &raw const limits) })?;
    // SAFETY: the name is a string.
    check(unsafe { libc::mq_unlink(name.as_ptr()) })?;
    Ok(queue)
}
