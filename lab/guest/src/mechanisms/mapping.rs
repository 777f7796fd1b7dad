//! A mapping of memory that others may change at any time.

#![expect(unsafe_code, reason = "maps memory and reaches into it")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use super::group::wait_until;
use super::sys::check;
use crate::Outcome;

pub(super) const PAGE: usize = 4096;

#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    /// Memory that stays shared with the children to come.
    pub(super) fn shared_memory() -> io::Result<Self> {
        Self::new(PAGE, 3, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// Memory that the children to come will have their own copies of, at the same address.
    pub(super) fn own_memory() -> io::Result<Self> {
        Self::new(PAGE, 3, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// A file's first page, to read and write.
    pub(super) fn shared(file: &impl AsFd) -> io::Result<Self> {
        Self::part(file, PAGE, 0)
    }

    /// A part of an object, to read and write.
    pub(super) fn part(file: &impl AsFd, length: usize, offset: i64) -> io::Result<Self> {
        let file = file.as_fd().as_raw_fd();
        Self::new(length, 3, libc::MAP_SHARED, file, offset)
    }

    /// A file's first page, to read.
    pub(super) fn read_only(file: &impl AsFd) -> io::Result<Self> {
        let file = file.as_fd().as_raw_fd();
        Self::new(PAGE, libc::PROT_READ, libc::MAP_SHARED, file, 0)
    }

    /// A file's first two pages, to read; own changes would not go to the file.
    pub(super) fn private(file: &impl AsFd) -> io::Result<Self> {
        let file = file.as_fd().as_raw_fd();
        Self::new(2 * PAGE, libc::PROT_READ, libc::MAP_PRIVATE, file, 0)
    }

    fn new(length: usize, access: i32, flags: i32, file: i32, offset: i64) -> io::Result<Self> {
        // SAFETY: the kernel chooses an address that nothing else uses.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, access, flags, file, offset) };
        Self::check(start, length)
    }

    /// A segment of System V shared memory of at least a page.
    pub(super) fn segment(id: i32) -> io::Result<Self> {
        // SAFETY: the kernel chooses an address that nothing else uses.
        let start = unsafe { libc::shmat(id, ptr::null(), 0) };
        Self::check(start, PAGE)
    }

    /// Both calls return -1 on failure.
    fn check(start: *mut libc::c_void, length: usize) -> io::Result<Self> {
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, length })
    }

    pub(super) fn address(&self) -> usize {
        self.start.addr().get()
    }

    /// A number at an offset, which another process may change.
    pub(super) fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.length);
        // SAFETY: it lies within the mapping, is aligned, and any bits are a number. The mapping
        // lives at least as long as the reference.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(at).cast()) }
    }

    /// Places a structure at an offset.
    pub(super) fn place<T: Copy>(&self, at: usize, value: T) {
        assert!(at.is_multiple_of(align_of::<T>()) && at + size_of::<T>() <= self.length);
        // SAFETY: it lies within the mapping and is aligned.
        unsafe { ptr::write_volatile(self.start.as_ptr().add(at).cast(), value) };
    }

    pub(super) fn tell(&self) {
        self.word(0).store(1, Ordering::Release);
    }

    /// Waits until somebody has told.
    pub(super) fn listen(&self) -> Outcome {
        self.listen_at(0)
    }

    pub(super) fn listen_at(&self, offset: usize) -> Outcome {
        wait_until("a change of memory", || {
            self.word(offset).load(Ordering::Acquire) != 0
        })
    }

    /// Wakes who waits on the first word.
    pub(super) fn wake(&self) -> io::Result<()> {
        self.futex(libc::FUTEX_WAKE, 1)
    }

    /// Waits on the first word until somebody has told.
    pub(super) fn wait(&self) -> io::Result<()> {
        while self.word(0).load(Ordering::Acquire) == 0 {
            match self.futex(libc::FUTEX_WAIT, 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn futex(&self, operation: i32, value: u32) -> io::Result<()> {
        let word = self.word(0).as_ptr();
        let forever = ptr::null::<libc::timespec>();
        // SAFETY: the word is valid; there is no time limit.
        let result = unsafe { libc::syscall(libc::SYS_futex, word, operation, value, forever) };
        if result == -1 {
            check(-1)?;
        }
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: no reference outlives the mapping. A System V segment is left to the exit.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
