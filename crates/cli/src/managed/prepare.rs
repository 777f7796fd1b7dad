//! `unmoor prepare`: what a VM needs for `unmoor migrate`, and what else would help.

use hypervisor::check_source;
use libvirt_vm::{Added, Channel, Description, Domain, Host};
use serde::Serialize;

use super::{open_monitor, refused};
use crate::args::PrepareArgs;
use crate::exit::Exit;
use crate::send::{Failure, failed};

/// What memory that others can map is described by.
const SHARED_MEMORY: &str =
    "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>";

/// How it is with the channel of the VM's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Agent {
    /// It was there.
    There,
    /// It is there now.
    Added,
    /// It will be, when the VM is started the next time.
    AddedForTheNextStart,
}

/// What has been found, and done.
#[derive(Debug, Serialize)]
struct Prepared {
    domain: String,
    agent: Agent,
    movable: bool,
    /// Each with what to do about it.
    findings: Vec<String>,
}

/// Runs the command.
pub(crate) fn prepare(args: &PrepareArgs) -> Exit {
    if args.print {
        print!("{}", Description::AGENT_CHANNEL);
        return Exit::Success;
    }
    match look_and_add(args) {
        Ok(prepared) => {
            match args.json {
                true => println!("{}", serde_json::json!(prepared)),
                false => tell(&prepared),
            }
            match prepared.movable {
                true => Exit::Success,
                false => Exit::Refused,
            }
        }
        Err(failure) => {
            eprintln!("unmoor: {failure}");
            failure.exit()
        }
    }
}

fn look_and_add(args: &PrepareArgs) -> Result<Prepared, Failure> {
    let host = Host::open(&args.libvirt.connect).map_err(|e| failed(&e))?;
    let domain = host.domain(&args.domain).map_err(|e| refused(&e))?;
    let description = domain.description().map_err(|e| failed(&e))?;
    let (movable, mut findings) = look(&domain)?;
    if !description.memory_is_shared {
        findings.push(format!(
            "its memory is private: what is held back is read from QEMU's process, which needs root and is slower than a mapping; the next start can have {SHARED_MEMORY}"
        ));
    }
    let agent = match description.agent {
        Channel::Socket(_) | Channel::NoSocket => Agent::There,
        Channel::Missing => add(&domain, &description, &mut findings)?,
    };
    Ok(Prepared {
        domain: domain.name().to_owned(),
        agent,
        movable,
        findings,
    })
}

/// What QEMU says of itself, if there is one.
fn look(domain: &Domain) -> Result<(bool, Vec<String>), Failure> {
    if !domain.is_active().map_err(|e| failed(&e))? {
        let why = "it does not run: its QEMU is looked at once it does";
        return Ok((true, vec![why.to_owned()]));
    }
    let (_monitor, mut vm) = open_monitor(domain)?;
    let found = check_source(&mut vm).map_err(|e| failed(&e))?;
    let movable = found.blockers().next().is_none();
    Ok((movable, found.iter().map(ToString::to_string).collect()))
}

fn add(
    domain: &Domain,
    description: &Description,
    findings: &mut Vec<String>,
) -> Result<Agent, Failure> {
    match domain.add(Description::AGENT_CHANNEL) {
        Ok(Added::Now) => Ok(Agent::Added),
        Ok(Added::AtTheNextStart(why)) => {
            findings.extend(why.map(|why| {
                format!("the channel could not be added while the VM runs: libvirt: {why}")
            }));
            Ok(Agent::AddedForTheNextStart)
        }
        Err(error) if !description.has_serial_controller => Err(Failure::Refused(format!(
            "the channel cannot be added while the VM runs ({error}): it has no virtio-serial controller; start it anew with what `unmoor prepare --print` says"
        ))),
        Err(error) => Err(Failure::Refused(format!(
            "the channel cannot be added: {error}"
        ))),
    }
}

fn tell(prepared: &Prepared) {
    let domain = &prepared.domain;
    println!(
        "{}",
        match prepared.agent {
            Agent::There => format!("{domain}: it has a channel for the agent"),
            Agent::Added => format!("{domain}: it has a channel for the agent now"),
            Agent::AddedForTheNextStart =>
                format!("{domain}: it will have a channel for the agent when it is started anew"),
        }
    );
    for finding in &prepared.findings {
        println!("{finding}");
    }
    println!(
        "{}",
        match prepared.movable {
            true =>
                "what is left is unmoor-agent in the guest (`unmoor check` tells whether it answers)",
            false => "this VM cannot be moved as it is",
        }
    );
}
