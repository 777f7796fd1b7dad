//! Every mechanism works, in namespaces of their own where the kernel allows them to anybody.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const PROGRAM: &str = env!("CARGO_BIN_EXE_lab-guest");
/// Longest wait for all processes: most of it passes while others use the processors.
const PATIENCE: Duration = Duration::from_secs(120);

/// With a network like the guest's: then what is passed is run.
const NETWORK: &str = r#"
    ip link set lo up &&
    ip link add eth0 type veth peer name eth1 &&
    ip address add 10.77.0.10/24 dev eth0 &&
    ip link set eth0 up && ip link set eth1 up &&
    exec "$0" "$@"
"#;

/// A command in namespaces of its own, all of whose processes end with it.
fn apart(program: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--net", "--ipc", "--pid"])
        .args(["--fork", "--kill-child", "--mount-proc"])
        .args(["sh", "-c", NETWORK, program])
        .stderr(Stdio::inherit());
    command
}

/// Ends with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_until(what: &str, mut reached: impl FnMut() -> bool) -> Outcome {
    let begun = Instant::now();
    while !reached() {
        if begun.elapsed() > PATIENCE {
            return Err(format!("waited in vain: {what}").into());
        }
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The processes that there should be: `NAME.1a` and so on.
fn members() -> Result<BTreeSet<String>, Box<dyn std::error::Error>> {
    let output = Command::new(PROGRAM)
        .args(["mechanisms", "--list"])
        .output()?;
    let mut members = BTreeSet::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let fields: Vec<_> = line.split('\t').collect();
        let [name, expectation, _kind, _direction] = fields[..] else {
            return Err(format!("not four fields: {line}").into());
        };
        members.extend(["1a", "2a", "2b"].map(|member| format!("{name}.{member}")));
        if expectation != "direct" {
            members.insert(format!("{name}.1b"));
        }
    }
    Ok(members)
}

/// The processes that have reached a state.
fn reached(folder: &Path, state: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some(name.strip_prefix(state)?.strip_prefix('.')?.to_owned())
        })
        .collect()
}

#[test]
fn every_mechanism_works() -> Outcome {
    if !apart("true").status()?.success() {
        eprintln!("no namespaces here: nothing is tested");
        return Ok(());
    }
    let members = members()?;
    assert!(members.len() > 200, "that is not all");
    let scratch = tempfile::tempdir()?;
    let folder = scratch.path().join("m");
    let mut command = apart(PROGRAM);
    command
        .arg("mechanisms")
        .arg(&folder)
        .arg("10.77.0.100:9")
        .stdin(Stdio::null());
    let mut running = Running(command.spawn()?);
    let mut ended = false;
    wait_until("ready", || {
        ended = running.0.try_wait().is_ok_and(|status| status.is_some());
        ended || folder.join("ready").exists()
    })?;
    assert!(!ended, "it has ended");
    assert_eq!(reached(&folder, "done"), BTreeSet::new());
    fs::write(folder.join("go"), "")?;

    let finished = |folder| {
        let (done, skipped) = (reached(folder, "done"), reached(folder, "skipped"));
        done.union(&skipped).cloned().collect::<BTreeSet<_>>()
    };
    let waited = wait_until("done", || {
        finished(&folder) == members || !reached(&folder, "failed").is_empty()
    });
    for state in ["failed", "skipped"] {
        for member in reached(&folder, state) {
            let why = fs::read_to_string(folder.join(format!("{state}.{member}")))?;
            eprintln!("{state}: {member}: {why}");
        }
    }
    let missing: Vec<_> = members.difference(&finished(&folder)).cloned().collect();
    assert_eq!(missing, Vec::<String>::new());
    assert_eq!(reached(&folder, "failed"), BTreeSet::new());
    waited
}
