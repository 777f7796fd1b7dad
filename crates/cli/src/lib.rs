//! `unmoor`: live migration of QEMU/KVM virtual machines through a relay on each host.
//!
//! [`run`] is the whole program. The data's way: QEMU's stream is read in `send`, goes through
//! the engine of the crate `migrate` and over a `net` link to `receive`, which writes the
//! destination QEMU's stream. Sockets, QMP, clocks and signals are here; what to do with them is
//! decided in `migrate`.

pub mod agent;
pub mod args;
mod bandwidth;
mod buffer;
mod cert;
mod check;
mod control;
pub mod daemon;
mod docs;
pub mod exit;
mod guardian;
mod guest_ram;
mod history;
#[cfg(feature = "libvirt")]
mod managed;
mod net;
mod pace;
mod plan;
mod poll;
mod receive;
mod report;
mod send;
mod signals;

use std::os::unix::process::CommandExt;
use std::process::Command as Exec;
use std::time::Duration;

use args::{Cli, Command};
use exit::Exit;
use rustix::process::DumpableBehavior;

/// Longest wait for QEMU's monitor to greet.
const QMP_CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Longest wait for the peer to take our last words.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(1);

/// This release, as it introduces itself to the peer.
const SOFTWARE: &str = concat!("unmoor ", env!("CARGO_PKG_VERSION"));

/// Runs the program.
pub fn run(cli: Cli) -> Exit {
    keep_to_itself();
    match cli.command {
        Command::Send(args) => send::run(&args),
        Command::Receive(args) => receive::run(&args),
        Command::Migrate(_) | Command::Prepare(_) => by_libvirt(),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => agent::explain::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Status(args) => control::status(&args),
        Command::Tune(args) => control::tune(&args),
        Command::Resolve(args) => control::resolve(&args),
        Command::History(args) => history::run(&args),
        Command::Cert(args) => cert::run(&args.command),
        Command::Completions { shell } => docs::completions(shell),
        Command::Man { directory } => docs::man(&directory),
        Command::Guardian => match guardian::run() {
            Ok(()) => Exit::Success,
            Err(error) => {
                eprintln!("unmoor guardian: {error}");
                Exit::Failed
            }
        },
    }
}

/// Runs `unmoor-libvirt` in the place of this program: that is the one which libvirt's library is in.
fn by_libvirt() -> Exit {
    let program = std::env::current_exe().map(|own| own.with_file_name("unmoor-libvirt"));
    let error = match &program {
        Ok(program) => Exec::new(program).args(std::env::args_os().skip(1)).exec(),
        Err(error) => std::io::Error::new(error.kind(), error.to_string()),
    };
    eprintln!(
        "unmoor: unmoor-libvirt, which has to be beside unmoor, cannot be run ({error}): build it with `make build FEATURES=libvirt`"
    );
    Exit::Refused
}

/// What `unmoor-libvirt` does.
#[cfg(feature = "libvirt")]
pub fn run_managed(cli: Cli) -> Exit {
    keep_to_itself();
    match cli.command {
        Command::Migrate(args) => managed::migrate(*args),
        Command::Prepare(args) => managed::prepare(&args),
        _ => {
            eprintln!("unmoor-libvirt: this is for `unmoor migrate` and `unmoor prepare`");
            Exit::Usage
        }
    }
}

/// Guest memory and keys pass through this process: it leaves no core dump, and nobody but root can
/// look into it.
fn keep_to_itself() {
    // Only an unknown wish is refused.
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Bytes from the system's random source.
fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

/// A VM waits for what this process passes on: it comes before others on this host, where it may. The
/// process ends when that is over.
fn hurry() {
    // Without the right to it things take a little longer.
    let _ = rustix::process::nice(-10);
}
