//! The Debian guests: systemd is content, their services answer inside and outside, and they move.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::{GUEST, Host, Image, Lab, LabOptions, Vm, VmOptions, results, stock};
use serde_json::json;

#[test]
#[ignore = "slow: run by make test-slow"]
fn debian_boots_serves_and_moves() -> Result<()> {
    boots_serves_and_moves("debian_boots", &VmOptions::debian())
}

#[test]
#[ignore = "slow: run by make test-slow"]
fn debian_13_boots_serves_and_moves() -> Result<()> {
    let options = VmOptions {
        image: Image::Debian13,
        ..VmOptions::debian()
    };
    boots_serves_and_moves("debian_13_boots", &options)
}

fn boots_serves_and_moves(name: &str, options: &VmOptions) -> Result<()> {
    let lab = Lab::new(&LabOptions::with_rate("1gbit"))?;
    let started = Instant::now();
    let mut source = Vm::start(&lab, Host::A, options)?;
    source.wait_booted()?;
    let booted = started.elapsed();

    all_is_well(&lab, &mut source)?;
    // What tests start in the guest.
    source.guest("command -v stockfish stress-ng python3 nc usleep")?;
    source.guest("modprobe vsock_loopback")?;

    let used = source.guest("free -m | awk '$1 == \"Mem:\" { print $3 }'")?;
    results::record(
        name,
        &json!({
            "boot_seconds": booted.as_secs_f64(),
            "memory_used_mib": used.trim().parse::<u64>().context("free's output")?,
        }),
    )?;

    // Both QEMUs have the disk open.
    let mut destination = Vm::start(&lab, Host::B, &options.as_destination())?;
    let limit = Duration::from_millis(300);
    stock::migrate(&lab, &mut source, &mut destination, limit)?;
    source.kill();
    all_is_well(&lab, &mut destination)
}

/// Every unit is up, and every service answers.
fn all_is_well(lab: &Lab, vm: &mut Vm) -> Result<()> {
    // Its exit code tells of `degraded` as well; what has failed tells more.
    let state = vm.guest("systemctl is-system-running --wait || true")?;
    if state.trim() != "running" {
        let failed = vm.guest("systemctl --no-pager --plain list-units --failed")?;
        bail!("systemd says `{}`: {failed}", state.trim());
    }
    vm.guest("systemctl is-active redis-server nginx postgresql ssh cron systemd-journald")?;

    assert_eq!(vm.guest("redis-cli ping")?, "PONG\n");
    assert!(vm.guest("curl -sf http://localhost/")?.contains("nginx"));
    let select = "runuser -u postgres -- psql -qAtc 'select 1'";
    assert_eq!(vm.guest(select)?, "1\n");

    assert_eq!(ask(lab, 6379, "PING\\r\\n")?, "+PONG");
    assert_eq!(
        ask(lab, 80, "GET / HTTP/1.0\\r\\n\\r\\n")?,
        "HTTP/1.1 200 OK"
    );
    assert!(ask(lab, 22, "")?.starts_with("SSH-2.0-"));
    assert_eq!(ask(lab, 7007, "echo\\n")?, "echo");
    Ok(())
}

/// The first line that a client of the guest gets for `request`, in `printf`'s words, on `port`.
fn ask(lab: &Lab, port: u16, request: &str) -> Result<String> {
    let script = format!(
        "exec 3<>/dev/tcp/{GUEST}/{port}; printf '{request}' >&3; read -r line <&3; echo \"$line\""
    );
    let output = lab
        .command(Host::Client, "timeout")
        .args(["20", "bash", "-ec", &script])
        .output()?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("no answer on port {port} ({}): {error}", output.status);
    }
    let line = String::from_utf8_lossy(&output.stdout);
    Ok(line.trim_end().to_owned())
}
