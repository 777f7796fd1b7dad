//! Descriptors that report events.

#![expect(unsafe_code, reason = "system calls that the standard library lacks")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;

use super::group::Group;
use super::group::Side::{A, B};
use super::group::say;
use super::sys::{c_path, check, owned, raw};
use crate::Outcome;

pub(super) fn eventfd(group: &Group) -> Outcome {
    // SAFETY: no memory is involved.
    let event = File::from(owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?);
    group.start(B, &[event.as_fd()], |b| {
        b.begin()?;
        (&event).read_exact(&mut [0; 8])?;
        Ok(())
    })?;
    group.start(A, &[event.as_fd()], |a| {
        a.begin()?;
        (&event).write_all(&1_u64.to_ne_bytes())?;
        Ok(())
    })?;
    Ok(())
}

/// b watches a directory, in which a creates a file.
pub(super) fn inotify(group: &Group) -> Outcome {
    let watched = group.path("watched");
    fs::create_dir(&watched)?;
    group.start(B, &[], |b| {
        b.begin()?;
        // SAFETY: no memory is involved.
        let mut watch = File::from(owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) })?);
        let path = c_path(&watched)?;
        let events = libc::IN_CREATE | libc::IN_MODIFY;
        // SAFETY: the kernel reads the path up to its end and keeps no pointer.
        check(unsafe { libc::inotify_add_watch(raw(&watch), path.as_ptr(), events) })?;
        b.mark("watching")?;
        let count = watch.read(&mut [0; 4096])?;
        if count == 0 {
            return Err("no event".into());
        }
        Ok(())
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        a.wait_for("watching")?;
        say(File::create_new(watched.join("file"))?)
    })?;
    Ok(())
}
