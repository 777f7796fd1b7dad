//! One of QEMU's RAM blocks, read from outside.
//!
//! Memory that QEMU shares (`memory-backend-memfd` or `-file` with `share=on`) is read from the
//! file, other memory through the kernel (`/proc/PID/mem`). Both are read, not mapped: reading a
//! hole through a mapping would allocate it, and a file that becomes shorter would end this process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use hypervisor::HostRam;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// One of QEMU's RAM blocks, as it can be read.
#[derive(Debug)]
pub(crate) struct Block {
    pub(super) name: String,
    pub(super) length: u64,
    /// What is read, and where in it the block begins.
    file: File,
    at: u64,
    /// Shared with QEMU: holes can be told from zeros.
    pub(super) is_shared: bool,
}

impl Block {
    /// Finds a block in QEMU's address space, of which `maps` tells: all of it must be there.
    pub(super) fn find(pid: u32, maps: &str, ram: &HostRam) -> Option<Self> {
        let address = ram.address?;
        let mut covering = maps
            .lines()
            .filter_map(Mapping::parse)
            .skip_while(|mapping| mapping.end <= address);
        let first = covering.next().filter(|first| first.start <= address)?;
        let mut end = first.end;
        while end < address.checked_add(ram.length)? {
            let next = covering.next().filter(|next| next.start == end)?;
            end = next.end;
        }
        let (from, to) = (first.start, first.end);
        let path = PathBuf::from(format!("/proc/{pid}/map_files/{from:x}-{to:x}"));
        let whole = |file, at, is_shared| Block {
            name: ram.block.clone(),
            length: ram.length,
            file,
            at,
            is_shared,
        };
        // Who may not open it may still be allowed to read the process.
        if first.is_shared
            && let Ok(file) = File::open(&path)
        {
            let at = first.offset + (address - from);
            return Some(whole(file, at, true));
        }
        let file = File::open(format!("/proc/{pid}/mem")).ok()?;
        Some(whole(file, address, false))
    }

    /// Fills the buffer with what is at `offset`.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, self.at + offset)
    }

    /// Whether so many bytes are a hole: zeros that nobody has written.
    pub(crate) fn is_hole(&self, offset: u64, length: u64) -> bool {
        if !self.is_shared {
            return false;
        }
        let from = self.at + offset;
        // Nobody cares where in the file this leaves us: what is read is read by its place.
        match rustix::fs::seek(&self.file, SeekFrom::Data(from)) {
            Ok(data) => data >= from + length,
            Err(error) => error == Errno::NXIO,
        }
    }
}

/// A line of `/proc/PID/maps`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    is_shared: bool,
    offset: u64,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let is_shared = words.next()?.ends_with('s');
        let offset = words.next()?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(Mapping {
            start: number(start)?,
            end: number(end)?,
            is_shared,
            offset: number(offset)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_in_a_private_mapping_is_read_from_the_process() {
        let content = vec![7u8; 8192];
        let ram = HostRam {
            block: "pc.ram".into(),
            length: 8192,
            page_size: 4096,
            address: Some(content.as_ptr() as u64),
        };
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let block = Block::find(std::process::id(), &maps, &ram).unwrap();
        assert!(!block.is_shared);
        let mut buffer = [0; 8192];
        block.read(0, &mut buffer).unwrap();
        assert_eq!(buffer.as_slice(), content);
        assert!(!block.is_hole(0, 4096));
    }

    #[test]
    fn a_block_that_is_not_there_as_a_whole_is_not_found() {
        let maps = "\
7f0000000000-7f0000001000 rw-p 00000000 00:00 0
7f0000001000-7f0000002000 rw-p 00000000 00:00 0
7f0000003000-7f0000004000 rw-p 00000000 00:00 0
";
        let find = |address, length| {
            let ram = HostRam {
                block: "pc.ram".into(),
                length,
                page_size: 4096,
                address,
            };
            Block::find(std::process::id(), maps, &ram).is_some()
        };
        assert!(!find(None, 0x1000));
        assert!(!find(Some(0x7f00_0000_2000), 0x1000));
        assert!(!find(Some(0x7f00_0000_4000), 0x1000));
        assert!(!find(Some(0x7f00_0000_1000), 0x2000));
        assert!(find(Some(0x7f00_0000_0000), 0x2000));
    }

    #[test]
    fn a_mapping_is_understood() {
        let line = "7f0000200000-7f0010200000 rw-s 00200000 00:01 2064 /memfd:ram (deleted)";
        let mapping = Mapping {
            start: 0x7f00_0020_0000,
            end: 0x7f00_1020_0000,
            is_shared: true,
            offset: 0x20_0000,
        };
        assert_eq!(Mapping::parse(line), Some(mapping));
        assert_eq!(Mapping::parse(""), None);
    }
}
