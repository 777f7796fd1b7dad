//! Memory that is shared.

#![expect(unsafe_code, reason = "system calls that the standard library lacks")]

use std::fs::{self, File};
use std::os::fd::AsFd;

use super::group::Group;
use super::group::Side::{A, B};
use super::group::let_block;
use super::mapping::{Mapping, PAGE};
use super::sys::{c_path, owned};
use crate::Outcome;

pub(super) fn memfd(group: &Group) -> Outcome {
    // SAFETY: the kernel reads the string up to its end and keeps no pointer.
    let file = File::from(owned(unsafe {
        libc::memfd_create(c"memfd".as_ptr(), libc::MFD_CLOEXEC)
    })?);
    file.set_len(PAGE as u64)?;
    group.start(B, &[file.as_fd()], |b| {
        b.begin()?;
        Mapping::shared(&file)?.listen()
    })?;
    group.start(A, &[file.as_fd()], |a| {
        a.begin()?;
        Mapping::shared(&file)?.tell();
        Ok(())
    })?;
    Ok(())
}

pub(super) fn shm_open(group: &Group) -> Outcome {
    // The guest's /dev may have none; any other failure shows when it is used.
    let _ = fs::create_dir("/dev/shm");
    let name = group.path("shared").display().to_string();
    let name = c_path(format!("/{}", name.replace('/', "-")).as_ref())?;
    group.start(B, &[], |b| {
        b.begin()?;
        b.wait_for("made")?;
        // SAFETY: the kernel reads the string up to its end and keeps no pointer.
        let file = owned(unsafe { libc::shm_open(name.as_ptr(), libc::O_RDONLY, 0) })?;
        // SAFETY: as above.
        unsafe { libc::shm_unlink(name.as_ptr()) };
        let memory = Mapping::read_only(&file)?;
        b.mark("mapped")?;
        memory.listen()
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        // SAFETY: the kernel reads the string up to its end and keeps no pointer.
        let file = File::from(owned(unsafe {
            libc::shm_open(name.as_ptr(), flags, 0o600)
        })?);
        file.set_len(PAGE as u64)?;
        let memory = Mapping::shared(&file)?;
        a.mark("made")?;
        a.wait_for("mapped")?;
        memory.tell();
        Ok(())
    })?;
    Ok(())
}

pub(super) fn anonymous(group: &Group) -> Outcome {
    let memory = Mapping::shared_memory()?;
    group.start(B, &[], |b| {
        b.begin()?;
        memory.listen()
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        memory.tell();
        Ok(())
    })?;
    Ok(())
}

pub(super) fn mapped_before(group: &Group) -> Outcome {
    let file = File::create_new(group.path("object"))?;
    file.set_len(PAGE as u64)?;
    drop(file);
    let map = || {
        let mut options = File::options();
        Mapping::shared(&options.read(true).write(true).open(group.path("object"))?)
    };
    group.start(B, &[], |b| {
        let memory = map()?;
        b.begin()?;
        memory.listen()
    })?;
    group.start(A, &[], |a| {
        let memory = map()?;
        a.begin()?;
        memory.tell();
        Ok(())
    })?;
    Ok(())
}

pub(super) fn futex(group: &Group) -> Outcome {
    let memory = Mapping::shared_memory()?;
    group.start(B, &[], |b| {
        b.begin()?;
        b.mark("waiting")?;
        memory.wait()?;
        Ok(())
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        a.wait_for("waiting")?;
        let_block();
        memory.tell();
        memory.wake()?;
        Ok(())
    })?;
    Ok(())
}
