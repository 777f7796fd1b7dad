//! Which frames are written: a sample by the kernel's soft-dirty bits.

use std::io;
use std::sync::OnceLock;

use depgraph::ProcessId;

use super::pagemap::{self, Entry, Pagemap};
use super::{Owned, Scanner};
use crate::process::has_gone;
use crate::{is_same, tell};

/// Watches which pages are written between [`begin`](Sampler::begin) and [`end`](Sampler::end).
/// The first write to each page costs its process a fault meanwhile.
#[derive(Debug)]
pub struct Sampler {
    processes: Vec<ProcessId>,
}

impl Sampler {
    /// Whether this kernel keeps soft-dirty bits: a page that has just been written shows one.
    pub fn supported() -> bool {
        static SUPPORTED: OnceLock<bool> = OnceLock::new();
        *SUPPORTED.get_or_init(|| {
            let mut page = vec![1u8; 3 * usize::try_from(pagemap::PAGE).unwrap_or(0)];
            let address = std::hint::black_box(&mut page).as_ptr() as u64 + pagemap::PAGE;
            let mut dirty = false;
            let read = pagemap::open(std::process::id()).and_then(|file| {
                let range = address..address + pagemap::PAGE;
                Pagemap::default().read(&file, range, |entry| dirty |= entry.is_soft_dirty())
            });
            read.is_ok() && dirty
        })
    }

    /// Begins; processes that have gone are left out.
    pub fn begin(processes: &[ProcessId]) -> io::Result<Self> {
        if !Self::supported() {
            let message = "this kernel keeps no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)";
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        let mut there = Vec::new();
        for process in processes.iter().filter(|process| is_same(**process)) {
            let path = format!("/proc/{}/clear_refs", process.pid);
            match tell(&path, "4") {
                Ok(()) => there.push(*process),
                Err(error) if has_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Sampler { processes: there })
    }

    /// The frames that have been written since, and belong to one of the processes alone. A
    /// transparent huge page counts as written as a whole.
    pub fn end(self, scanner: &mut Scanner) -> io::Result<Owned> {
        scanner.collect(&self.processes, |entry: Entry| {
            entry.is_owned() && entry.is_soft_dirty()
        })
    }
}
