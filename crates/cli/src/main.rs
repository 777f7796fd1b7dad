//! The command line.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    unmoor::run(unmoor::args::Cli::parse()).into()
}
