//! Reaching into another process.

#![expect(unsafe_code, reason = "system calls that the standard library lacks")]

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::atomic::Ordering;

use super::group::Group;
use super::group::Side::{A, B};
use super::group::{hear, heard, say};
use super::mapping::Mapping;
use super::sys::{self, Pid, complete, owned_long, raw};
use crate::Outcome;

const WORD: [u8; 4] = *b"word";

/// a changes b's memory.
fn changed(group: &Group, change: fn(Pid, usize) -> Outcome) -> Outcome {
    let memory = Mapping::own_memory()?;
    let b = group.start(B, &[], |b| {
        b.begin()?;
        memory.listen()?;
        heard(&memory.word(0).load(Ordering::Acquire).to_ne_bytes())
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        change(b, memory.address())
    })?;
    Ok(())
}

/// A part of another process's memory.
fn remote(address: usize) -> libc::iovec {
    libc::iovec {
        iov_base: ptr::without_provenance_mut(address),
        iov_len: WORD.len(),
    }
}

pub(super) fn vm_write(group: &Group) -> Outcome {
    changed(group, |b, address| {
        let mut word = WORD;
        let ours = libc::iovec {
            iov_base: word.as_mut_ptr().cast(),
            iov_len: word.len(),
        };
        let theirs = remote(address);
        // SAFETY: our part is valid; the other process expects the change of its own.
        let moved =
            unsafe { libc::process_vm_writev(b, &raw const ours, 1, &raw const theirs, 1, 0) };
        complete(moved, word.len())?;
        Ok(())
    })
}

/// b reads a's memory.
pub(super) fn vm_read(group: &Group) -> Outcome {
    let memory = Mapping::own_memory()?;
    let a = group.start(A, &[], |a| {
        a.begin()?;
        memory.place(0, WORD);
        a.mark("set")?;
        Ok(())
    })?;
    group.start(B, &[], |b| {
        b.begin()?;
        b.wait_for("set")?;
        let mut word = [0; 4];
        let ours = libc::iovec {
            iov_base: word.as_mut_ptr().cast(),
            iov_len: word.len(),
        };
        let theirs = remote(memory.address());
        // SAFETY: our part has room for what is read.
        let moved =
            unsafe { libc::process_vm_readv(a, &raw const ours, 1, &raw const theirs, 1, 0) };
        complete(moved, word.len())?;
        heard(&word)
    })?;
    Ok(())
}

pub(super) fn proc_mem(group: &Group) -> Outcome {
    changed(group, |b, address| {
        let memory = File::options().write(true).open(format!("/proc/{b}/mem"))?;
        memory.write_all_at(&WORD, address as u64)?;
        Ok(())
    })
}

pub(super) fn ptrace(group: &Group) -> Outcome {
    changed(group, |b, address| {
        trace(libc::PTRACE_SEIZE, b, 0, 0)?;
        trace(libc::PTRACE_INTERRUPT, b, 0, 0)?;
        sys::wait(b)?;
        let word = u32::from_ne_bytes(WORD);
        trace(libc::PTRACE_POKEDATA, b, address, word as usize)?;
        trace(libc::PTRACE_DETACH, b, 0, 0)?;
        Ok(())
    })
}

fn trace(request: libc::c_uint, process: Pid, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: none of the requests used here writes to this process's memory.
    let result = unsafe { libc::ptrace(request, process, address, data) };
    sys::check(result)?;
    Ok(())
}

/// a takes the end of a pipe that only b has, and writes to it.
pub(super) fn take_descriptor(group: &Group) -> Outcome {
    let (reader, writer) = io::pipe()?;
    let b = group.start(B, &[reader.as_fd(), writer.as_fd()], |b| {
        b.begin()?;
        hear(&reader)
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        let process = sys::pidfd(b)?;
        // SAFETY: no memory is involved.
        let taken = owned_long(unsafe {
            libc::syscall(libc::SYS_pidfd_getfd, raw(&process), raw(&writer), 0)
        })?;
        say(File::from(taken))
    })?;
    Ok(())
}
