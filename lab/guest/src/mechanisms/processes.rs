//! Being born, replaced and waited for.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};

use super::group::Side::{A, B};
use super::group::{Group, Member};
use super::sys;
use crate::Outcome;

/// b is born after a has had its contact, and knows what a knew.
pub(super) fn fork(group: &Group) -> Outcome {
    group.start(A, &[], |a| {
        a.begin()?;
        group.start(B, &[], |_| Ok(()))?;
        Ok(())
    })?;
    Ok(())
}

/// The same, but all that b has from a is its arguments.
pub(super) fn exec(group: &Group) -> Outcome {
    group.start(A, &[], |a| {
        a.begin()?;
        group.start(B, &[], |b| {
            let mut itself = Command::new("/proc/self/exe");
            itself.arg("mechanisms-exec");
            Err(itself.arg(b.file("done")).arg(b.name()).exec().into())
        })?;
        Ok(())
    })?;
    Ok(())
}

/// What a process of [`exec`] goes on as.
pub(crate) fn replaced(done: &str, name: &str) -> Outcome {
    sys::set_name(name)?;
    File::create_new(done)?;
    loop {
        sys::pause();
    }
}

/// b waits for the end of a, its child.
pub(super) fn exit_wait(group: &Group) -> Outcome {
    group.start(B, &[], |b| {
        let child = group.start(A, &[], |a| {
            a.begin()?;
            a.done()?;
            exit(0)
        })?;
        b.ready()?;
        if sys::wait(child)? {
            return Ok(());
        }
        Err("a ended badly".into())
    })?;
    Ok(())
}

/// a is b's parent; that is long past when a has its contact.
pub(super) fn parent_only(group: &Group) -> Outcome {
    group.start(A, &[], |a| {
        group.start(B, &[], Member::begin)?;
        a.begin()
    })?;
    Ok(())
}
