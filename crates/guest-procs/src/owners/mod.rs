//! Whose page frames are whose.
//!
//! A frame counts as a process's own if it is anonymous and nobody else maps it. Frames move and
//! processes fork at any time, so this is a hint as long as the process runs, and even when it is
//! frozen (see [`Quiet`](crate::Quiet)).

mod free;
mod free_rules;
mod hot;
mod maps;
mod pagemap;
mod scan;

use std::fs;
use std::io;
use std::ops::Range;

use depgraph::ProcessId;
use guest_proto::{PageSet, PageSetBuilder};

pub use free::{free_pages, free_pages_safe};
pub use free_rules::FreePages;
pub use hot::Sampler;

use crate::process::has_gone;
use crate::{about, is_same};
use pagemap::{Entry, Pagemap};

/// Runs that a set of frames may have: 16 bytes each while it is built. Enough for 4 GiB without
/// any two frames in a row.
const RUNS_MAX: usize = 1 << 20;
/// Looking for empty mappings pays from so much address space on ...
const SPARSE_BYTES: u64 = 256 << 20;
/// ... of which a process uses less than this part.
const SPARSE_PART: u64 = 4;

/// What belongs to some processes.
#[derive(Debug)]
pub struct Owned {
    /// Their frames.
    pub pages: PageSet,
    /// Those of them that were not there any more.
    pub gone: Vec<ProcessId>,
    /// Frames that found no room in the set.
    pub dropped: u64,
}

/// Anonymous memory that a process uses, in KiB, as far as the kernel tells: none for a kernel
/// thread.
pub fn anonymous_kib(process: ProcessId) -> io::Result<u64> {
    let path = format!("/proc/{}/status", process.pid);
    let status = fs::read(&path).map_err(about(&path))?;
    Ok(maps::kib(&String::from_utf8_lossy(&status), "RssAnon:").unwrap_or(0))
}

/// Reads page tables; keeps its buffer from one process to the next.
#[derive(Debug, Default)]
pub struct Scanner {
    pagemap: Pagemap,
}

impl Scanner {
    /// The frames that belong to one of these processes alone.
    pub fn owned(&mut self, processes: &[ProcessId]) -> io::Result<Owned> {
        self.collect(processes, Entry::is_owned)
    }

    fn collect(&mut self, processes: &[ProcessId], wanted: fn(Entry) -> bool) -> io::Result<Owned> {
        let mut all = PageSetBuilder::new(RUNS_MAX);
        let mut gone = Vec::new();
        for process in processes {
            match self.frames(*process, wanted) {
                // A second look: if the id changed hands meanwhile, these are somebody else's.
                Ok(frames) if is_same(*process) => all.absorb(frames),
                Ok(_) => gone.push(*process),
                Err(error) if has_gone(&error) => gone.push(*process),
                Err(error) => return Err(error),
            }
        }
        Ok(Owned {
            dropped: all.dropped(),
            pages: all.build(),
            gone,
        })
    }

    fn frames(
        &mut self,
        process: ProcessId,
        wanted: fn(Entry) -> bool,
    ) -> io::Result<PageSetBuilder> {
        let mut frames = PageSetBuilder::new(RUNS_MAX);
        let kib = anonymous_kib(process)?;
        if kib == 0 || !is_same(process) {
            return Ok(frames);
        }
        let file = pagemap::open(process.pid)?;
        for range in ranges(process.pid, kib << 10, &file)? {
            self.pagemap.read(&file, range, |entry| {
                if wanted(entry) {
                    frames.push(entry.frame());
                }
            })?;
        }
        Ok(frames)
    }
}

/// The addresses that are worth a look.
fn ranges(pid: u32, used: u64, pagemap: &fs::File) -> io::Result<Vec<Range<u64>>> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        let text = fs::read(&path).map_err(about(&path))?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&text).into_owned())
    };
    let private = maps::private(&read("maps")?);
    let bytes: u64 = private.iter().map(|range| range.end - range.start).sum();
    // What a kernel passes over in one go is cheap.
    if bytes < SPARSE_BYTES || used > bytes / SPARSE_PART {
        return Ok(private);
    }
    if scan::supported() {
        return scan::anonymous(pagemap, &private);
    }
    Ok(maps::private_and_used(&read("smaps")?))
}
