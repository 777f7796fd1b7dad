//! Bad input of every kind: one clear error that says what to do, and the VM untouched.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result};
use lab::relay::{self, PORT, Unmoor};
use lab::{HOST_B, Host, Lab, LabOptions, Vm, VmOptions, program, results};
use serde_json::{Value, json};
use unmoor_tests::{MIGRATION_LIMIT, Pair, SHORT, start_writer, verify_writer};
use wire::{Digest, Message, Preamble, put_control};

/// VMs whose guests need not have booted: nothing is to happen to them.
fn unbooted(source: &VmOptions, destination: &VmOptions) -> Result<Pair> {
    let lab = Lab::new(&LabOptions::default())?;
    Ok(Pair {
        source: Vm::start(&lab, Host::A, source)?,
        destination: Vm::start(&lab, Host::B, destination)?,
        lab,
    })
}

fn small() -> VmOptions {
    VmOptions {
        memory: "128M".into(),
        network: false,
        ..VmOptions::default()
    }
}

/// Runs `unmoor` outside the lab's namespaces, to its end.
fn unmoor(args: &[&str]) -> Result<Output> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new(program("unmoor"));
    relay::keep_apart(&mut command, folder.path(), "outside");
    Ok(command.args(args).output()?)
}

/// Waits for the failure of that exit code, whose message must contain all of `words`.
fn fails(unmoor: &mut Unmoor, code: i32, words: &[&str]) -> Result<()> {
    assert_eq!(unmoor.exit(MIGRATION_LIMIT)?, code, "{:?}", unmoor.events());
    let told = unmoor.await_event("failed", Duration::ZERO)?;
    let text = format!("{} {}", told["error"], told["vm"]);
    for word in words {
        assert!(text.contains(word), "`{word}` is not in {text}");
    }
    results::record(
        &format!(
            "error_{}",
            words[0].replace(|c: char| !c.is_alphanumeric(), "_")
        ),
        &told,
    )
}

/// A mismatch is found before anything is touched: the source runs, and the destination waits for
/// a better one.
fn refused(source: &VmOptions, destination: &VmOptions, words: &[&str]) -> Result<()> {
    let mut pair = unbooted(source, &destination.as_destination())?;
    let receiver = pair.receive(&[])?;
    let mut sender = pair.send(&[])?;
    fails(&mut sender, 3, words)?;
    let refusal = |e: &Value| {
        e["text"]
            .as_str()
            .is_some_and(|t| t.contains("waiting for another"))
    };
    receiver.await_matching("note", refusal, SHORT)?;
    assert_eq!(pair.source.status()?, "running");
    assert_eq!(pair.destination.status()?, "inmigrate");
    Ok(())
}

#[test]
fn a_destination_with_less_memory() -> Result<()> {
    let less = VmOptions {
        memory: "64M".into(),
        ..small()
    };
    refused(
        &small(),
        &less,
        &["has 64 MiB of RAM, the source 128 MiB", "-m 131072k"],
    )
}

#[test]
fn a_destination_with_other_devices() -> Result<()> {
    let more = VmOptions {
        extra: vec!["-device".into(), "virtio-balloon-pci".into()],
        ..small()
    };
    refused(
        &more,
        &small(),
        &["lacks devices that the source has (virtio-balloon-pci)"],
    )?;
    refused(
        &small(),
        &more,
        &["has devices that the source lacks (virtio-balloon-pci)"],
    )
}

#[test]
fn a_destination_of_another_machine_type() -> Result<()> {
    let old = VmOptions {
        machine: "pc-q35-7.2".into(),
        ..small()
    };
    refused(
        &small(),
        &old,
        &["has machine type pc-q35-7.2", "-machine pc-q35-10.0"],
    )
}

/// What QEMU itself refuses, when the state is loaded: the source resumes.
#[test]
fn a_destination_whose_devices_differ_inside() -> Result<()> {
    let queues = |number: u32| VmOptions {
        network: false,
        extra: vec![
            "-device".into(),
            format!("virtio-balloon-pci,id=balloon,addr=0x{number:x}"),
        ],
        ..VmOptions::default()
    };
    let mut pair = Pair::with(&queues(0x10), &queues(0x11).as_destination(), None)?;
    start_writer(&mut pair.source, 16, 5, "full")?;
    let mut receiver = pair.receive(&[])?;
    let mut sender = pair.send(&[])?;
    fails(
        &mut sender,
        1,
        &["the destination QEMU refused the VM", "at the source"],
    )?;
    fails(
        &mut receiver,
        1,
        &["the destination QEMU refused", "was not started here"],
    )?;
    pair.source.wait_status("running", SHORT)?;
    verify_writer(&mut pair.source)?;
    Ok(())
}

#[test]
fn sockets_that_are_not_there() -> Result<()> {
    let mut pair = unbooted(&small(), &small().as_destination())?;
    let lab = &pair.lab;
    let missing = lab.run_dir().join("missing").display().to_string();
    let to = format!("{HOST_B}:{PORT}");
    let mut send = Unmoor::start(
        lab,
        Host::A,
        &["send", "--qmp", &missing, "--to", &to, "--insecure"],
    )?;
    fails(&mut send, 1, &["there is no QMP socket", "-qmp unix:"])?;

    // Nobody receives.
    let mut send = pair.send(&[])?;
    fails(
        &mut send,
        1,
        &["cannot connect", "is `unmoor receive` running there?"],
    )?;

    // The port is in use.
    let _first = pair.receive(&[])?;
    let qmp = pair.destination.qmp_path().display().to_string();
    drop(_first);
    let squatter = Unmoor::receive(&pair.lab, Host::B, &pair.destination, &[])?;
    let other = Vm::start(&pair.lab, Host::B, &small().as_destination())?;
    let other_qmp = other.qmp_path().display().to_string();
    let mut second = Unmoor::start(
        &pair.lab,
        Host::B,
        &[
            "receive",
            "--qmp",
            &other_qmp,
            "--listen",
            &to,
            "--insecure",
        ],
    )?;
    fails(&mut second, 1, &["the port is in use", "--listen"])?;
    drop(squatter);

    // QEMU's monitor serves one client at a time.
    let _client = UnixStream::connect(&qmp)?;
    let mut busy = Unmoor::start(
        &pair.lab,
        Host::B,
        &["receive", "--qmp", &qmp, "--listen", &to, "--insecure"],
    )?;
    fails(&mut busy, 1, &["serves one client at a time"])?;
    assert_eq!(pair.source.status()?, "running");
    Ok(())
}

#[test]
fn plain_text_is_not_sent_unasked() -> Result<()> {
    let pair = unbooted(&small(), &small().as_destination())?;
    let qmp = pair.source.qmp_path().display().to_string();
    for (to, flag, word) in [
        ("127.0.0.1:7070", "--quiet", "give --insecure"),
        ("192.0.2.1:7070", "--insecure", "--insecure-anywhere"),
    ] {
        let output = unmoor(&["send", "--qmp", &qmp, "--to", to, flag])?;
        assert_eq!(output.status.code(), Some(3));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(word), "{text}");
        assert!(text.contains("the VM was not touched"), "{text}");
    }
    let qmp = pair.destination.qmp_path().display().to_string();
    let output = unmoor(&[
        "receive",
        "--qmp",
        &qmp,
        "--listen",
        "0.0.0.0:7070",
        "--insecure",
    ])?;
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("every address"));
    Ok(())
}

/// `check` and `send` agree on what stands in the way, and say what to change.
#[test]
fn check_says_what_to_change() -> Result<()> {
    let mut pair = unbooted(&small(), &small().as_destination())?;
    let qmp = pair.source.qmp_path().display().to_string();
    let check = |qmp: &str| -> Result<(Option<i32>, Value)> {
        let output = unmoor(&["check", "--qmp", qmp, "--json"])?;
        Ok((
            output.status.code(),
            serde_json::from_slice(&output.stdout)?,
        ))
    };
    let (code, answer) = check(&qmp)?;
    assert_eq!(
        (code, &answer["movable"]),
        (Some(0), &json!(true)),
        "{answer}"
    );
    assert_eq!(answer["vm"]["machine_type"], "pc-q35-10.0");
    let (code, answer) = check(&pair.destination.qmp_path().display().to_string())?;
    assert_eq!((code, &answer["role"]), (Some(0), &json!("destination")));

    let switch = |vm: &mut Vm, name: &str, state: bool| {
        vm.qmp(
            "migrate-set-capabilities",
            &json!({"capabilities": [{"capability": name, "state": state}]}),
        )
    };
    switch(&mut pair.source, "multifd", true)?;
    pair.source
        .qmp("migrate-set-parameters", &json!({"tls-creds": "tls0"}))?;
    let (code, answer) = check(&qmp)?;
    assert_eq!((code, &answer["movable"]), (Some(3), &json!(false)));
    let findings = answer["findings"].to_string();
    for word in ["`multifd`", "multifd=off", "tls-creds"] {
        assert!(findings.contains(word), "{findings}");
    }
    let _receiver = pair.receive(&[])?;
    fails(
        &mut pair.send(&[])?,
        3,
        &["the capability `multifd` is on", "tls-creds"],
    )?;

    // A running VM is not a destination.
    switch(&mut pair.source, "multifd", false)?;
    pair.source
        .qmp("migrate-set-parameters", &json!({"tls-creds": ""}))?;
    let output = unmoor(&[
        "receive",
        "--qmp",
        &qmp,
        "--listen",
        "127.0.0.1:0",
        "--insecure",
    ])?;
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("-incoming defer"));
    Ok(())
}

/// A destination that is not one: the source finds out and its VM runs on.
fn false_destination(
    answer: impl FnOnce(TcpStream) + Send + 'static,
    code: i32,
    words: &[&str],
) -> Result<()> {
    let mut pair = unbooted(&small(), &small().as_destination())?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = listener.local_addr()?.to_string();
    let peer = std::thread::spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            answer(stream);
        }
    });
    // Outside the namespaces, since that is where the false destination is.
    let qmp = pair.source.qmp_path().display().to_string();
    let output = unmoor(&[
        "send",
        "--qmp",
        &qmp,
        "--to",
        &to,
        "--insecure",
        "--peer-timeout",
        "3s",
    ])?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in {text}");
    }
    assert_eq!(pair.source.status()?, "running");
    let capabilities = pair.source.qmp("query-migrate-capabilities", &json!({}))?;
    assert!(!capabilities.to_string().contains("true"), "{capabilities}");
    peer.join()
        .map_err(|_| anyhow::anyhow!("the peer panicked"))?;
    Ok(())
}

fn sends(bytes: Vec<u8>) -> impl FnOnce(TcpStream) + Send {
    move |mut stream| {
        let _ = stream.write_all(&bytes);
        // Until the other side has had enough.
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

fn preamble(oldest: u16, newest: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    Preamble { oldest, newest }.put(&mut bytes);
    bytes
}

#[test]
fn false_destinations() -> Result<()> {
    false_destination(
        sends(preamble(7, 9)),
        1,
        &["protocol versions 7 to 9", "same release"],
    )?;
    false_destination(
        sends(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        1,
        &["does not speak unmoor's protocol"],
    )?;
    // Closed with our greeting unread, it may look like an end or like a reset.
    false_destination(drop, 1, &["connection"])?;
    // Says nothing at all.
    false_destination(sends(Vec::new()), 1, &["silent for 3s"])?;
    // Claims readiness for what it never received.
    let mut eager = preamble(1, 1);
    put_control(&Message::Ready(Digest::default()), &mut eager);
    false_destination(sends(eager), 1, &["sent Ready while"])?;
    let mut endless = preamble(1, 1);
    endless.extend([1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    false_destination(sends(endless), 1, &["more than the protocol allows"])
}

/// Whoever connects without being a source is turned away, and the destination goes on waiting.
#[test]
fn false_sources() -> Result<()> {
    let mut destination = small().as_destination();
    destination.paused = true;
    let mut pair = unbooted(&small(), &destination)?;
    let qmp = pair.destination.qmp_path().display().to_string();
    let mut receiver = Unmoor::start(
        &pair.lab,
        Host::Client,
        &[
            "receive",
            "--qmp",
            &qmp,
            "--listen",
            "10.77.0.1:7070",
            "--insecure",
            "--peer-timeout",
            "3s",
        ],
    )?;
    receiver.await_event("listening", SHORT)?;
    let mut verdict = preamble(1, 1);
    put_control(
        &Message::Verdict {
            session: [1; 16],
            commit: true,
        },
        &mut verdict,
    );
    for (bytes, words) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "does not speak"),
        (preamble(4, 5), "versions 4 to 5"),
        (verdict, "verdict on another session"),
        (Vec::new(), "connection"),
    ] {
        let file = pair.lab.run_dir().join("bytes");
        std::fs::write(&file, bytes)?;
        // From the receiver's own namespace.
        let status = pair
            .lab
            .command(Host::Client, "bash")
            .args(["-c", "cat \"$0\" >/dev/tcp/10.77.0.1/7070"])
            .arg(&file)
            .status()?;
        assert!(status.success());
        let turned_away = |e: &Value| e["text"].as_str().is_some_and(|t| t.contains(words));
        receiver.await_matching("note", turned_away, SHORT)?;
    }
    assert_eq!(pair.destination.status()?, "inmigrate");
    receiver.signal(rustix::process::Signal::TERM)?;
    assert_eq!(receiver.exit(SHORT)?, 4);
    assert_eq!(pair.destination.status()?, "inmigrate");
    Ok(())
}

/// A network that changes a byte of guest memory: the digests differ, and the VM stays.
#[test]
fn a_corrupt_byte_on_the_way_is_found() -> Result<()> {
    let options = VmOptions {
        network: false,
        ..VmOptions::default()
    };
    let mut pair = Pair::new(&options)?;
    start_writer(&mut pair.source, 16, 5, "full")?;
    let qmp = pair.destination.qmp_path().display().to_string();
    let mut receiver = Unmoor::start_outside(
        &pair.lab,
        &[
            "receive",
            "--qmp",
            &qmp,
            "--listen",
            "127.0.0.1:0",
            "--insecure",
            "--once",
        ],
    )?;
    let listening = receiver.await_event("listening", SHORT)?;
    let behind = listening["address"]
        .as_str()
        .context("no address")?
        .to_owned();
    let proxy = TcpListener::bind("127.0.0.1:0")?;
    let to = proxy.local_addr()?.to_string();
    std::thread::spawn(move || corrupting_proxy(&proxy, &behind));

    let qmp = pair.source.qmp_path().display().to_string();
    let mut sender = Unmoor::start_outside(
        &pair.lab,
        &[
            "send",
            "--qmp",
            &qmp,
            "--to",
            &to,
            "--insecure",
            // The proxy looks for frames whose pages are as they are.
            "--compress",
            "none",
        ],
    )?;
    fails(
        &mut sender,
        1,
        &[
            "memory at the destination is not what was sent",
            "at the source",
        ],
    )?;
    fails(&mut receiver, 1, &["was not started there"])?;
    pair.source.wait_status("running", SHORT)?;
    verify_writer(&mut pair.source)?;
    pair.destination.wait_ended(SHORT)?;
    Ok(())
}

/// Several connections are wanted, and one is all that there is: the VM moves over that.
#[test]
fn a_network_that_lets_one_connection_through() -> Result<()> {
    let mut pair = unbooted(&small(), &small().as_destination())?;
    let qmp = pair.destination.qmp_path().display().to_string();
    let listen = ["--listen", "127.0.0.1:0", "--insecure", "--once"];
    let mut receiver = Unmoor::start_outside(
        &pair.lab,
        &[&["receive", "--qmp", &qmp][..], &listen].concat(),
    )?;
    let listening = receiver.await_event("listening", SHORT)?;
    let behind = listening["address"].as_str().context("no address")?;
    let behind = TcpStream::connect(behind)?;
    let proxy = TcpListener::bind("127.0.0.1:0")?;
    let to = proxy.local_addr()?.to_string();
    std::thread::spawn(move || pass_on_one(&proxy, behind));

    let qmp = pair.source.qmp_path().display().to_string();
    let to = ["--to", &to, "--insecure", "--connections", "4"];
    let mut sender =
        Unmoor::start_outside(&pair.lab, &[&["send", "--qmp", &qmp][..], &to].concat())?;
    let summary = sender.summary(MIGRATION_LIMIT)?;
    assert_eq!(receiver.exit(SHORT)?, 0, "{:?}", receiver.events());
    let told = |event: &Value| {
        let text = event["text"].as_str();
        text.is_some_and(|text| text.contains("it goes on over one"))
    };
    sender.await_matching("note", told, Duration::ZERO)?;
    assert_eq!(pair.destination.status()?, "running");
    results::record("one_connection_of_several", &summary)
}

/// Passes one connection on; nobody else is let in.
fn pass_on_one(listener: &TcpListener, mut destination: TcpStream) -> Result<()> {
    let (mut source, _) = listener.accept()?;
    let (mut back_from, mut back_to) = (destination.try_clone()?, source.try_clone()?);
    std::thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
    std::io::copy(&mut source, &mut destination)?;
    Ok(())
}

/// Passes everything on, but for one bit of the content of one page.
fn corrupting_proxy(listener: &TcpListener, to: &str) -> Result<()> {
    let (mut source, _) = listener.accept()?;
    let mut destination = TcpStream::connect(to)?;
    let (mut back_from, mut back_to) = (destination.try_clone()?, source.try_clone()?);
    std::thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
    let mut preamble = [0; Preamble::LEN];
    source.read_exact(&mut preamble)?;
    destination.write_all(&preamble)?;
    let mut page_frames = 0;
    loop {
        let mut header = [0; wire::FRAME_HEADER];
        source.read_exact(&mut header)?;
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let mut payload = vec![0; usize::try_from(length)?];
        source.read_exact(&mut payload)?;
        const PAGES: u8 = 2;
        if header[0] == PAGES {
            page_frames += 1;
            if page_frames == 20 {
                payload[1000] ^= 1;
            }
        }
        destination.write_all(&header)?;
        destination.write_all(&payload)?;
    }
}

/// While a migration is under way the destination has no ear for another source.
#[test]
fn a_second_source_is_turned_away() -> Result<()> {
    let options = VmOptions {
        network: false,
        ..VmOptions::default()
    };
    let pair = Pair::new(&options)?;
    let _receiver = pair.receive(&["--once"])?;
    let first = pair.send(&["--bandwidth", "50Mbit"])?;
    first.await_event("progress", SHORT)?;
    let other = Vm::start(&pair.lab, Host::A, &small())?;
    let mut second = Unmoor::send(&pair.lab, Host::A, &other, &[])?;
    fails(
        &mut second,
        3,
        &["another migration to this QEMU is under way"],
    )
}

/// Options of the link: what is wrong is said before anything is done.
#[test]
fn options_of_the_link() -> Result<()> {
    for (option, value, words) in [
        ("--compress", "gzip", "auto, none, lz4, zstd or zstd:LEVEL"),
        ("--compress", "zstd:20", "a level from 1 to 19"),
        ("--bandwidth", "150%", "a share between 1% and 100%"),
        ("--bandwidth", "fast", "1Gbit"),
        ("--connections", "17", "1..=16"),
        ("--bind", "eth0", "invalid IP address"),
        ("--history", "64", "512MiB"),
        ("--metrics", "9090", "invalid socket address"),
    ] {
        let output = unmoor(&["send", "--qmp", "none", "--to", "a:1", option, value])?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(words), "{option} {value}: {text}");
    }
    let mut pair = unbooted(&small(), &small().as_destination())?;
    let mut sender = pair.send(&["--bind", "203.0.113.9"])?;
    fails(
        &mut sender,
        1,
        &["cannot connect from 203.0.113.9 (--bind)"],
    )?;
    let mut receiver = pair.receive(&[])?;
    let mut sender = pair.send(&["--metrics", "203.0.113.9:1"])?;
    fails(&mut sender, 3, &["--metrics 203.0.113.9:1"])?;
    assert_eq!(pair.source.status()?, "running");
    receiver.signal(rustix::process::Signal::TERM)?;
    assert_eq!(receiver.exit(SHORT)?, 4);
    Ok(())
}

#[test]
fn commands_about_nothing() -> Result<()> {
    for (words, code, text) in [
        (&["status"][..], 0, "no migration runs here"),
        (
            &["tune", "--bandwidth", "none"],
            1,
            "no VM is on its way from here",
        ),
        (
            &["resolve", "ab12"],
            1,
            "nothing is known here of a session ab12",
        ),
        (&["history"], 0, ""),
    ] {
        let output = unmoor(words)?;
        let said = [output.stdout.as_slice(), &output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        assert!(said.contains(text), "{words:?}: {said}");
    }
    Ok(())
}

#[test]
fn manual_pages_and_completions() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = unmoor(&["man", &folder.path().display().to_string()])?;
    assert!(output.status.success());
    for page in ["unmoor", "unmoor-send", "unmoor-receive", "unmoor-check"] {
        let text = std::fs::read_to_string(folder.path().join(format!("{page}.1")))?;
        assert!(text.contains("Exit status"), "{page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = unmoor(&["completions", shell])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("downtime-limit"), "{shell}");
    }
    let output = unmoor(&["send", "--help"])?;
    let help = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        help.contains("--before-commit") && help.contains("Exit status"),
        "{help}"
    );
    assert_eq!(unmoor(&["send", "--nonsense"])?.status.code(), Some(2));
    Ok(())
}
