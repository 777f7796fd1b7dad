//! `unmoor check`: will it work, and what to change if not.

use std::fmt;

use hypervisor::{RunState, Vm, check_destination, check_source};
use serde::Serialize;

use crate::QMP_CONNECT_LIMIT;
use crate::args::CheckArgs;
use crate::exit::Exit;
use crate::guest_ram::GuestRam;

/// Runs the command.
pub(crate) fn run(args: &CheckArgs) -> Exit {
    match check(args) {
        Ok(exit) => exit,
        Err(error) => {
            eprintln!("unmoor: {error}");
            Exit::Failed
        }
    }
}

/// Whether the source half can read the VM's memory.
#[derive(Debug, Serialize)]
struct Memory {
    readable: bool,
    /// All of it: an older QEMU does not tell where every block is.
    complete: bool,
    /// From a file that QEMU shares, and not from its process.
    shared: bool,
    /// Why it cannot be read.
    why: Option<String>,
}

impl Memory {
    fn of(vm: &mut Vm) -> Self {
        let opened = GuestRam::open(vm, None);
        Memory {
            readable: opened.is_ok(),
            complete: opened.as_ref().is_ok_and(GuestRam::is_complete),
            shared: opened.as_ref().is_ok_and(GuestRam::is_shared),
            why: opened.err(),
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = if self.shared {
            "the file that QEMU shares"
        } else {
            "QEMU's process"
        };
        match &self.why {
            None if !self.complete => write!(
                f,
                "memory: can be read in part from {from}: what is held back is copied, and --audit leaves blocks out"
            ),
            None => write!(
                f,
                "memory: can be read from {from}: what is held back is not copied, and --audit works"
            ),
            Some(why) => write!(
                f,
                "memory: cannot be read ({why}): what is held back is copied, and --audit is refused"
            ),
        }
    }
}

fn check(args: &CheckArgs) -> Result<Exit, hypervisor::Error> {
    let mut vm = Vm::connect(&args.qmp, QMP_CONNECT_LIMIT)?;
    let waits = vm.status()? == RunState::InMigrate;
    let findings = if waits {
        check_destination(&mut vm)?
    } else {
        check_source(&mut vm)?
    };
    let facts = vm.facts()?;
    let agent = args.agent.as_deref().map(crate::agent::Check::of);
    let memory = (!waits).then(|| Memory::of(&mut vm));
    let movable = findings.blockers().next().is_none();
    if args.json {
        let answer = serde_json::json!({
            "movable": movable,
            "role": if waits { "destination" } else { "source" },
            "vm": facts,
            "findings": findings,
            "agent": agent,
            "memory": memory,
        });
        println!("{answer}");
    } else {
        println!(
            "QEMU {}, {}, {} of RAM, {} vCPU, {}",
            facts.qemu_version,
            facts.machine_type,
            crate::report::bytes(facts.memory_bytes),
            facts.vcpus,
            if waits {
                "waits for a VM"
            } else {
                "has a VM to move"
            }
        );
        for finding in findings.iter() {
            println!("{finding}");
        }
        if let Some(memory) = &memory {
            println!("{memory}");
        }
        if let Some(agent) = &agent {
            println!("{agent}");
        }
        println!(
            "{}",
            match (movable, waits) {
                (true, false) => "this VM can be moved",
                (true, true) => "this QEMU can receive a VM",
                (false, false) => "this VM cannot be moved as it is",
                (false, true) => "this QEMU cannot receive a VM as it is",
            }
        );
    }
    Ok(if movable {
        Exit::Success
    } else {
        Exit::Refused
    })
}
