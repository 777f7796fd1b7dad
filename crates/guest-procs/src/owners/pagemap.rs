//! `/proc/PID/pagemap`: one word for each page of the address space.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::about;

pub(crate) const PAGE: u64 = 4096;
/// Most that is read at once: the words of 256 MiB.
const BUFFER: u64 = 512 << 10;
const WORD: u64 = 8;

/// What is known of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry(pub(crate) u64);

impl Entry {
    const PRESENT: u64 = 1 << 63;
    /// Of a file, or of shared anonymous memory.
    const FILE: u64 = 1 << 61;
    const EXCLUSIVE: u64 = 1 << 56;
    const SOFT_DIRTY: u64 = 1 << 55;

    /// In memory, anonymous, and mapped nowhere else. Shared anonymous memory can look exclusive,
    /// and shows as a file's.
    pub(crate) fn is_owned(self) -> bool {
        let looked_at = Self::PRESENT | Self::FILE | Self::EXCLUSIVE;
        self.0 & looked_at == Self::PRESENT | Self::EXCLUSIVE
    }

    pub(crate) fn is_soft_dirty(self) -> bool {
        self.0 & Self::SOFT_DIRTY != 0
    }

    /// Number of the page frame, of a page in memory.
    pub(crate) fn frame(self) -> u64 {
        self.0 & ((1 << 55) - 1)
    }

    /// In memory, but its number is withheld: there is no frame 0 in anybody's use.
    fn is_withheld(self) -> bool {
        self.0 & Self::PRESENT != 0 && self.frame() == 0
    }
}

pub(crate) fn open(pid: u32) -> io::Result<File> {
    let path = format!("/proc/{pid}/pagemap");
    File::open(&path).map_err(about(&path))
}

/// Reads words; keeps the buffer.
#[derive(Debug, Default)]
pub(crate) struct Pagemap {
    buffer: Vec<u8>,
}

impl Pagemap {
    /// The entries of those addresses; fewer if the process ends.
    pub(crate) fn read(
        &mut self,
        pagemap: &File,
        addresses: Range<u64>,
        mut each: impl FnMut(Entry),
    ) -> io::Result<()> {
        let mut withheld = false;
        self.words(
            pagemap,
            addresses.start / PAGE..addresses.end / PAGE,
            |_, word| {
                let entry = Entry(word);
                withheld |= entry.is_withheld();
                each(entry);
            },
        )?;
        if withheld {
            let message = "the kernel withholds page frame numbers: CAP_SYS_ADMIN is needed";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        Ok(())
    }

    /// Words of any file of such, with their index.
    pub(crate) fn words(
        &mut self,
        file: &File,
        indices: Range<u64>,
        mut each: impl FnMut(u64, u64),
    ) -> io::Result<()> {
        let mut index = indices.start;
        while index < indices.end {
            let bytes = ((indices.end - index) * WORD).min(BUFFER);
            let bytes = usize::try_from(bytes).unwrap_or(0);
            if self.buffer.len() < bytes {
                self.buffer.resize(bytes, 0);
            }
            let count = file.read_at(&mut self.buffer[..bytes], index * WORD)?;
            let (words, _) = self.buffer[..count].as_chunks::<8>();
            if words.is_empty() {
                return Ok(());
            }
            for word in words {
                each(index, u64::from_ne_bytes(*word));
                index += 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_exclusive_anonymous_pages_in_memory_are_owned() {
        let bit = |n: u32| 1u64 << n;
        assert!(Entry(bit(63) | bit(56) | 0x1234).is_owned());
        assert!(Entry(bit(63) | bit(56) | bit(55) | 5).is_owned());
        for other in [
            0,
            bit(63),
            bit(56),
            bit(62) | bit(56),
            bit(63) | bit(56) | bit(61),
        ] {
            assert!(!Entry(other | 0x1234).is_owned());
        }
        assert_eq!(Entry(bit(63) | bit(55) | 0x1234).frame(), 0x1234);
    }

    #[test]
    fn a_large_file_is_read_in_pieces_to_its_end() {
        let mut file = tempfile::tempfile().unwrap();
        let count = BUFFER / WORD * 2 + 77;
        let bytes: Vec<u8> = (0..count).flat_map(u64::to_ne_bytes).collect();
        file.write_all(&bytes).unwrap();
        let mut next = 3;
        let mut pagemap = Pagemap::default();
        pagemap
            .words(&file, 3..count + 500, |index, word| {
                assert_eq!((index, word), (next, next));
                next += 1;
            })
            .unwrap();
        assert_eq!(next, count);
        assert_eq!(pagemap.buffer.len() as u64, BUFFER);
    }
}
