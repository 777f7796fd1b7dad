//! Threads that compress batches.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pack::{Compressor, Method, Try};
use rustix::event::{EventfdFlags, eventfd};
use wire::FRAME_HEADER;

/// A compressing thread gives way to everything else, the VM's processors first: what it is not
/// given time for shows in its speed, and then less is compressed.
const NICE: i32 = 5;

/// A batch to compress.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) number: u64,
    pub(super) method: Method,
    /// Whether the method was chosen because it pays.
    pub(super) is_chosen: bool,
    pub(super) batch: Batch,
}

/// What is compressed.
#[derive(Debug)]
pub(super) enum Batch {
    /// A whole pages frame, and why it is tried.
    Pages(Vec<u8>, Try),
    /// A recalled batch, and the bytes of the frame that it stands for.
    Recalled(Vec<u8>, usize),
}

/// A batch that is compressed, or was left as it is.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) number: u64,
    pub(super) method: Method,
    pub(super) is_chosen: bool,
    /// Why it was tried; nothing if it had to be.
    pub(super) why: Option<Try>,
    /// Bytes of the plain frame.
    pub(super) plain: usize,
    /// A whole frame.
    pub(super) frame: Vec<u8>,
    pub(super) took: Duration,
}

/// The threads. They end when this is dropped.
#[derive(Debug)]
pub(super) struct Workers {
    jobs: Sender<Job>,
    done: Receiver<Done>,
    bell: Arc<OwnedFd>,
}

impl Workers {
    pub(super) fn start(threads: usize) -> io::Result<Self> {
        let (jobs, to_do) = channel();
        let (tell, done) = channel();
        let to_do = Arc::new(Mutex::new(to_do));
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let bell = Arc::new(bell);
        for number in 0..threads {
            let (to_do, tell, bell) = (Arc::clone(&to_do), tell.clone(), Arc::clone(&bell));
            thread::Builder::new()
                .name(format!("compress-{number}"))
                .spawn(move || work(&to_do, &tell, &bell))?;
        }
        Ok(Workers { jobs, done, bell })
    }

    /// Readable when something is done.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    pub(super) fn give(&self, job: Job) {
        // They live as long as this does.
        let _ = self.jobs.send(job);
    }

    /// What is done, without waiting.
    pub(super) fn take(&self) -> impl Iterator<Item = Done> {
        // The bell is rung after each.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        self.done.try_iter()
    }

    /// Waits for something to be done.
    pub(super) fn wait(&self, limit: Duration) -> Option<Done> {
        self.done.recv_timeout(limit).ok()
    }
}

fn work(to_do: &Mutex<Receiver<Job>>, tell: &Sender<Done>, bell: &OwnedFd) {
    // Of this thread alone. It may be forbidden: then it competes.
    let _ = rustix::process::setpriority_process(None, NICE);
    let mut compressor = Compressor::default();
    loop {
        let next = to_do.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job {
            number,
            method,
            is_chosen,
            batch,
        }) = next
        else {
            return;
        };
        let begun = Instant::now();
        let mut packed = Vec::new();
        let (plain, frame, why) = match batch {
            Batch::Pages(frame, why) => {
                let plain = frame.len();
                let smaller = compressor.compress(method, &frame[FRAME_HEADER..], &mut packed);
                (plain, if smaller { packed } else { frame }, Some(why))
            }
            Batch::Recalled(batch, plain) => {
                compressor.compress_recalled(method, &batch, &mut packed);
                (plain, packed, None)
            }
        };
        let done = Done {
            number,
            method,
            is_chosen,
            why,
            plain,
            frame,
            took: begun.elapsed(),
        };
        if tell.send(done).is_err() {
            return;
        }
        // Full only if nobody has looked for 2^64 batches.
        let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
    }
}
