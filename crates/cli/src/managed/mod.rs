//! `unmoor migrate` and `unmoor prepare`: VMs that libvirt manages.

mod owner;
mod prepare;

use std::path::Path;

use hypervisor::Vm;
use libvirt_vm::{Channel, Description, Domain, Host, Monitor};

use crate::QMP_CONNECT_LIMIT;
use crate::agent::Client;
use crate::args::{HowArgs, MigrateArgs, ProtocolArg, SendArgs, StallArg};
use crate::daemon::DomainName;
use crate::exit::Exit;
use crate::random;
use crate::report::Event;
use crate::send::owned::Owned;
use crate::send::{Failure, failed, run_owned};
use owner::Libvirt;
pub(crate) use prepare::prepare;

/// The port that unmoord listens on unless it is told another.
const PORT: u16 = 49140;

/// A VM here, and where it is to go.
struct Found {
    domain: Domain,
    monitor: Monitor,
    vm: Vm,
    name: DomainName,
    description: Description,
    to: Target,
    there: Option<Host>,
    notes: Vec<String>,
}

/// Where a VM is to go.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    /// libvirt there, as libvirt here reaches it.
    uri: String,
    /// unmoord there.
    relay: String,
}

/// Moves a VM.
pub(crate) fn migrate(args: MigrateArgs) -> Exit {
    let found = find(&args);
    let MigrateArgs {
        domain,
        libvirt,
        to,
        relay,
        sockets,
        how,
    } = args;
    let mut send = SendArgs {
        // For people: it is libvirt's.
        qmp: format!("{}#{domain}", libvirt.connect).into(),
        to: relay.unwrap_or(to),
        agent: None,
        connections: 1,
        before_commit: None,
        qemu_pid: None,
        how,
    };
    let found = match found {
        Ok(found) => found,
        // Told and recorded as any other end.
        Err(failure) => return run_owned(&send, |_| Err(failure)),
    };
    send.to.clone_from(&found.to.relay);
    send.qemu_pid = process_of(found.domain.name());
    if let Channel::Socket(path) = &found.description.agent {
        send.agent = Some(path.clone());
    }
    run_owned(&send, |report| {
        for text in found.notes {
            report.tell(&Event::Note { text });
        }
        let libvirt = Libvirt::new(
            libvirt.connect,
            found.domain,
            found.monitor,
            found.to.uri,
            found.there,
        );
        let number = u64::from_ne_bytes(random().map_err(|e| failed(&e))?);
        let socket = format!("{number:016x}.sock");
        let socket = socket.parse().map_err(Failure::Failed)?;
        let owned = Owned::new(Box::new(libvirt), found.name, sockets, socket);
        Ok((found.vm, owned))
    })
}

/// Everything that libvirt can say before anything is begun.
fn find(args: &MigrateArgs) -> Result<Found, Failure> {
    refuse_what_libvirt_does_not_permit(&args.how)?;
    let to = Target::of(&args.to, args.relay.as_deref())?;
    let here = Host::open(&args.libvirt.connect).map_err(|e| failed(&e))?;
    let domain = here.domain(&args.domain).map_err(|e| refused(&e))?;
    if !domain.is_active().map_err(|e| failed(&e))? {
        return Err(Failure::Refused(format!(
            "the VM {} does not run: start it, or move its description with `virsh migrate --offline`",
            domain.name()
        )));
    }
    let mut notes = Vec::new();
    let there = match Host::open(&to.uri) {
        Ok(there) => Some(there),
        // libvirt here goes there with other keys, maybe.
        Err(error) => {
            notes.push(format!(
                "the destination cannot be looked at from here: {error}"
            ));
            None
        }
    };
    if let Some(there) = &there {
        compare_hosts(&here, there)?;
    }
    let description = domain.description().map_err(|e| failed(&e))?;
    if !matches!(description.agent, Channel::Socket(_)) {
        let missing = format!(
            "the VM has no channel for the agent: `unmoor prepare {}` adds one",
            domain.name()
        );
        if args.how.protocol == ProtocolArg::StopCopy {
            return Err(Failure::Refused(missing));
        }
        notes.push(format!("no process is paused: {missing}"));
    }
    if let (Channel::Socket(path), ProtocolArg::StopCopy) = (&description.agent, args.how.protocol)
    {
        // Whoever wants nothing else wants to hear of it now.
        Client::connect(path).map_err(|error| Failure::Refused(error.to_string()))?;
    }
    let name = domain.name().parse().map_err(Failure::Refused)?;
    let (monitor, vm) = open_monitor(&domain)?;
    Ok(Found {
        domain,
        monitor,
        vm,
        name,
        description,
        to,
        there,
        notes,
    })
}

/// QEMU's monitor, which lasts as long as the first of the two.
fn open_monitor(domain: &Domain) -> Result<(Monitor, Vm), Failure> {
    let mut monitor = domain.monitor().map_err(|e| failed(&e))?;
    let socket = monitor
        .take_socket()
        .ok_or_else(|| Failure::Failed("no monitor".into()))?;
    let vm = Vm::over(socket, QMP_CONNECT_LIMIT).map_err(|e| failed(&e))?;
    Ok((monitor, vm))
}

fn refuse_what_libvirt_does_not_permit(how: &HowArgs) -> Result<(), Failure> {
    let why = match (how.protocol, how.on_stall) {
        (ProtocolArg::PostCopy, _) | (_, StallArg::PostCopy) => {
            "post-copy: libvirt would let go of the source's QEMU, which has the memory that is to follow, as soon as the VM runs at the destination"
        }
        (_, StallArg::AutoConverge) => {
            "--on-stall auto-converge: libvirt sets QEMU's throttling, and takes no limit for it"
        }
        _ => return Ok(()),
    };
    Err(Failure::Refused(format!(
        "{why}; --on-stall switchover ends what does not converge"
    )))
}

/// libvirt would find it out too, but only after it has begun.
fn compare_hosts(here: &Host, there: &Host) -> Result<(), Failure> {
    let (ours, theirs) = (here.uuid(), there.uuid());
    let (ours, theirs) = (
        ours.map_err(|e| failed(&e))?,
        theirs.map_err(|e| failed(&e))?,
    );
    match ours {
        Some(uuid) if theirs.as_ref() == Some(&uuid) => Err(Failure::Refused(format!(
            "libvirt takes both hosts for the same one, {uuid}: give one another `host_uuid` in /etc/libvirt/libvirtd.conf (or virtqemud.conf), and restart its daemon"
        ))),
        _ => Ok(()),
    }
}

fn refused(error: &libvirt_vm::Error) -> Failure {
    Failure::Refused(error.to_string())
}

/// QEMU's process, if this user may know it: only then its memory can be read.
fn process_of(domain: &str) -> Option<u32> {
    let file = Path::new("/run/libvirt/qemu").join(format!("{domain}.pid"));
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

impl Target {
    fn of(to: &str, relay: Option<&str>) -> Result<Self, Failure> {
        let (uri, host) = match to.split_once("://") {
            Some((_, rest)) => (to.to_owned(), host_in(rest)),
            None => (format!("qemu+ssh://{to}/system"), Some(to)),
        };
        let relay = match (relay, host) {
            (Some(relay), _) => relay.to_owned(),
            (None, Some(host)) => format!("{host}:{PORT}"),
            (None, None) => {
                return Err(Failure::Refused(format!(
                    "no host is named in {to}: say with --relay HOST:PORT where unmoord listens there"
                )));
            }
        };
        Ok(Target { uri, relay })
    }
}

/// The host in what follows a URI's scheme.
fn host_in(rest: &str) -> Option<&str> {
    let authority = rest.split(['/', '?']).next()?;
    let host = authority.rsplit('@').next()?;
    let host = match host.strip_prefix('[') {
        Some(rest) => &host[..rest.find(']')? + 2],
        None => host.split(':').next()?,
    };
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(to: &str) -> (String, String) {
        let target = Target::of(to, None).unwrap();
        (target.uri, target.relay)
    }

    #[test]
    fn a_host_stands_for_its_libvirt_and_its_relay() {
        let ssh = |uri: &str, relay: &str| (uri.to_owned(), relay.to_owned());
        assert_eq!(target("b"), ssh("qemu+ssh://b/system", "b:49140"));
        let uri = "qemu+ssh://root@b.example:2222/system?socket=/x";
        assert_eq!(target(uri), ssh(uri, "b.example:49140"));
        let uri = "qemu+tls://[fd00::2]/system";
        assert_eq!(target(uri), ssh(uri, "[fd00::2]:49140"));
        assert_eq!(
            target("[fd00::2]"),
            ssh("qemu+ssh://[fd00::2]/system", "[fd00::2]:49140")
        );
    }

    #[test]
    fn where_no_host_is_named_the_relay_has_to_be() {
        let uri = "qemu+unix:///system?socket=/run/x";
        let error = Target::of(uri, None).unwrap_err();
        assert!(error.to_string().contains("--relay"), "{error}");
        let target = Target::of(uri, Some("b:1")).unwrap();
        assert_eq!((target.uri.as_str(), target.relay.as_str()), (uri, "b:1"));
    }
}
