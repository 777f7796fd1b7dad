//! Probes that do not work: the others do, what is lost is named with its cause, and what depends on it
//! is uncertain. No process is taken to be independent that is not.
//!
//! The guest runs an agent whose programs in the kernel fail when they are told to (the feature
//! `faults`): the verifier refuses one, the kernel's type information lacks what it reads, or it cannot
//! be attached.

use anyhow::{Context, Result, ensure};
use guest_proto::{LossCause, LossEffect, Losses, ProbeState, Tier};
use lab::{Host, Kernel, Lab, LabOptions, Vm, VmOptions, results};
use serde_json::{Value, json};
use unmoor::agent::Words;
use unmoor_tests::connect_agent;
use unmoor_tests::mechanisms::{
    Seen, clear, exercise, judge, judge_leniently, mechanisms, run, wait_for,
};

/// Every probe, with what is uncertain without it.
const PROBES: [(&str, LossEffect); 31] = {
    use LossEffect::{Everyone, None, Users};
    [
        ("file_permission", Users),
        ("mmap_file", Users),
        ("file_lock", Users),
        ("path_truncate", Users),
        ("file_truncate", Users),
        ("do_splice", Users),
        ("do_tee", Users),
        ("vmsplice", Users),
        ("mq_timedsend", Users),
        ("mq_timedreceive", Users),
        ("msgsnd", Users),
        ("msgrcv", Users),
        ("semop", Users),
        ("inotify_event", Users),
        ("io_msg_ring", Users),
        ("socket_sendmsg", Users),
        ("socket_recvmsg", Users),
        ("socket_connect", Users),
        ("socket_accept", Users),
        ("unix_stream_connect", Users),
        ("unix_may_send", Users),
        ("sched_waking", Everyone),
        ("signal_generate", Everyone),
        ("ptrace_access_check", Everyone),
        ("ptrace_traceme", Everyone),
        ("process_fork", Everyone),
        ("process_exit", Everyone),
        ("process_wait", Users),
        ("held_files", Everyone),
        ("mappings", Everyone),
        ("tasks", None),
    ]
};

/// In which way one fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Verifier,
    Relocation,
    Attach,
}

const WAYS: [Way; 3] = [Way::Verifier, Way::Relocation, Way::Attach];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Verifier => "verifier",
            Way::Relocation => "relocation",
            Way::Attach => "attach",
        }
    }

    fn cause(self) -> LossCause {
        match self {
            Way::Verifier => LossCause::Verifier,
            Way::Relocation => LossCause::Relocation,
            Way::Attach => LossCause::Attach,
        }
    }

    /// Programs that read what stands are never attached for long.
    fn suits(self, program: &str) -> bool {
        self != Way::Attach || !["held_files", "mappings", "tasks"].contains(&program)
    }

    /// What makes a program fail in this way. Where the hook's wrapper has a program of its own, that
    /// fails as well.
    fn faults(self, program: &str) -> String {
        let of = |program: &str| format!("{}:{program}", self.name());
        match program {
            "mmap_file" => format!("{},{}", of("mmap_file"), of("security_mmap_file")),
            _ => of(program),
        }
    }
}

/// A guest whose agent has these faults. Each has its own: an agent that is killed leaves the kernel with
/// probes to detach, for which its successor waits long.
fn guest(lab: &Lab, kernel: Kernel, faults: &str) -> Result<Vm> {
    let options = VmOptions {
        memory: "1G".into(),
        kernel,
        ..VmOptions::default()
    };
    let mut vm = Vm::start(lab, Host::A, &options)?;
    vm.wait_booted()?;
    vm.guest(&format!(
        "UNMOOR_AGENT_FAULTS={faults} setsid unmoor-agent-faults >/run/agent.log 2>&1 </dev/null &"
    ))?;
    let loaded = "grep -qE 'probes loaded|no probe works' /run/agent.log";
    if let Err(error) = wait_for(&mut vm, "the agent's probes", loaded) {
        return Err(error.context(vm.guest("cat /run/agent.log")?));
    }
    // Once beforehand: an emulator takes long for code that it meets for the first time, and a task that
    // is preempted inside a probe has that probe skipped for others.
    exercise(&mut vm, "/run/before")?;
    clear(&mut vm)?;
    Ok(vm)
}

/// What the agent says of one program: as expected.
fn named(state: &ProbeState, program: &str, way: Way, effect: LossEffect) -> Result<()> {
    let name = |name: &str| name.replace("security_", "");
    let mut lost = state.lost.iter();
    let lost = lost
        .find(|lost| name(&lost.name) == program)
        .with_context(|| format!("{program} is not named: {state:?}"))?;
    ensure!(lost.cause == way.cause(), "{lost:?}");
    ensure!(lost.effect == effect, "{lost:?}");
    ensure!(!lost.detail.is_empty() && !lost.sees.is_empty(), "{lost:?}");
    Ok(())
}

/// Exercises all mechanisms without some probes; yields how many were seen just as with all of them.
fn check(vm: &mut Vm, folder: &str, all: bool) -> Result<(Seen, [usize; 2])> {
    let mechanisms = mechanisms(vm)?;
    let seen = run(vm, folder)?;
    let words = Words::new(&seen.report.processes);
    let processes = seen.processes();
    let mut wrong = Vec::new();
    let mut exact = 0;
    for mechanism in mechanisms.iter().filter(|mechanism| !seen.skips(mechanism)) {
        wrong.extend(
            judge_leniently(mechanism, &processes)
                .into_iter()
                .map(|what| format!("{}: {what}", mechanism.name)),
        );
        let inexact = judge(mechanism, &processes, &words);
        exact += usize::from(inexact.is_empty());
        if !inexact.is_empty() {
            // Told where the test fails, as output is.
            println!("{}: {inexact:?}", mechanism.name);
        }
    }
    ensure!(wrong.is_empty(), "falsely independent: {wrong:?}");
    println!(
        "{:?} {}",
        seen.report.summary,
        vm.guest("cat /run/agent.log")?
    );
    // If everything is uncertain, no process may pause.
    let independent = seen.report.processes.iter();
    let independent = independent.filter(|one| !one.class.stays_live()).count();
    ensure!(!all || independent == 0, "{independent} are independent");
    let exercised = mechanisms.iter().filter(|one| !seen.skips(one)).count();
    Ok((seen, [exact, exercised]))
}

/// One set of faults: each is named, and no process is falsely independent. How many mechanisms are seen
/// exactly is counted in a run in which no probe was skipped.
fn one(lab: &Lab, kernel: Kernel, lost: &[(&str, LossEffect, Way)]) -> Result<Value> {
    let faults: Vec<String> = lost.iter().map(|(name, _, way)| way.faults(name)).collect();
    let mut vm = guest(lab, kernel, &faults.join(","))?;
    let all = lost
        .iter()
        .any(|(_, effect, _)| *effect == LossEffect::Everyone);
    let mut attempt = 0;
    let (seen, [exact, exercised]) = loop {
        attempt += 1;
        let (seen, counts) = check(&mut vm, &format!("/run/m{attempt}"), all)?;
        if seen.report.summary.losses == Losses::default() || attempt == RUNS_MAX {
            break (seen, counts);
        }
        clear(&mut vm)?;
    };
    for (program, effect, way) in lost {
        named(&seen.probes, program, *way, *effect)?;
    }
    ensure!(seen.probes.lost.len() == lost.len(), "{:?}", seen.probes);
    println!("{faults:?}: {exact} of {exercised} as with all probes, in run {attempt}");
    Ok(json!({
        "faults": faults,
        "kernel": kernel.label(),
        "seen_as_with_all_probes": exact,
        "exercised": exercised,
        "attempts": seen.probes.tries,
        "load_ms": seen.probes.took_ms,
        "lost": seen.probes.lost,
    }))
}

/// Runs until one in which no probe was skipped.
const RUNS_MAX: u32 = 4;

/// The newest kernel takes all probes. Then some of each kind do not work; all of them in the slow test.
#[test]
fn a_probe_that_does_not_work_costs_what_it_would_have_seen() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    use LossEffect::{Everyone, None, Users};
    let cases: [&[(&str, LossEffect, Way)]; 2] = [
        &[
            ("do_tee", Users, Way::Verifier),
            ("unix_may_send", Users, Way::Relocation),
            ("mq_timedsend", Users, Way::Attach),
        ],
        &[
            ("tasks", None, Way::Verifier),
            ("process_fork", Everyone, Way::Verifier),
        ],
    ];
    let newest = Kernel::NewestCloud;
    // With all of them: on the newest kernel none is missing, and every mechanism is seen.
    let mut rows = vec![one(&lab, newest, &[])?];
    let figure = |row: &Value, name: &str| row[name].as_u64().unwrap_or(0);
    let all = figure(&rows[0], "exercised");
    ensure!(
        all > 0 && figure(&rows[0], "seen_as_with_all_probes") == all,
        "{}",
        rows[0]
    );
    for case in cases {
        rows.push(one(&lab, newest, case)?);
    }
    // Without three of them, the rest is seen as before.
    let some = figure(&rows[1], "seen_as_with_all_probes");
    ensure!(some >= all / 2, "{some} of {all}");
    results::record("lost_probes", &rows)
}

#[test]
#[ignore = "slow: run by make test-slow"]
fn each_probe_in_turn_and_pairs_of_them_do_not_work() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let mut rows = Vec::new();
    let single = PROBES
        .iter()
        .flat_map(|(program, effect)| WAYS.map(|way| (*program, *effect, way)))
        .filter(|(program, _, way)| way.suits(program))
        .map(|one| vec![one]);
    // Each with the one that stands seven places on: neighbours see much of the same.
    let pairs = (0..PROBES.len()).map(|at| {
        let (one, other) = (PROBES[at], PROBES[(at + 7) % PROBES.len()]);
        let way = |at: usize, program| match WAYS[at % 3] {
            way if way.suits(program) => way,
            _ => Way::Verifier,
        };
        vec![
            (one.0, one.1, way(at, one.0)),
            (other.0, other.1, way(at + 1, other.0)),
        ]
    });
    for case in single.chain(pairs) {
        let newest = Kernel::NewestCloud;
        rows.push(one(&lab, newest, &case).with_context(|| format!("{case:?}"))?);
    }
    // Where files are sent to sockets without a word, and hooks have other names.
    for program in ["file_permission", "path_truncate", "do_splice"] {
        let case = [(program, LossEffect::Users, Way::Verifier)];
        rows.push(one(&lab, Kernel::V6_1, &case).with_context(|| format!("{case:?} on 6.1"))?);
    }
    results::record("lost_probes_all", &rows)
}

/// How long the agent needs without 0, 1 and 8 probes; and that it gives up in the end.
#[test]
#[ignore = "slow: run by make test-slow"]
fn attempts_are_bounded() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let mut rows = Vec::new();
    for count in [0, 1, 8, PROBES.len()] {
        let faults: Vec<String> = PROBES[..count]
            .iter()
            .map(|(program, _)| Way::Verifier.faults(program))
            .collect();
        let mut vm = guest(&lab, Kernel::NewestCloud, &faults.join(","))?;
        let (mut client, welcome) = connect_agent(&vm)?;
        let state = client.probe_state()?;
        if count == PROBES.len() {
            ensure!(matches!(welcome.tier, Tier::StandingFactsOnly { .. }));
            let cause = state.none.as_ref().map(|(cause, _)| *cause);
            ensure!(cause == Some(LossCause::TooMany), "{state:?}");
        } else {
            ensure!(state.lost.len() == count, "{state:?}");
            let resident = vm.guest(
                "grep VmRSS /proc/$(pidof unmoor-agent-faults | tr ' ' '\\n' | sort -n | head -n 1)/status",
            )?;
            rows.push(json!({
                "failures": count,
                "attempts": state.tries,
                "load_ms": state.took_ms,
                "resident": resident.trim(),
            }));
        }
    }
    results::record("lost_probes_start", &rows)
}
