//! Files.

#![expect(
    unsafe_code,
    reason = "copies by a system call that the library may replace"
)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::ptr;

use super::group::Group;
use super::group::Side::{A, B};
use super::group::{hear, heard, let_block, say};
use super::mapping::{Mapping, PAGE};
use super::sys::{complete, raw};
use crate::Outcome;

pub(super) fn written(group: &Group) -> Outcome {
    let path = group.path("object");
    group.start(B, &[], |b| {
        b.begin()?;
        b.wait_for("written")?;
        hear(File::open(&path)?)
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        say(File::create_new(&path)?)?;
        a.mark("written")?;
        Ok(())
    })?;
    Ok(())
}

pub(super) fn appended(group: &Group) -> Outcome {
    let path = group.path("object");
    fs::write(&path, "what was there: ")?;
    group.start(B, &[], |b| {
        b.begin()?;
        b.wait_for("written")?;
        let text = fs::read(&path)?;
        heard(text.strip_prefix(b"what was there: ").unwrap_or(&text))
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        say(File::options().append(true).open(&path)?)?;
        a.mark("written")?;
        Ok(())
    })?;
    Ok(())
}

/// A file of two pages that holds nothing but zeros.
fn pages(group: &Group) -> Outcome {
    File::create_new(group.path("object"))?.set_len(2 * PAGE as u64)?;
    Ok(())
}

pub(super) fn mapped(group: &Group) -> Outcome {
    let path = group.path("object");
    pages(group)?;
    group.start(B, &[], |b| {
        b.begin()?;
        let memory = Mapping::read_only(&File::open(&path)?)?;
        memory.listen()
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        let file = File::options().read(true).write(true).open(&path)?;
        Mapping::shared(&file)?.tell();
        Ok(())
    })?;
    Ok(())
}

pub(super) fn mapped_privately(group: &Group) -> Outcome {
    let path = group.path("object");
    pages(group)?;
    group.start(B, &[], |b| {
        b.begin()?;
        b.wait_for("first")?;
        let memory = Mapping::private(&File::open(&path)?)?;
        memory.listen()?;
        b.mark("mapped")?;
        // A page that was not touched yet shows what the file has become.
        b.wait_for("second")?;
        memory.listen_at(PAGE)
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        let file = File::options().write(true).open(&path)?;
        file.write_all_at(b"word", 0)?;
        a.mark("first")?;
        a.wait_for("mapped")?;
        file.write_all_at(b"word", PAGE as u64)?;
        a.mark("second")?;
        Ok(())
    })?;
    Ok(())
}

pub(super) fn truncated(group: &Group) -> Outcome {
    let path = group.path("object");
    fs::write(&path, "word and more")?;
    group.start(B, &[], |b| {
        b.begin()?;
        b.wait_for("truncated")?;
        heard(&fs::read(&path)?)
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        File::options().write(true).open(&path)?.set_len(4)?;
        a.mark("truncated")?;
        Ok(())
    })?;
    Ok(())
}

pub(super) fn copied(group: &Group) -> Outcome {
    let (source, target) = (group.path("source"), group.path("object"));
    fs::write(&source, "word")?;
    group.start(B, &[], |b| {
        b.begin()?;
        b.wait_for("copied")?;
        hear(File::open(&target)?)
    })?;
    group.start(A, &[], |a| {
        a.begin()?;
        let (from, to) = (File::open(&source)?, File::create_new(&target)?);
        let here = ptr::null_mut();
        // SAFETY: both files are at their beginnings, no offsets are passed.
        let copied = unsafe { libc::copy_file_range(raw(&from), here, raw(&to), here, 4, 0) };
        complete(copied, 4)?;
        a.mark("copied")?;
        Ok(())
    })?;
    Ok(())
}

/// Both read what nobody writes.
pub(super) fn only_read(group: &Group) -> Outcome {
    let path = group.path("object");
    fs::write(&path, "word")?;
    for side in [B, A] {
        group.start(side, &[], |member| {
            member.begin()?;
            hear(File::open(&path)?)
        })?;
    }
    Ok(())
}

/// Both write what nobody reads.
pub(super) fn only_written(group: &Group) -> Outcome {
    let path = group.path("object");
    File::create_new(&path)?;
    for side in [B, A] {
        group.start(side, &[], |member| {
            member.begin()?;
            let file = File::options().write(true).open(&path)?;
            say(&file)?;
            // So that both have it open at a time.
            let_block();
            say(&file)
        })?;
    }
    Ok(())
}
