//! Programs that run inside the lab's guest, as one static binary.
//!
//! ```text
//! lab-guest control NAME          runs commands that arrive on a virtio-serial port
//! lab-guest echo PORT             answers UDP and TCP with what it gets
//! lab-guest writer MIB RATE MODE [NAME]
//!                                 dirties memory; RATE in MB/s (0: as fast as it can),
//!                                 MODE full (whole pages) or touch (8 bytes a page)
//! lab-guest writer-ctl [NAME] COMMAND
//!                                 verify, stat, corrupt: talks to the writer of that name
//! lab-guest writer-ctl NAME call-out ADDRESS
//!                                 has the writer connect to somebody outside, and answer there
//! lab-guest mechanisms FOLDER OUTSIDE
//!                                 exercises every way in which processes influence one another
//! lab-guest mechanisms --list     tells what there is, as data
//! lab-guest load NAME COUNT       does an operation so often, prints the nanoseconds of one
//! ```

mod control;
mod crowd;
mod echo;
mod load;
mod mechanisms;
mod writer;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["control", name] => control::run(name),
        ["crowd", processes, threads] => crowd::run(processes, threads),
        ["echo", port] => echo::run(port),
        ["writer", mib, rate, mode] => writer::run(mib, rate, mode, ""),
        ["writer", mib, rate, mode, name] => writer::run(mib, rate, mode, name),
        ["writer-ctl", command] => writer::ask("", command),
        ["writer-ctl", name, command] => writer::ask(name, command),
        ["writer-ctl", name, "call-out", address] => {
            writer::ask(name, &format!("call-out {address}"))
        }
        ["load", name, count] => load::run(name, count),
        ["load-echo"] => load::give_back(),
        ["mechanisms", "--list"] => mechanisms::list(),
        ["mechanisms", folder, outside] => mechanisms::run(folder, outside),
        // What a process of `mechanisms` replaces itself with.
        ["mechanisms-exec", done, name] => mechanisms::replaced(done, name),
        _ => Err("usage: lab-guest control|echo|load|mechanisms|writer|writer-ctl ...".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-guest: {error}");
            ExitCode::FAILURE
        }
    }
}

type Outcome = Result<(), Box<dyn std::error::Error>>;
