//! A VM that somebody else manages: libvirt, which begins the migration, and decides where the VM runs.
//!
//! QEMU gets its stream's other end from the owner, and has a return path: it completes when the
//! destination's QEMU has loaded everything, which the engine passes on only once all memory is proven
//! equal. So there is no guardian: whatever happens to this process before that, QEMU's stream ends
//! before its end, and the owner lets the VM go on here.
#![cfg_attr(
    not(feature = "libvirt"),
    expect(dead_code, reason = "nobody owns a VM in a build without libvirt")
)]

use std::fmt::Debug;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hypervisor::{MigrationStatus, RunState, Vm};
use rustix::event::{PollFd, PollFlags};
use wire::{Accept, Started};

use super::session::{Session, wall_clock};
use super::stream::QemuStream;
use super::{Failure, failed};
use crate::daemon::{DomainName, Errand, Name, Place};
use crate::exit::Exit;
use crate::poll::wait;

/// Longest wait for the owner to end a migration that has succeeded, or has been given up.
const END_LIMIT: Duration = Duration::from_secs(60);
/// How long to try to ask the owner anew.
const ASK_AGAIN_FOR: Duration = Duration::from_secs(10);
/// Time between two tries, and between two looks at a VM that its owner is bringing back; what QEMU tells
/// ends the latter at once.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Whoever manages the VM.
pub(crate) trait Owner: Debug {
    /// Begins the migration: has the source's QEMU write to the socket at `path`, and the destination's
    /// read from the one at the same path there.
    fn begin(&mut self, path: &Path) -> Result<(), String>;

    /// The source's QEMU has begun to write, and the destination's waits.
    fn has_begun(&mut self);

    /// Since when the VM is known to run at the destination, if that is known.
    fn runs_since(&self) -> Option<Instant>;

    /// Readable once the migration that has begun has ended.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Asks for it to end; it ends later.
    fn cancel(&mut self);

    /// How it has ended; waits until it has.
    fn outcome(&mut self) -> Result<(), String>;

    /// Asks anew, where the monitor cannot be asked any more, what has become of the VM here.
    fn ask_again(&mut self) -> Result<Whereabouts, String>;
}

/// What has become of a VM.
#[derive(Debug)]
pub(crate) enum Whereabouts {
    /// It is here, and this is its monitor.
    Here(Vm),
    /// It is not here any more.
    Gone,
}

/// A VM of somebody else's.
#[derive(Debug)]
pub(crate) struct Owned {
    owner: Box<dyn Owner>,
    domain: DomainName,
    /// Folder of the sockets, the same on both hosts.
    sockets: PathBuf,
    socket: Name,
    /// Where QEMU's stream is to come out.
    stream_socket: Option<StreamSocket>,
    /// How the owner's migration has ended.
    end: Option<Result<(), String>>,
}

impl Owned {
    pub(crate) fn new(
        owner: Box<dyn Owner>,
        domain: DomainName,
        sockets: PathBuf,
        socket: Name,
    ) -> Self {
        Owned {
            owner,
            domain,
            sockets,
            socket,
            stream_socket: None,
            end: None,
        }
    }

    /// What the destination is told instead of the VM's facts, which the owner compares.
    pub(super) fn errand(&self, thaws: bool) -> String {
        let errand = Errand {
            socket: self.socket.clone(),
            once: true,
            thaw: thaws.then(|| self.domain.clone()),
        };
        errand.write()
    }

    /// How long the VM has been running at the destination, if that is known.
    pub(super) fn runs_for(&self) -> Option<Duration> {
        Some(self.owner.runs_since()?.elapsed())
    }

    /// What to wait for: that QEMU's stream comes out, and that the migration has ended.
    pub(super) fn fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        let stream_socket = self
            .stream_socket
            .as_ref()
            .map(|stream_socket| stream_socket.listener.as_fd());
        let end = self.owner.fd().filter(|_| self.end.is_none());
        let fds = stream_socket.into_iter().chain(end);
        fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
    }

    /// Takes the owner's word, if it is there by then.
    fn await_end(&mut self, deadline: Instant) -> io::Result<Option<&Result<(), String>>> {
        if self.end.is_none()
            && let Some(fd) = self.owner.fd()
            && wait(
                &mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)],
                Some(deadline),
            )? > 0
        {
            self.end = Some(self.owner.outcome());
        }
        Ok(self.end.as_ref())
    }
}

/// A socket that is gone with it.
#[derive(Debug)]
struct StreamSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl StreamSocket {
    fn open(folder: &Path, name: &Name) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join(name.as_str());
        let listener = UnixListener::bind(&path)?;
        let stream_socket = StreamSocket { listener, path };
        stream_socket.listener.set_nonblocking(true)?;
        Ok(stream_socket)
    }

    /// Who has come, if somebody has.
    fn look(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(stream))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Drop for StreamSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Session<'_> {
    /// The destination takes part: the owner begins the migration, if somebody owns the VM; tells
    /// whether somebody does.
    pub(super) fn let_owner_begin(&mut self, accept: &Accept) -> Result<bool, Failure> {
        let Some(owned) = &mut self.owned else {
            return Ok(false);
        };
        let place = Place::read(&accept.vm_facts)?;
        let folder = owned.sockets.join(place.name.as_str());
        let stream_socket = StreamSocket::open(&folder, &owned.socket).map_err(|error| {
            Failure::Refused(format!(
                "cannot make a socket in {}: {error}; --sockets has to be the folder that unmoord uses",
                folder.display()
            ))
        })?;
        self.destination_qemu = "unknown".into();
        self.was_running = self.vm.status().map_err(|e| failed(&e))? == RunState::Running;
        let begun = owned.owner.begin(&stream_socket.path);
        begun.map_err(Failure::Failed)?;
        owned.stream_socket = Some(stream_socket);
        Ok(true)
    }

    /// Sees to what has become of the owner's migration.
    pub(super) fn look_at_owner(&mut self) -> Result<(), Failure> {
        let Some(owned) = &mut self.owned else {
            return Ok(());
        };
        if let Some(stream_socket) = &owned.stream_socket
            && let Some(stream) = stream_socket.look().map_err(|e| failed(&e))?
        {
            // There is one stream.
            owned.stream_socket = None;
            owned.owner.has_begun();
            self.refuse_to_wait_in_vain()?;
            self.qemu = Some(QemuStream::new(stream));
            self.times.migrate = Some(Instant::now());
            // The owner has set its own before.
            let limit = self.steering.pilot.first_downtime_limit();
            self.vm
                .submit_downtime_limit(limit, None)
                .map_err(|e| failed(&e))?;
            self.tell_phase();
            return Ok(());
        }
        let end = owned.await_end(Instant::now()).map_err(|e| failed(&e))?;
        match end {
            None => Ok(()),
            Some(Err(why)) => Err(Failure::Failed(why.clone())),
            // QEMU completes only when it is told that all is loaded.
            Some(Ok(())) => Err(Failure::Failed(
                "the VM is said to have moved, and nothing has been proven".into(),
            )),
        }
    }

    /// Nothing has been read of QEMU's stream yet: a destination that would not pass on what QEMU waits
    /// for before its switchover is refused.
    fn refuse_to_wait_in_vain(&mut self) -> Result<(), Failure> {
        if self.engine.hears_of_agreement() {
            return Ok(());
        }
        let capabilities = self.vm.capabilities().map_err(|e| failed(&e))?;
        match capabilities.get("switchover-ack") {
            Some(true) => Err(Failure::Refused(
                "libvirt has switched QEMU's capability `switchover-ack` on, and unmoord at the destination is of a release that does not carry it: install this release there".into(),
            )),
            _ => Ok(()),
        }
    }

    /// Tells QEMU what it waits for on its return path.
    pub(super) fn tell_qemu(&mut self) -> Result<(), Failure> {
        let Some(qemu) = &mut self.qemu else {
            return Ok(());
        };
        if let Err(error) = qemu.say(|out| self.engine.take_for_qemu(out)) {
            return Err(self.qemu_failed(&format!("writing to QEMU failed: {error}")));
        }
        Ok(())
    }

    /// Everything is loaded and proven equal: QEMU hears of it and completes, and the owner starts the
    /// VM at the destination.
    pub(super) fn let_owner_complete(&mut self, started: Started) -> Result<Started, Failure> {
        if self.owned.is_none() {
            return Ok(started);
        }
        self.tell_qemu()?;
        let was_running = self.was_running;
        let deadline = Instant::now() + END_LIMIT;
        let Some(owned) = &mut self.owned else {
            return Ok(started);
        };
        match owned.await_end(deadline).map_err(|e| failed(&e))? {
            Some(Ok(())) => {
                if let Some(ago) = owned.runs_for() {
                    self.times.finished = Instant::now().checked_sub(ago);
                    self.times.runs = wall_clock().and_then(|now| now.checked_sub(ago));
                }
                Ok(Started {
                    running: was_running,
                    ..started
                })
            }
            Some(Err(why)) => Err(Failure::Failed(why.clone())),
            None => Err(Failure::Failed(format!(
                "everything is at the destination, and libvirt has not started the VM there within {}",
                humantime::format_duration(END_LIMIT)
            ))),
        }
    }

    /// The VM stays here, as its owner sees to; tells how it is.
    pub(super) fn leave_to_owner(&mut self) -> Result<String, (Exit, String)> {
        let Some(owned) = &mut self.owned else {
            return Ok(String::new());
        };
        owned.stream_socket = None;
        if owned.owner.fd().is_none() {
            self.release_guest();
            return Ok("the VM was not touched".into());
        }
        if owned.end.is_none() {
            owned.owner.cancel();
        }
        let end = owned.await_end(Instant::now() + END_LIMIT);
        let end = end.ok().flatten().cloned();
        self.release_guest();
        match end {
            Some(Err(_)) => match self.vm.status() {
                Ok(state) => Ok(as_it_is_here(&state)),
                // The connection that the monitor goes over is lost, and libvirt's word with it.
                Err(_) => self.ask_owner_again(),
            },
            Some(Ok(())) => Err((
                Exit::NeedsHelp,
                "libvirt has moved the VM all the same: it is at the destination".into(),
            )),
            None => Err((
                Exit::NeedsHelp,
                "libvirt does not say what has become of the VM: look at `virsh list --all` on both hosts".into(),
            )),
        }
    }

    fn ask_owner_again(&mut self) -> Result<String, (Exit, String)> {
        let deadline = Instant::now() + ASK_AGAIN_FOR;
        loop {
            let Some(owned) = &mut self.owned else {
                return Ok(String::new());
            };
            let error = match owned.owner.ask_again() {
                Ok(Whereabouts::Here(vm)) => {
                    self.vm = vm;
                    match self.once_it_is_back() {
                        Ok(state) => return Ok(as_it_is_here(&state)),
                        Err(error) => error,
                    }
                }
                Ok(Whereabouts::Gone) => {
                    return Err((
                        Exit::NeedsHelp,
                        "libvirt has no such VM running here any more: `virsh list --all` at the destination tells whether it runs there".into(),
                    ));
                }
                Err(error) => error,
            };
            // A daemon that is started again answers soon; a signal ends the wait.
            let mut fds = [PollFd::from_borrowed_fd(self.signals.fd(), PollFlags::IN)];
            let next = deadline.min(Instant::now() + LOOK_EVERY);
            let is_called = !matches!(wait(&mut fds, Some(next)), Ok(0));
            if is_called || Instant::now() >= deadline {
                return Err((
                    Exit::NeedsHelp,
                    format!(
                        "libvirt cannot be asked what has become of the VM ({error}): `virsh list --all` tells it on both hosts"
                    ),
                ));
            }
        }
    }

    /// The VM's state when its owner has brought it back, or has had the time for it.
    fn once_it_is_back(&mut self) -> Result<RunState, String> {
        let deadline = Instant::now() + END_LIMIT;
        loop {
            let migration = self.vm.migration_info().map_err(|e| e.to_string())?;
            let state = self.vm.status().map_err(|e| e.to_string())?;
            let under_way = matches!(migration.status, MigrationStatus::UnderWay(_));
            let is_back = !under_way && (state == RunState::Running || !self.was_running);
            let now = Instant::now();
            if is_back || now >= deadline {
                return Ok(state);
            }
            let next = deadline.min(now + LOOK_EVERY);
            self.vm.wait_event(next).map_err(|e| e.to_string())?;
        }
    }
}

fn as_it_is_here(state: &RunState) -> String {
    match state {
        RunState::Running => "the VM runs here, as libvirt has seen to".into(),
        state => format!("the VM is here, and its state is `{state}`"),
    }
}
