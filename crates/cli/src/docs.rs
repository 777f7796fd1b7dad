//! Manual pages and completions, made from the one definition of the command line.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::daemon::DaemonArgs;
use crate::exit::Exit;

/// Prints a completion script, for the daemon as well.
pub(crate) fn completions(shell: Shell) -> Exit {
    clap_complete::generate(shell, &mut Cli::command(), "unmoor", &mut io::stdout());
    clap_complete::generate(
        shell,
        &mut DaemonArgs::command(),
        "unmoord",
        &mut io::stdout(),
    );
    Exit::Success
}

/// Writes a page for the program and one for each command.
pub(crate) fn man(directory: &Path) -> Exit {
    match write_pages(directory) {
        Ok(()) => Exit::Success,
        Err(error) => {
            eprintln!(
                "unmoor: cannot write manual pages into {}: {error}",
                directory.display()
            );
            Exit::Failed
        }
    }
}

fn write_pages(directory: &Path) -> io::Result<()> {
    let mut program = Cli::command();
    program.build();
    write_page(directory, "unmoor", program.clone())?;
    for command in program.get_subcommands() {
        if command.is_hide_set() || command.get_name() == "help" {
            continue;
        }
        let name = format!("unmoor-{}", command.get_name());
        write_page(directory, &name, command.clone())?;
    }
    write_page(directory, "unmoord", DaemonArgs::command())
}

fn write_page(directory: &Path, name: &str, command: clap::Command) -> io::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .title(name.to_uppercase())
        .render(&mut page)?;
    fs::write(directory.join(format!("{name}.1")), page)
}
