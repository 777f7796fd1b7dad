//! The virtio-serial port to the host.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

/// How long the host may take to read an answer before it is given up.
const PATIENCE: Timespec = Timespec {
    tv_sec: 10,
    tv_nsec: 0,
};

/// What a host sends may arrive before the news that there is a host: an answer waits so long for
/// that, looking again and again, since the kernel has no event for it.
const ARRIVAL: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// An open port.
#[derive(Debug)]
pub(crate) struct Port {
    file: File,
}

impl Port {
    /// Opens the port of that name; its device number depends on the order of probing.
    pub(crate) fn named(name: &str) -> Result<Self> {
        let ports = Path::new("/sys/class/virtio-ports");
        for entry in fs::read_dir(ports).into_iter().flatten().flatten() {
            let found = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if found.trim() == name {
                return Self::open(&PathBuf::from("/dev").join(entry.file_name()));
            }
        }
        bail!(
            "this VM has no virtio-serial port {name}: add one to it, \
             such as -device virtserialport,chardev=...,name={name}"
        )
    }

    /// Opens the port at a path.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let flags = i32::try_from((OFlags::NONBLOCK | OFlags::CLOEXEC).bits()).unwrap_or(0);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(Port { file })
    }

    /// Reads what is there. Nothing: nobody is at the other end. `None`: nothing for now.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>> {
        match io::Read::read(&mut self.file, buffer) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error).context("reading from the host"),
        }
    }

    /// Writes everything. False: the host has gone.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<bool> {
        let begun = Instant::now();
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Ok(false),
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
                    let ready = poll(&mut fds, Some(&PATIENCE))?;
                    let nobody = fds[0].revents().contains(PollFlags::HUP);
                    if ready == 0 || (nobody && begun.elapsed() >= ARRIVAL) {
                        return Ok(false);
                    }
                    if nobody {
                        sleep(LOOK_EVERY);
                    }
                }
                // What a port says that nobody holds at the other end.
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// For polling.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// As the kernel takes it.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
