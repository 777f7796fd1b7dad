//! Locks: who gets one learns that the other has let go.

#![expect(unsafe_code, reason = "record locks")]

use std::fs::File;
use std::io;

use super::group::Group;
use super::group::Side::{A, B};
use super::group::let_block;
use super::sys::{check, raw};
use crate::Outcome;

type Lock = fn(&File) -> io::Result<()>;

pub(super) fn flock(group: &Group) -> Outcome {
    hand_over(group, File::lock, File::unlock)
}

pub(super) fn record(group: &Group) -> Outcome {
    hand_over(
        group,
        |file| record_lock(file, libc::F_WRLCK),
        |file| record_lock(file, libc::F_UNLCK),
    )
}

fn hand_over(group: &Group, lock: Lock, unlock: Lock) -> Outcome {
    let path = group.path("object");
    File::create_new(&path)?;
    let open = || File::options().read(true).write(true).open(&path);
    group.start(B, &[], |b| {
        b.begin()?;
        b.wait_for("locked")?;
        let file = open()?;
        b.mark("waiting")?;
        lock(&file)?;
        Ok(())
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        let file = open()?;
        lock(&file)?;
        a.mark("locked")?;
        a.wait_for("waiting")?;
        let_block();
        unlock(&file)?;
        Ok(())
    })?;
    Ok(())
}

fn record_lock(file: &File, kind: i32) -> io::Result<()> {
    // SAFETY: a plain C structure of numbers; zeros mean the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(kind).map_err(io::Error::other)?;
    // SAFETY: the structure is valid for the call.
    check(unsafe { libc::fcntl(raw(file), libc::F_SETLKW, &raw const lock) })?;
    Ok(())
}
