//! The system calls that the standard library lacks and that more than one family needs, made
//! safe to call.

#![expect(unsafe_code, reason = "system calls that the standard library lacks")]

use std::error::Error;
use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;

use super::group::Lacking;

pub(super) type Pid = libc::pid_t;

/// The result of a call that returns -1 on failure.
pub(super) fn check<T: PartialEq + From<i8>>(result: T) -> io::Result<T> {
    if result == T::from(-1) {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// A size that must be that of all data.
pub(super) fn complete(result: isize, expected: usize) -> io::Result<()> {
    if usize::try_from(check(result)?) == Ok(expected) {
        return Ok(());
    }
    Err(io::Error::other("less was moved than there is"))
}

/// Takes a descriptor that a call has just made.
pub(super) fn owned(result: libc::c_int) -> io::Result<OwnedFd> {
    let raw = check(result)?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// The same for [`libc::syscall`].
pub(super) fn owned_long(result: libc::c_long) -> io::Result<OwnedFd> {
    owned(RawFd::try_from(result).map_err(io::Error::other)?)
}

pub(super) fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_encoded_bytes())?)
}

/// Returns 0 in the child.
pub(super) fn fork() -> io::Result<Pid> {
    // SAFETY: this program has one thread, so that the child finds no lock held by another.
    check(unsafe { libc::fork() })
}

pub(super) fn pause() {
    // SAFETY: no memory is involved.
    unsafe { libc::pause() };
}

/// Waits until a child has ended; whether it ended well.
pub(super) fn wait(child: Pid) -> io::Result<bool> {
    let mut status = 0;
    loop {
        // SAFETY: the status is a valid place to write to.
        let result = check(unsafe { libc::waitpid(child, &raw mut status, libc::__WALL) });
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(|_| status == 0),
        }
    }
}

/// Sets the name that `/proc/PID/comm` shows.
pub(super) fn set_name(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the kernel reads the string up to its end and keeps no pointer.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) })?;
    Ok(())
}

/// Makes the process the head of a group, so that all can be ended at once.
pub(super) fn lead_group() {
    // Fails for the leader of a session, which heads a group already.
    // SAFETY: no memory is involved.
    unsafe { libc::setpgid(0, 0) };
}

/// Points the standard streams to `/dev/null`.
pub(super) fn silence() -> io::Result<()> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    for stream in 0..=2 {
        // SAFETY: no memory is involved; nobody owns the standard streams.
        check(unsafe { libc::dup2(null.as_raw_fd(), stream) })?;
    }
    Ok(())
}

/// Closes every descriptor but the standard streams and those to keep.
///
/// The owners of the closed ones must not be dropped: who calls this never returns to where they
/// live.
pub(super) fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    keep.sort_unstable();
    let mut first = 3;
    for kept in keep {
        close_range(first, kept - 1)?;
        first = kept + 1;
    }
    close_range(first, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: no memory is involved; nobody uses these descriptors from now on.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

/// A socket address that the standard library does not know.
///
/// # Safety
///
/// A plain C structure that any bytes make valid.
pub(super) unsafe trait Address: Copy {
    fn empty() -> Self {
        // SAFETY: any bytes make it valid.
        unsafe { std::mem::zeroed() }
    }
}

// SAFETY: plain C structures of numbers.
unsafe impl Address for libc::sockaddr_ll {}
// SAFETY: as above.
unsafe impl Address for libc::sockaddr_nl {}
// SAFETY: as above.
unsafe impl Address for libc::sockaddr_un {}
// SAFETY: as above.
unsafe impl Address for libc::sockaddr_vm {}

/// The family of addresses that goes with a socket's domain.
#[expect(clippy::cast_possible_truncation, reason = "a small number")]
pub(super) const fn family(domain: i32) -> libc::sa_family_t {
    domain.cast_unsigned() as libc::sa_family_t
}

#[expect(clippy::cast_possible_truncation, reason = "a small structure")]
const fn length<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

/// Reading and writing a [`File`] works on any socket.
pub(super) fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<File> {
    // SAFETY: no memory is involved.
    owned(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) }).map(File::from)
}

pub(super) fn bind<A: Address>(socket: &File, address: &A) -> io::Result<()> {
    let address: *const A = address;
    // SAFETY: the address is valid for its length.
    check(unsafe { libc::bind(socket.as_raw_fd(), address.cast(), length::<A>()) })?;
    Ok(())
}

pub(super) fn connect<A: Address>(socket: &File, address: &A) -> io::Result<()> {
    let address: *const A = address;
    // SAFETY: the address is valid for its length.
    check(unsafe { libc::connect(socket.as_raw_fd(), address.cast(), length::<A>()) })?;
    Ok(())
}

pub(super) fn send_to<A: Address>(socket: &File, data: &[u8], address: &A) -> io::Result<()> {
    let address: *const A = address;
    // SAFETY: the data and the address are valid for their lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            0,
            address.cast(),
            length::<A>(),
        )
    };
    complete(sent, data.len())
}

pub(super) fn local_address<A: Address>(socket: &File) -> io::Result<A> {
    let mut address = A::empty();
    let mut length = length::<A>();
    // SAFETY: the kernel writes no more than the address's length, and any bytes make it valid.
    check(unsafe {
        libc::getsockname(
            socket.as_raw_fd(),
            (&raw mut address).cast(),
            &raw mut length,
        )
    })?;
    Ok(address)
}

pub(super) fn listen(socket: &File) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::listen(socket.as_raw_fd(), 1) })?;
    Ok(())
}

pub(super) fn accept(listener: &File) -> io::Result<File> {
    let (nobody, nothing) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: nothing is asked about the peer's address.
    let accepted =
        unsafe { libc::accept4(listener.as_raw_fd(), nobody, nothing, libc::SOCK_CLOEXEC) };
    owned(accepted).map(File::from)
}

/// A network interface's number.
pub(super) fn interface(name: &CStr) -> io::Result<i32> {
    // SAFETY: the name is a string, which is not kept.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        number => i32::try_from(number).map_err(io::Error::other),
    }
}

/// A pseudo-terminal's master and slave, without echo and line editing.
pub(super) fn terminal() -> Result<(File, File), Box<dyn Error>> {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: both places are valid, the name, settings and size are left out.
    check(unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            ptr::null_mut(),
            ptr::null(),
            ptr::null(),
        )
    })
    .map_err(|error| Lacking(format!("a pseudo-terminal, with devpts mounted: {error}")))?;
    let (master, slave) = (owned(master)?, owned(slave)?);
    // SAFETY: a plain C structure of numbers.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the settings are a valid place to write to and to read from.
    unsafe {
        check(libc::tcgetattr(slave.as_raw_fd(), &raw mut settings))?;
        libc::cfmakeraw(&raw mut settings);
        check(libc::tcsetattr(slave.as_raw_fd(), 0, &raw const settings))?;
    }
    Ok((master.into(), slave.into()))
}

/// A descriptor for a process.
pub(super) fn pidfd(process: Pid) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    owned_long(unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) })
}

pub(super) fn raw(descriptor: &impl AsFd) -> RawFd {
    descriptor.as_fd().as_raw_fd()
}
