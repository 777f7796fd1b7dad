//! Certificates on both sides: a VM moves with them, and nobody gets anything without.

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use lab::relay::{PORT, Unmoor};
use lab::{HOST_A, HOST_B, Host, Lab, LabOptions, Vm, VmOptions, ram, results};
use rcgen::{CertificateParams, DnType, Issuer, KeyPair};
use rustix::process::Signal;
use serde_json::{Value, json};
use time::OffsetDateTime;
use unmoor_tests::authority::Authority;
use unmoor_tests::{MIGRATION_LIMIT, Pair, SHORT, start_writer, verify_writer};

/// A client whose certificate was good until an hour ago.
fn issue_expired(authority: &Authority, host: &str) -> Result<String> {
    let read = |name: &str| fs::read_to_string(authority.path(name));
    let key = KeyPair::from_pem(&read("ca-key.pem")?)?;
    let issuer = Issuer::from_ca_cert_pem(&read("ca-cert.pem")?, key)?;
    let mut params = CertificateParams::new([host.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, host);
    let now = OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::days(2);
    params.not_after = now - time::Duration::hours(1);
    let pair = KeyPair::generate()?;
    let folder = authority.path("expired");
    fs::create_dir_all(&folder)?;
    fs::copy(authority.path("ca-cert.pem"), folder.join("ca-cert.pem"))?;
    let signed = params.signed_by(&pair, &issuer)?;
    fs::write(folder.join("client-cert.pem"), signed.pem())?;
    fs::write(folder.join("client-key.pem"), pair.serialize_pem())?;
    Ok(folder.display().to_string())
}

/// As fast as it goes, with chunks of the stream on four encrypted connections.
#[test]
fn a_vm_moves_over_several_encrypted_connections() -> Result<()> {
    let authority = Authority::new()?;
    let (a, b) = (authority.issue(HOST_A)?, authority.issue(HOST_B)?);
    let options = VmOptions {
        network: false,
        ..VmOptions::default()
    };
    let mut waiting = options.as_destination();
    waiting.paused = true;
    let mut pair = Pair::with(&options, &waiting, None)?;
    start_writer(&mut pair.source, 128, 30, "text")?;
    let mut receiver = pair.receive(&["--once", "--tls-dir", &b])?;
    let mut sender = pair.send(&["--tls-dir", &a, "--connections", "4"])?;
    let summary = sender.summary(MIGRATION_LIMIT)?;
    assert_eq!(receiver.exit(SHORT)?, 0, "{:?}", receiver.events());
    for half in [&sender, &receiver] {
        let told = |event: &Value| {
            let text = event["text"].as_str();
            text.is_some_and(|text| text.ends_with("over 4 connections"))
        };
        half.await_matching("note", told, Duration::ZERO)?;
    }
    let diff = ram::compare(&mut pair.source, &mut pair.destination)?;
    assert!(diff.differing.is_empty(), "{diff:x?}");
    pair.destination.qmp("cont", &json!({}))?;
    verify_writer(&mut pair.destination)?;
    results::record("several_encrypted", &summary)
}

#[test]
fn a_vm_moves_with_certificates() -> Result<()> {
    let authority = Authority::new()?;
    let (a, b) = (authority.issue(HOST_A)?, authority.issue(HOST_B)?);
    let options = VmOptions {
        network: false,
        ..VmOptions::default()
    };
    let mut pair = Pair::new(&options)?;
    start_writer(&mut pair.source, 64, 20, "full")?;
    let mut receiver = pair.receive(&["--once", "--tls-dir", &b, "--tls-allow", HOST_A])?;
    let mut sender = pair.send(&["--tls-dir", &a])?;
    let summary = sender.summary(MIGRATION_LIMIT)?;
    assert_eq!(receiver.exit(SHORT)?, 0, "{:?}", receiver.events());
    verify_writer(&mut pair.destination)?;
    let connected = sender.await_event("connected", Duration::ZERO)?;
    let path = connected["path"].as_str().context("no path")?;
    assert!(path.starts_with(&format!("{HOST_A}:")), "{path}");
    assert!(
        path.contains(&format!("{HOST_B}:{PORT}: TLS 1.3 AES")),
        "{path}"
    );
    assert!(path.ends_with(&format!("with {HOST_B}")), "{path}");
    let connected = receiver.await_event("connected", Duration::ZERO)?;
    let path = connected["path"].as_str().context("no path")?;
    assert!(path.ends_with(&format!("with {HOST_A}")), "{path}");
    results::record("moved_with_certificates", &summary)
}

/// Two QEMUs that nothing is to happen to, and a receiver with certificates that stays.
struct Refusals {
    receiver: Unmoor,
    authority: Authority,
    destination: Vm,
    source: Vm,
    lab: Lab,
}

impl Refusals {
    fn new(more: &[&str]) -> Result<Self> {
        let options = VmOptions {
            memory: "128M".into(),
            network: false,
            ..VmOptions::default()
        };
        let lab = Lab::new(&LabOptions::default())?;
        let source = Vm::start(&lab, Host::A, &options)?;
        let destination = Vm::start(&lab, Host::B, &options.as_destination())?;
        let authority = Authority::new()?;
        let b = authority.issue(HOST_B)?;
        let mut args = vec!["--tls-dir", &b];
        args.extend(more);
        let receiver = Unmoor::receive(&lab, Host::B, &destination, &args)?;
        Ok(Refusals {
            receiver,
            authority,
            destination,
            source,
            lab,
        })
    }

    /// A source that is refused, with these words.
    fn refuses(&mut self, args: &[&str], code: i32, words: &str) -> Result<()> {
        let mut sender = Unmoor::send(&self.lab, Host::A, &self.source, args)?;
        assert_eq!(sender.exit(SHORT)?, code, "{:?}", sender.events());
        let told = sender.await_event("failed", Duration::ZERO)?;
        let text = told["error"].as_str().unwrap_or_default();
        assert!(text.contains(words), "`{words}` is not in {text}");
        assert_eq!(self.source.status()?, "running");
        assert_eq!(self.destination.status()?, "inmigrate");
        let name = words.replace(|c: char| !c.is_alphanumeric(), "_");
        results::record(&format!("refused_{name}"), &told)
    }

    /// The receiver tells that it has turned somebody away.
    fn turned_away(&self, words: &str) -> Result<()> {
        let is_it = |event: &Value| {
            let text = event["text"].as_str().unwrap_or_default();
            text.contains("was not let in") && text.contains(words)
        };
        self.receiver.await_matching("note", is_it, SHORT).map(drop)
    }

    /// A shell command on the source's host.
    fn bash(&self, command: &str) -> Result<Child> {
        let port = PORT.to_string();
        let mut bash = self.lab.command(Host::A, "bash");
        bash.args(["-c", command, HOST_B, &port]);
        let child = bash.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        Ok(child)
    }

    /// What the port answers to a shell command.
    fn answer(&self, command: &str) -> Result<Vec<u8>> {
        Ok(self.bash(command)?.wait_with_output()?.stdout)
    }

    /// The right source is let in still.
    fn lets_the_right_one_in(&mut self) -> Result<()> {
        let a = self.authority.issue(HOST_A)?;
        let mut sender = Unmoor::send(&self.lab, Host::A, &self.source, &["--tls-dir", &a])?;
        sender.summary(MIGRATION_LIMIT)?;
        assert_eq!(
            self.receiver.exit(SHORT)?,
            0,
            "{:?}",
            self.receiver.events()
        );
        Ok(())
    }
}

#[test]
fn certificates_that_are_not_accepted() -> Result<()> {
    let mut lab = Refusals::new(&["--tls-allow", "host-a", "--tls-allow", HOST_A])?;
    let (trusted, other) = (lab.authority.issue("host-a")?, Authority::new()?);
    let foreign = other.issue("host-a")?;

    lab.refuses(
        &["--tls-dir", &foreign],
        1,
        "its certificate is not from the authority that this side trusts",
    )?;
    lab.turned_away("the other side refuses")?;
    // It trusts ours, and shows its own.
    fs::copy(
        lab.authority.path("ca-cert.pem"),
        other.path("host-a").join("ca-cert.pem"),
    )?;
    lab.refuses(
        &["--tls-dir", &foreign],
        1,
        "the other side refuses: our certificate is not from the authority that it trusts",
    )?;
    lab.turned_away("is not from the authority")?;
    let expired = issue_expired(&lab.authority, "host-a")?;
    lab.refuses(
        &["--tls-dir", &expired],
        1,
        "the other side refuses: our certificate has expired",
    )?;
    lab.turned_away("has expired")?;
    lab.refuses(
        &["--tls-dir", &trusted, "--tls-hostname", "elsewhere"],
        1,
        "its certificate is for another host",
    )?;
    let stranger = lab.authority.issue("stranger")?;
    lab.refuses(
        &["--tls-dir", &stranger],
        3,
        "stranger is not among those that are let in there",
    )?;
    lab.turned_away("stranger is not named by --tls-allow")?;
    lab.refuses(&["--tls-dir", "/nowhere"], 3, "/nowhere has no ca-cert.pem")?;
    lab.refuses(&[], 1, "does not speak")?;
    lab.turned_away("does not speak TLS")?;
    lab.lets_the_right_one_in()
}

/// Whoever has no certificate learns nothing, not even what is spoken here.
#[test]
fn strangers_get_nothing() -> Result<()> {
    let mut lab = Refusals::new(&[])?;
    let plain =
        "exec 3<>/dev/tcp/$0/$1; printf 'UNMOOR\\r\\n\\0\\1\\0\\1\\0\\0\\0\\0' >&3; cat <&3";
    let tls = "openssl s_client -quiet -connect $0:$1";
    for (command, words) in [
        (plain.to_owned(), "does not speak TLS"),
        (format!("sleep 10 | {tls} -tls1_2"), "TLS 1.3"),
        (format!("sleep 10 | {tls} -tls1_3"), "shows no certificate"),
    ] {
        let answer = lab.answer(&command)?;
        lab.turned_away(words).with_context(|| command.clone())?;
        let text = String::from_utf8_lossy(&answer);
        assert!(!text.contains("UNMOOR"), "{command}: {text}");
        // An alert, in plain text, is seven bytes.
        assert!(answer.len() <= 7, "{command}: {answer:?}");
    }
    lab.lets_the_right_one_in()
}

/// Those who say nothing, or anything, stand in nobody's way.
#[test]
fn a_crowd_at_the_door() -> Result<()> {
    let mut lab = Refusals::new(&[])?;
    let of_receiver = |what: &str| format!("/proc/{}/{what}", lab.receiver.pid());
    let descriptors = || Ok::<_, anyhow::Error>(fs::read_dir(of_receiver("fd"))?.count());
    let memory = || {
        let status = fs::read_to_string(of_receiver("status"))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.context("no VmRSS")?.parse::<u64>().context("no number")
    };
    let (open_before, memory_before) = (descriptors()?, memory()?);
    // It holds a connection and says nothing, to the end of the test.
    let mut silent = lab.bash("exec 3<>/dev/tcp/$0/$1; echo here; exec cat <&3")?;
    let garbage = "for i in {1..100}; do (exec 3<>/dev/tcp/$0/$1; head -c 20000 /dev/urandom >&3; cat <&3) 2>/dev/null; done";
    lab.answer(garbage)?;
    lab.turned_away("")?;
    let told = lab.receiver.events();
    let notes = told.iter().filter(|event| event["event"] == "note").count();
    assert!(notes <= 20, "{notes} notes for a hundred");
    // Nobody is left but the one that says nothing.
    assert!(descriptors()? <= open_before + 1, "{} open", descriptors()?);
    let grown = memory()?.saturating_sub(memory_before);
    assert!(grown < 8 << 10, "{grown} KiB more");
    results::record(
        "a_crowd_at_the_door",
        &serde_json::json!({"notes": notes, "grown_kib": grown}),
    )?;
    lab.lets_the_right_one_in()?;
    silent.kill()?;
    silent.wait()?;
    Ok(())
}

/// A destination that is ready waits for a verdict: when the source relay has died, the guardian
/// delivers it, and is let in.
#[test]
fn the_guardian_has_certificates_too() -> Result<()> {
    let authority = Authority::new()?;
    let (a, b) = (authority.issue(HOST_A)?, authority.issue(HOST_B)?);
    let options = VmOptions {
        network: false,
        ..VmOptions::default()
    };
    let mut pair = Pair::new(&options)?;
    start_writer(&mut pair.source, 32, 20, "full")?;
    let gate = pair.lab.run_dir().join("gate");
    rustix::fs::mkfifoat(rustix::fs::CWD, &gate, 0o600.into())?;
    let hold = format!("read go < {}", gate.display());
    let mut receiver = pair.receive(&["--once", "--tls-dir", &b])?;
    let sender = pair.send(&["--tls-dir", &a, "--before-commit", &hold])?;
    sender.await_event("ready", MIGRATION_LIMIT)?;
    sender.signal(Signal::KILL)?;
    let ended = receiver.exit(SHORT)?;
    assert!([1, 4].contains(&ended), "{ended}");
    pair.source.wait_status("running", SHORT)?;
    verify_writer(&mut pair.source)?;
    pair.destination.wait_ended(SHORT)?;
    Ok(())
}
