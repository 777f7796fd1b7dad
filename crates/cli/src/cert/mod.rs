//! `unmoor cert`: an authority and certificates for those who have none.

mod issue;
mod show;

use crate::args::CertCommand;
use crate::exit::Exit;

/// Runs the command.
pub(crate) fn run(command: &CertCommand) -> Exit {
    let done = match command {
        CertCommand::Init { dir, days, force } => issue::init(dir, *days, *force),
        CertCommand::Issue {
            hosts,
            dir,
            out,
            days,
            force,
        } => issue::issue(hosts, dir, out.as_deref().unwrap_or(dir), *days, *force),
        CertCommand::Show { paths, json } => show::show(paths, *json),
    };
    match done {
        Ok(text) => {
            print!("{text}");
            Exit::Success
        }
        Err(error) => {
            eprintln!("unmoor: {error}");
            Exit::Failed
        }
    }
}
