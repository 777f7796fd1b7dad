//! Why programs did not load, from the words of libbpf and the kernel.
//!
//! libbpf's errors are numbers; which program failed, and whether it was the verifier or the type
//! information, only its messages say. They are kept while programs are loaded.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

use guest_proto::LossCause;
use libbpf_rs::PrintLevel;

/// Bytes of messages that are kept: the verifier's log of one program can be longer; its end counts.
const KEPT_MAX: usize = 256 * 1024;
/// The oldest kernel that has all that the programs use, by its documentation.
const OLDEST: (u32, u32) = (5, 12);

static SAID: Mutex<String> = Mutex::new(String::new());

/// Keeps what libbpf says from now on, and forgets what it has said.
pub(super) fn listen() {
    heard();
    libbpf_rs::set_print(Some((PrintLevel::Warn, keep)));
}

/// What libbpf has said since the last time.
pub(super) fn heard() -> String {
    std::mem::take(&mut SAID.lock().unwrap_or_else(PoisonError::into_inner))
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the library calls it with a String"
)]
fn keep(_: PrintLevel, text: String) {
    // The system's log gets it as well; a log that cannot be written is no reason to fail.
    let _ = std::io::stderr().write_all(text.as_bytes());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    said.push_str(&text);
    if said.len() > KEPT_MAX {
        let mut cut = said.len() - KEPT_MAX;
        while !said.is_char_boundary(cut) {
            cut += 1;
        }
        said.drain(..cut);
    }
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Diagnosis {
    /// The program that failed; none where that is not known, or where all would.
    pub(super) program: Option<String>,
    pub(super) cause: LossCause,
    pub(super) detail: String,
}

/// What the diagnosis looks at besides the messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Circumstances {
    /// The kernel's release.
    pub(super) release: String,
    /// What the kernel says of lockdown, such as `none [integrity] confidentiality`.
    pub(super) lockdown: String,
}

/// Understands a failed attempt to load the programs.
pub(super) fn diagnose(said: &str, error: &str, circumstances: &Circumstances) -> Diagnosis {
    let program = failed_program(said);
    let log = verifier_log(said);
    let has = |text: &str| said.contains(text);
    let out_of_memory = has("-ENOMEM") || has("(-12)") || error.contains("os error 12)");
    let not_permitted = has("-EPERM") || has("(-1)") || error.contains("os error 1)");
    let locked = circumstances.lockdown.contains("[confidentiality]");
    let unknown_helper = ["unknown func", "invalid func", "cannot use helper"]
        .iter()
        .any(|text| has(text));
    let cause = if out_of_memory {
        LossCause::Memory
    } else if locked && (not_permitted || unknown_helper) {
        LossCause::Lockdown
    } else if has("failed to find valid kernel BTF") || has("Error loading vmlinux BTF") {
        LossCause::NoTypeInformation
    } else if has("CO-RE relocation") {
        LossCause::Relocation
    } else if has("failed to find kernel BTF type ID") {
        LossCause::NotInKernel
    } else if unknown_helper && is_too_old(&circumstances.release) {
        LossCause::TooOld
    } else if log.is_some() {
        LossCause::Verifier
    } else if not_permitted {
        // The verifier says more than that.
        LossCause::Privilege
    } else {
        LossCause::Other
    };
    let detail = log
        .and_then(|log| last_words(log, cause))
        .or_else(|| last_of_program(said));
    Diagnosis {
        program: program.filter(|_| !cause.concerns_all()),
        cause,
        detail: detail.unwrap_or(error).to_owned(),
    }
}

/// `prog 'NAME': failed to load: -EACCES` and its like; the last, for the library goes on after
/// warnings.
fn failed_program(said: &str) -> Option<String> {
    let failures = ["failed to load", "failed to", "BPF program load failed"];
    said.lines()
        .filter(|line| failures.iter().any(|failure| line.contains(failure)))
        .filter_map(|line| line.split_once("prog '")?.1.split_once('\''))
        .map(|(name, _)| name.to_owned())
        .next_back()
}

/// The last thing that was said of a program, where the verifier has not been asked.
fn last_of_program(said: &str) -> Option<&str> {
    let mut lines = said.lines().filter(|line| line.contains("prog '"));
    // That it has failed is known.
    lines.rfind(|line| !line.contains(": failed to load: "))
}

/// The verifier's log, if it wrote one.
fn verifier_log(said: &str) -> Option<&str> {
    const END: &str = "-- END PROG LOAD LOG --";
    // Of one that was longer than what is kept, the end is there.
    let log = match said.rsplit_once("-- BEGIN PROG LOAD LOG --") {
        Some((_, log)) => log,
        None => said.rsplit_once(END)?.0,
    };
    let log = log.split(END).next()?.trim();
    (!log.is_empty()).then_some(log)
}

/// What the verifier refuses, in its words. From 7.3 on it explains itself at length, and marks the
/// error in what it shows of the source; before, it ends with the error and statistics.
fn last_words(log: &str, cause: LossCause) -> Option<&str> {
    const ERROR: &str = "^-- error: ";
    const UNRESOLVED: &str = "failed to resolve CO-RE relocation";
    let statistics = ["processed ", "verification time", "stack depth", "-- "];
    let lines = || log.lines().map(str::trim).filter(|line| !line.is_empty());
    if cause == LossCause::Relocation {
        return lines()
            .find(|line| line.starts_with(UNRESOLVED))
            .or_else(|| lines().find(|line| line.contains("CO-RE relocation")));
    }
    let marked = lines().find_map(|line| Some(line.split_once(ERROR)?.1));
    marked.or_else(|| lines().rfind(|line| !statistics.iter().any(|start| line.starts_with(start))))
}

/// Whether a kernel lacks what the programs use.
pub(super) fn is_too_old(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) < OLDEST,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(release: &str, lockdown: &str) -> Circumstances {
        Circumstances {
            release: release.into(),
            lockdown: lockdown.into(),
        }
    }

    /// As libbpf 1.7 said it of Linux 7.3 and 5.10, and of hosts without the privilege.
    #[test]
    fn causes_are_told_from_one_another() {
        let verifier = "libbpf: prog 'file_permission': BPF program load failed: -EACCES\n\
            libbpf: prog 'file_permission': -- BEGIN PROG LOAD LOG --\n\
            0: R1=ctx() R10=fp0\n\
            R4 pointer ^= pointer prohibited\n\
            processed 84 insns (limit 1000000) max_states_per_insn 0\n\
            -- END PROG LOAD LOG --\n\
            libbpf: prog 'file_permission': failed to load: -EACCES\n\
            libbpf: failed to load object 'tracker_bpf'\n";
        let relocation = "libbpf: prog 'do_tee': BPF program load failed: -EINVAL\n\
            libbpf: prog 'do_tee': -- BEGIN PROG LOAD LOG --\n\
            39: <invalid CO-RE relocation>\n\
            failed to resolve CO-RE relocation <byte_off> [221] struct tty_driver.type (0:2 @ offset 8)\n\
            processed 40 insns\n\
            -- END PROG LOAD LOG --\n\
            libbpf: prog 'do_tee': failed to load: -EINVAL\n";
        let helper = "libbpf: prog 'file_permission': -- BEGIN PROG LOAD LOG --\n\
            invalid func unknown#158\n\
            -- END PROG LOAD LOG --\n\
            libbpf: prog 'file_permission': failed to load: -EINVAL\n";
        let permission = "libbpf: prog 'file_permission': BPF program load failed: -EPERM\n\
            libbpf: permission error while running as root; try raising 'ulimit -l'? current value: 8.0 MiB\n\
            libbpf: prog 'file_permission': failed to load: -EPERM\n";
        let target = "libbpf: prog 'semop': failed to find kernel BTF type ID of 'bpf_lsm_sem_semop': -ESRCH\n\
            libbpf: prog 'semop': failed to prepare load attributes: -ESRCH\n\
            libbpf: prog 'semop': failed to load: -ESRCH\n";
        let memory = "libbpf: map 'edges': failed to create: -ENOMEM\n";
        let no_btf = "libbpf: failed to find valid kernel BTF\n\
            libbpf: Error loading vmlinux BTF: -3\n";
        let explained = "libbpf: prog 'do_tee': -- BEGIN PROG LOAD LOG --\n\
            >>> 144 |         MAY_FAIL(do_tee);\n\
            |         ^-- error: invalid dereference of R0 (an integer scalar)\n\
            Suggestion:\n\
            Preserve a pointer-valued register where needed.\n\
            processed 9 insns (limit 1000000)\n\
            -- END PROG LOAD LOG --\n\
            libbpf: prog 'do_tee': failed to load: -EACCES\n";
        let said_first = "libbpf: prog 'file_permission': BPF program load failed: -EPERM";
        let said_last = "libbpf: prog 'semop': failed to prepare load attributes: -ESRCH";
        let scalar = "invalid dereference of R0 (an integer scalar)";
        let refused = "R4 pointer ^= pointer prohibited";
        let field = "failed to resolve CO-RE relocation <byte_off> [221] struct tty_driver.type (0:2 @ offset 8)";
        use LossCause as C;
        for (said, kernel, cause, program, detail) in [
            (
                verifier,
                "7.3.4",
                C::Verifier,
                Some("file_permission"),
                refused,
            ),
            (explained, "7.3.4", C::Verifier, Some("do_tee"), scalar),
            (relocation, "7.3.4", C::Relocation, Some("do_tee"), field),
            (
                helper,
                "5.10.0-32-amd64",
                C::TooOld,
                None,
                "invalid func unknown#158",
            ),
            (
                helper,
                "6.1.0",
                C::Verifier,
                Some("file_permission"),
                "invalid func unknown#158",
            ),
            (permission, "6.1.0", C::Privilege, None, said_first),
            (target, "6.1.0", C::NotInKernel, Some("semop"), said_last),
            (memory, "6.1.0", C::Memory, None, "error"),
            (no_btf, "6.1.0", C::NoTypeInformation, None, "error"),
            ("", "6.1.0", C::Other, None, "error"),
        ] {
            let found = diagnose(
                said,
                "error",
                &on(kernel, "none [integrity] confidentiality"),
            );
            assert_eq!(found.cause, cause, "{said}");
            assert_eq!(found.program.as_deref(), program, "{said}");
            assert_eq!(found.detail, detail, "{said}");
        }
        let locked = on("6.1.0", "none integrity [confidentiality]");
        for said in [permission, helper] {
            assert_eq!(diagnose(said, "", &locked).cause, C::Lockdown);
        }
    }

    #[test]
    fn of_a_log_that_is_too_long_the_end_counts() {
        let mut said = "libbpf: prog 'do_tee': -- BEGIN PROG LOAD LOG --\n".to_owned();
        said += &"0: (b7) r0 = 0\n".repeat(KEPT_MAX / 10);
        said += "R4 pointer ^= pointer prohibited\nprocessed 9 insns\n-- END PROG LOAD LOG --\n\
            libbpf: prog 'do_tee': failed to load: -EACCES\n";
        let kept = &said[said.len() - KEPT_MAX..];
        let found = diagnose(kept, "error", &on("7.3.4", ""));
        assert_eq!(found.cause, LossCause::Verifier);
        assert_eq!(found.program.as_deref(), Some("do_tee"));
        assert_eq!(found.detail, "R4 pointer ^= pointer prohibited");
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        for (release, too_old) in [
            ("5.10.0-32-cloud-amd64", true),
            ("5.4", true),
            ("4.19.0", true),
            ("5.12.0", false),
            ("6.1.0-56", false),
            ("10.0-rc1", false),
            ("", false),
            ("unknown", false),
        ] {
            assert_eq!(is_too_old(release), too_old, "{release}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded() {
        listen();
        for _ in 0..10 {
            keep(PrintLevel::Warn, "ä".repeat(KEPT_MAX / 4));
        }
        assert!(heard().len() <= KEPT_MAX);
        assert_eq!(heard(), "");
    }
}
