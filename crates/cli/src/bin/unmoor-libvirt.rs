//! `unmoor migrate` and `unmoor prepare`, which need libvirt's library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    unmoor::run_managed(unmoor::args::Cli::parse()).into()
}
