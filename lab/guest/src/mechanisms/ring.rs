//! An `io_uring` that runs one operation at a time.

#![expect(unsafe_code, reason = "system calls that the standard library lacks")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::Ordering;
use std::thread::yield_now;

use super::mapping::{Mapping, PAGE};
use super::sys::{check, owned_long, raw};

const ENTRIES: u32 = 8;
/// A thread of the kernel looks for submissions.
pub(super) const POLLED: u32 = 1 << 1;
/// How long it looks, in milliseconds.
const IDLE: u32 = 1_000;

/// Flag of an operation: a worker of the kernel runs it.
pub(super) const ASYNC: u8 = 1 << 4;
const READ: u8 = 22;
const WRITE: u8 = 23;
const SEND: u8 = 26;
const SPLICE: u8 = 30;

/// Where the parts of a ring are to be mapped.
const SUBMISSIONS_AT: i64 = 0;
const COMPLETIONS_AT: i64 = 0x800_0000;
const ENTRIES_AT: i64 = 0x1000_0000;
/// The head of a completion, and where its result is.
const COMPLETION_SIZE: usize = 16;
const RESULT_AT: usize = 8;

/// For a position: the current one, or that of an object without positions.
const NO_OFFSET: u64 = u64::MAX;

#[repr(C)]
#[derive(Default)]
struct Offsets {
    head: u32,
    tail: u32,
    mask: u32,
    entries: u32,
    /// Of the submissions: their flags. Of the completions: how many were lost.
    flags: u32,
    /// Of the submissions: how many were dropped. Of the completions: where they are.
    completions: u32,
    /// Of the submissions: where their order is.
    order: u32,
    reserved: [u32; 3],
}

#[repr(C)]
#[derive(Default)]
struct Parameters {
    submissions: u32,
    completions: u32,
    flags: u32,
    thread_cpu: u32,
    thread_idle: u32,
    features: u32,
    shared_with: u32,
    reserved: [u32; 3],
    submission: Offsets,
    completion: Offsets,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Operation {
    code: u8,
    flags: u8,
    priority: u16,
    file: i32,
    offset: u64,
    address: u64,
    length: u32,
    operation_flags: u32,
    user_data: u64,
    buffer: u16,
    personality: u16,
    /// Of a splice: its source.
    second_file: i32,
    reserved: [u64; 2],
}

pub(super) struct Ring {
    ring: OwnedFd,
    polled: bool,
    /// Flags of each operation.
    flags: u8,
    parameters: Parameters,
    submissions: Mapping,
    completions: Mapping,
    entries: Mapping,
}

impl Ring {
    /// A ring that stays for the life of the process. The kernel uses the memory of one that is
    /// closed for the next, which a tracker cannot tell from two processes that share one.
    pub(super) fn kept(setup: u32, flags: u8) -> io::Result<&'static mut Self> {
        Ok(Box::leak(Box::new(Ring::new(setup, flags)?)))
    }

    pub(super) fn new(setup: u32, flags: u8) -> io::Result<Self> {
        let mut parameters = Parameters {
            flags: setup,
            thread_idle: IDLE,
            ..Parameters::default()
        };
        // SAFETY: the kernel reads and fills the parameters, and keeps no pointer.
        let ring = owned_long(unsafe {
            libc::syscall(libc::SYS_io_uring_setup, ENTRIES, &raw mut parameters)
        })?;
        // Each part fits a page.
        Ok(Ring {
            submissions: Mapping::part(&ring, PAGE, SUBMISSIONS_AT)?,
            completions: Mapping::part(&ring, PAGE, COMPLETIONS_AT)?,
            entries: Mapping::part(&ring, PAGE, ENTRIES_AT)?,
            polled: setup & POLLED != 0,
            flags,
            parameters,
            ring,
        })
    }

    pub(super) fn read(&self, file: &impl AsFd, into: &mut [u8]) -> io::Result<()> {
        self.run(Operation {
            code: READ,
            file: raw(file),
            address: into.as_mut_ptr().addr() as u64,
            length: length(into)?,
            offset: NO_OFFSET,
            ..Operation::default()
        })
    }

    pub(super) fn write(&self, file: &impl AsFd, data: &[u8]) -> io::Result<()> {
        self.run(Operation {
            code: WRITE,
            file: raw(file),
            address: data.as_ptr().addr() as u64,
            length: length(data)?,
            offset: NO_OFFSET,
            ..Operation::default()
        })
    }

    pub(super) fn send(&self, socket: &impl AsFd, data: &[u8]) -> io::Result<()> {
        self.run(Operation {
            code: SEND,
            file: raw(socket),
            address: data.as_ptr().addr() as u64,
            length: length(data)?,
            ..Operation::default()
        })
    }

    pub(super) fn splice(&self, from: &impl AsFd, to: &impl AsFd, length: u32) -> io::Result<()> {
        self.run(Operation {
            code: SPLICE,
            file: raw(to),
            second_file: raw(from),
            // Of the source and of the target.
            address: NO_OFFSET,
            offset: NO_OFFSET,
            length,
            ..Operation::default()
        })
    }

    /// Runs an operation to its end; it must move all that it is told to.
    fn run(&self, operation: Operation) -> io::Result<()> {
        let Parameters {
            submission,
            completion,
            ..
        } = &self.parameters;
        let tail = self.submissions.word(submission.tail as usize);
        let index = tail.load(Ordering::Relaxed) % self.parameters.submissions;
        let at = index as usize * size_of::<Operation>();
        let flags = self.flags;
        self.entries.place(at, Operation { flags, ..operation });
        let order = submission.order as usize + index as usize * size_of::<u32>();
        self.submissions.word(order).store(index, Ordering::Relaxed);
        tail.fetch_add(1, Ordering::Release);

        let head = self.completions.word(completion.head as usize);
        let tail = self.completions.word(completion.tail as usize);
        self.enter()?;
        while tail.load(Ordering::Acquire) == head.load(Ordering::Relaxed) {
            yield_now();
        }
        let index = head.load(Ordering::Relaxed) % self.parameters.completions;
        let at = completion.completions as usize + index as usize * COMPLETION_SIZE;
        let result = self.completions.word(at + RESULT_AT);
        let result = result.load(Ordering::Relaxed).cast_signed();
        head.fetch_add(1, Ordering::Release);
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        if result.cast_unsigned() != operation.length {
            return Err(io::Error::other("less was moved than there is"));
        }
        Ok(())
    }

    /// Submits what there is, and waits for a completion.
    fn enter(&self) -> io::Result<()> {
        const WAIT: u32 = 1;
        const WAKE_THREAD: u32 = 2;
        let (submit, flags) = if self.polled {
            (0, WAIT | WAKE_THREAD)
        } else {
            (1, WAIT)
        };
        let ring = self.ring.as_raw_fd();
        let no_mask = ptr::null::<libc::sigset_t>();
        // SAFETY: the memory of the submitted operation outlives it, since this waits for its end.
        let entered =
            unsafe { libc::syscall(libc::SYS_io_uring_enter, ring, submit, 1, flags, no_mask, 0) };
        match check(entered) {
            // Submitted it is; the completion is waited for anyway.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other.map(drop),
        }
    }
}

fn length(data: &[u8]) -> io::Result<u32> {
    u32::try_from(data.len()).map_err(io::Error::other)
}
