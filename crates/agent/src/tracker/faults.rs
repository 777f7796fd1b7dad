//! Programs that fail when they are told to, for tests: only in builds with the feature `faults`.
//!
//! `UNMOOR_AGENT_FAULTS=verifier:do_tee,relocation:file_lock,attach:vmsplice`

use std::io;

const VARIABLE: &str = "UNMOOR_AGENT_FAULTS";

/// In the order of `bpf/may_fail.h`.
const PROGRAMS: &str = include_str!("../../bpf/may_fail.h");

/// Names with the way in which each is to fail.
fn wanted() -> Vec<(String, String)> {
    let text = std::env::var(VARIABLE).unwrap_or_default();
    text.split(',')
        .filter_map(|fault| fault.split_once(':'))
        .map(|(way, program)| (way.to_owned(), program.to_owned()))
        .collect()
}

/// Sets the constants that make programs fail when they are loaded.
pub(super) fn inject(faults: &mut [u8]) {
    let names: Vec<&str> = PROGRAMS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("PROGRAM_")?.strip_suffix(','))
        .collect();
    assert_eq!(names.len(), faults.len(), "bpf/may_fail.h");
    for (way, program) in wanted() {
        let fault = match way.as_str() {
            "verifier" => 1,
            "relocation" => 2,
            _ => continue,
        };
        let at = names.iter().position(|name| *name == program);
        faults[at.unwrap_or_else(|| panic!("{VARIABLE}: no program {program}"))] = fault;
    }
}

/// Fails if attaching this program is to fail.
pub(super) fn attach(program: &str) -> libbpf_rs::Result<()> {
    let fails = |(way, name): &(String, String)| way == "attach" && name == program;
    match wanted().iter().any(fails) {
        true => Err(io::Error::from_raw_os_error(16).into()),
        false => Ok(()),
    }
}
