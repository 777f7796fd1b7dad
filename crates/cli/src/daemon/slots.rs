//! The sockets through which libvirt moves VMs.
//!
//! ```text
//! DIR/PEER/0.sock   at the source: unmoord waits here, libvirtd connects
//! DIR/SELF/0.sock   at the destination, under its own name: QEMU waits here, unmoord connects
//! ```
//!
//! The path is the same on both hosts, as libvirt gives the one that it was told to both.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};

use super::args::Peer;
use super::name::Name;
use crate::send::Failure;

/// A socket to a peer.
#[derive(Debug)]
struct Slot {
    listener: UnixListener,
    path: PathBuf,
    name: Name,
    peer: Peer,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Slots(Vec<Slot>);

/// Who has come to one.
#[derive(Debug)]
pub(super) struct Visitor {
    pub(super) qemu: UnixStream,
    pub(super) socket: PathBuf,
    pub(super) name: Name,
    pub(super) peer: Peer,
}

impl Slots {
    /// Makes the folders, and the sockets to the peers in them.
    pub(super) fn open(
        folder: &Path,
        own: &Name,
        peers: &[Peer],
        count: u8,
    ) -> Result<Self, Failure> {
        let mut slots = Slots(Vec::new());
        make(&folder.join(own.as_str()))?;
        for peer in peers {
            if peer.name == *own {
                return Err(Failure::Refused(format!(
                    "--peer {own} has this host's own name: give the other, or this one's with --name"
                )));
            }
            let folder = folder.join(peer.name.as_str());
            make(&folder)?;
            for number in 0..count {
                let file = format!("{number}.sock");
                let path = folder.join(&file);
                let listener = listen(&path).map_err(|error| {
                    Failure::Refused(format!("cannot make {}: {error}", path.display()))
                })?;
                slots.0.push(Slot {
                    listener,
                    path,
                    name: file.parse().map_err(Failure::Failed)?,
                    peer: peer.clone(),
                });
            }
        }
        Ok(slots)
    }

    /// What to wait for.
    pub(super) fn fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        let slots = self.0.iter();
        slots.map(|slot| PollFd::new(&slot.listener, PollFlags::IN))
    }

    /// Who has come.
    pub(super) fn look(&self) -> io::Result<Vec<Visitor>> {
        let mut visitors = Vec::new();
        for slot in &self.0 {
            match slot.listener.accept() {
                Ok((qemu, _)) => visitors.push(Visitor {
                    qemu,
                    socket: slot.path.clone(),
                    name: slot.name.clone(),
                    peer: slot.peer.clone(),
                }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(visitors)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        for slot in &self.0 {
            let _ = fs::remove_file(&slot.path);
        }
    }
}

fn make(folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder)
        .map_err(|error| Failure::Refused(format!("cannot make {}: {error}", folder.display())))
}

/// Listens at a path, where the socket of a daemon that was killed may still be.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        return Err(io::Error::other(
            "another unmoord serves it: end that, or use another --sockets",
        ));
    }
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::other(
                "something else is there that is no socket",
            ));
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> Peer {
        format!("{name}=10.0.0.2:1").parse().unwrap()
    }

    #[test]
    fn a_visitor_is_told_by_its_socket_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let own = "a".parse().unwrap();
        let slots = Slots::open(folder.path(), &own, &[peer("b"), peer("c")], 2).unwrap();
        let path = folder.path().join("c/1.sock");
        let _qemu = UnixStream::connect(&path).unwrap();
        let visitors = slots.look().unwrap();
        assert_eq!(visitors.len(), 1);
        assert_eq!(visitors[0].socket, path);
        assert_eq!(visitors[0].peer, peer("c"));
        assert_eq!(visitors[0].name.as_str(), "1.sock");
        let error = Slots::open(folder.path(), &own, &[peer("b")], 1).unwrap_err();
        assert!(error.to_string().contains("another unmoord"), "{error}");
        drop(slots);
        assert!(!path.exists() && folder.path().join("a").is_dir());
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let own = "a".parse().unwrap();
        fs::create_dir(folder.path().join("b")).unwrap();
        let path = folder.path().join("b/0.sock");
        drop(UnixListener::bind(&path).unwrap());
        drop(Slots::open(folder.path(), &own, &[peer("b")], 1).unwrap());
        fs::write(&path, "precious").unwrap();
        assert!(Slots::open(folder.path(), &own, &[peer("b")], 1).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let error = Slots::open(folder.path(), &own, &[peer("a")], 1).unwrap_err();
        assert!(error.to_string().contains("own name"), "{error}");
    }
}
