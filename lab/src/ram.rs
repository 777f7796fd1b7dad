//! Guest memory, compared byte by byte.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::Vm;

const PAGE: usize = 4096;
const CHUNK: usize = 1 << 20;
const GIB: u64 = 1 << 30;

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamDiff {
    /// Pages compared.
    pub pages: u64,
    /// Guest physical addresses of the pages that differ.
    pub differing: Vec<u64>,
}

/// Compares all main memory of two paused VMs of machine type q35.
pub fn compare(one: &mut Vm, other: &mut Vm) -> Result<RamDiff> {
    for vm in [&mut *one, &mut *other] {
        let status = vm.status()?;
        if status == "running" {
            bail!("comparing memory needs paused VMs");
        }
    }
    let bytes = one.memory_bytes()?;
    if other.memory_bytes()? != bytes {
        bail!("the VMs have different amounts of memory");
    }
    let mut diff = RamDiff {
        pages: 0,
        differing: Vec::new(),
    };
    for (start, length) in q35_ranges(bytes) {
        compare_range(one, other, start, length, &mut diff)?;
    }
    Ok(diff)
}

/// Where q35 puts its memory: all below 4 GiB if it is less than 2816 MiB, otherwise 2 GiB there
/// and the rest from 4 GiB on (hw/i386/pc_q35.c).
fn q35_ranges(bytes: u64) -> Vec<(u64, u64)> {
    const LOW_MAX: u64 = 2816 << 20;
    if bytes < LOW_MAX {
        vec![(0, bytes)]
    } else {
        vec![(0, 2 * GIB), (4 * GIB, bytes - 2 * GIB)]
    }
}

fn compare_range(
    one: &mut Vm,
    other: &mut Vm,
    start: u64,
    length: u64,
    diff: &mut RamDiff,
) -> Result<()> {
    // In memory: gigabytes of guest memory on a disk would take minutes.
    let folder = crate::net::folder_in_memory()?;
    let mut files = Vec::new();
    for (name, vm) in [("one", one), ("other", other)] {
        let path = folder.path().join(name);
        let arguments = json!({"val": start, "size": length, "filename": path});
        vm.qmp("pmemsave", &arguments).context("saving memory")?;
        files.push(File::open(path)?);
    }
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = start;
    let end = start + length;
    while at < end {
        let count = usize::try_from((end - at).min(CHUNK as u64))?;
        files[0].read_exact(&mut left[..count])?;
        files[1].read_exact(&mut right[..count])?;
        if left[..count] != right[..count] {
            let pages = left[..count].chunks(PAGE).zip(right[..count].chunks(PAGE));
            for (i, (left, right)) in pages.enumerate() {
                if left != right {
                    diff.differing.push(at + (i * PAGE) as u64);
                }
            }
        }
        diff.pages += count.div_ceil(PAGE) as u64;
        at += count as u64;
    }
    Ok(())
}
