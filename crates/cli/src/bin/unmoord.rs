//! The command line of the daemon.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    unmoor::daemon::run(&unmoor::daemon::DaemonArgs::parse()).into()
}
