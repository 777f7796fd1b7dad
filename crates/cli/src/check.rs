//! `unmoor check`: will it work, and what to change if not.

use hypervisor::{RunState, Vm, check_destination, check_source};

use crate::QMP_CONNECT_LIMIT;
use crate::args::CheckArgs;
use crate::exit::Exit;

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
    let movable = findings.blockers().next().is_none();
    if args.json {
        let answer = serde_json::json!({
            "movable": movable,
            "role": if waits { "destination" } else { "source" },
            "vm": facts,
            "findings": findings,
            "agent": agent,
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
