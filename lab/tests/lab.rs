//! The lab itself: what it measures with can fail, and nothing of it is left behind.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::client::{EchoReport, Running};
use lab::saved::Recipe;
use lab::{Host, Lab, LabOptions, Vm, VmOptions, ram, stock};
use serde_json::json;

fn namespaces() -> Result<String> {
    let output = Command::new("ip").args(["netns", "list"]).output()?;
    let mine = format!("unmoor{}-", std::process::id());
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.starts_with(&mine))
        .collect())
}

#[test]
fn nothing_is_left_behind() -> Result<()> {
    let lab = Lab::new(&LabOptions::with_rate("1gbit"))?;
    let folder: PathBuf = lab.run_dir().to_owned();
    let vm = Vm::start(&lab, Host::A, &VmOptions::default())?;
    let process = PathBuf::from(format!("/proc/{}", vm.pid()));
    assert!(!namespaces()?.is_empty() && folder.exists() && process.exists());
    // Even if somebody forgets to end the VM first.
    drop(lab);
    assert_eq!(namespaces()?, "");
    assert!(!folder.exists());
    drop(vm);
    assert!(!process.exists());
    Ok(())
}

#[test]
fn labs_do_not_end_each_other() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let mut program = lab.command(Host::A, "sleep").arg("600").spawn()?;
    drop(Lab::new(&LabOptions::default())?);
    let ended = program.try_wait()?;
    drop(lab);
    program.wait()?;
    assert_eq!(ended, None, "the other lab ended this one's program");
    Ok(())
}

#[test]
fn folders_of_dead_runs_are_removed() -> Result<()> {
    // A process that has been waited for is no more.
    let mut process = Command::new("true").spawn()?;
    let dead = process.id();
    process.wait()?;
    for place in [std::env::temp_dir(), PathBuf::from("/dev/shm")] {
        let left = place.join(format!("unmoor-lab-{dead}-left"));
        let living = place.join(format!("unmoor-lab-{}-living", std::process::id()));
        for folder in [&left, &living] {
            std::fs::create_dir(folder)?;
            std::fs::write(folder.join("file"), "")?;
        }
        lab::net::remove_leftovers();
        let (gone, kept) = (!left.exists(), living.exists());
        std::fs::remove_dir_all(living)?;
        assert!(gone && kept, "{}: {gone} {kept}", place.display());
    }
    Ok(())
}

/// A writer that found no damage, or a comparison that found no difference, would prove nothing if
/// neither could.
#[test]
fn damage_and_differences_are_found() -> Result<()> {
    let lab = Lab::new(&LabOptions::with_rate("1gbit"))?;
    let options = VmOptions::default();
    let mut source = Vm::start(&lab, Host::A, &options)?;
    source.wait_booted()?;
    let waiting = VmOptions {
        paused: true,
        ..options.as_destination()
    };
    let mut destination = Vm::start(&lab, Host::B, &waiting)?;
    source.guest(
        "lab-guest writer 32 10 full >/run/writer.log 2>&1 & \
         until grep -q ready /run/writer.log; do usleep 20000; done",
    )?;
    source.guest("lab-guest writer-ctl verify")?;

    stock_migration_to_a_paused_vm(&mut source, &mut destination)?;
    let equal = ram::compare(&mut source, &mut destination)?;
    assert!(equal.differing.is_empty(), "{equal:x?}");
    assert_eq!(equal.pages, (512 << 20) / 4096);

    // Having run for a moment, the guest is another one.
    destination.qmp("cont", &json!({}))?;
    destination.guest("lab-guest writer-ctl verify")?;
    destination.guest("lab-guest writer-ctl corrupt")?;
    let verdict = destination
        .guest("lab-guest writer-ctl verify")
        .unwrap_err();
    assert!(format!("{verdict:#}").contains("CORRUPT"), "{verdict:#}");
    destination.qmp("stop", &json!({}))?;
    let differs = ram::compare(&mut source, &mut destination)?;
    assert!(!differs.differing.is_empty());
    Ok(())
}

fn stock_migration_to_a_paused_vm(source: &mut Vm, destination: &mut Vm) -> Result<()> {
    let uri = format!("tcp:{}:4444", lab::HOST_B);
    destination.qmp("migrate-incoming", &json!({"uri": uri}))?;
    source.qmp("migrate", &json!({"uri": uri}))?;
    source.wait_status("postmigrate", Duration::from_secs(60))?;
    destination.wait_status("paused", Duration::from_secs(60))
}

#[test]
fn a_stock_migration_is_measured() -> Result<()> {
    let lab = Lab::new(&LabOptions::with_rate("1gbit"))?;
    let options = VmOptions::default();
    let mut source = Vm::start(&lab, Host::A, &options)?;
    source.wait_booted()?;
    let mut destination = Vm::start(&lab, Host::B, &options.as_destination())?;
    let report = stock::migrate(
        &lab,
        &mut source,
        &mut destination,
        Duration::from_millis(300),
    )?;
    assert_eq!(destination.status()?, "running");
    let downtime = report.downtime_ms.context("no downtime")?;
    assert!(downtime > 0.0 && downtime < report.total_ms);
    // At least what the guest's kernel and Redis occupy.
    assert!(report.wire_bytes > 50_000_000, "{report:?}");
    Ok(())
}

/// A writer that outruns the link, and a service beside it.
fn busy_guest() -> Recipe {
    Recipe {
        name: "lab-test".into(),
        options: VmOptions {
            agent: true,
            ..VmOptions::default()
        },
        commands: vec![
            "lab-guest writer 160 0 full job >/run/job.log 2>&1 & \
             until grep -q ready /run/job.log; do usleep 20000; done"
                .into(),
        ],
    }
}

#[test]
fn a_guest_starts_from_its_saved_state_and_qemu_gives_up_or_moves_it() -> Result<()> {
    let lab = Lab::new(&LabOptions::with_rate("1gbit"))?;
    let recipe = busy_guest();
    let mut made = 0;
    let mut source = recipe.start(&lab, Host::A, |_| {
        made += 1;
        Ok(())
    })?;
    drop(source);
    source = recipe.start(&lab, Host::A, |_| bail!("made twice"))?;
    assert!(made <= 1);
    source.guest("lab-guest writer-ctl job verify")?;
    source.guest("redis-cli ping")?;

    let mut plan = stock::Plan {
        mode: stock::Mode::PreCopy,
        downtime_limit: Duration::from_millis(300),
        cap: Duration::from_secs(6),
        tls: None,
    };
    let mut destination = Vm::start(&lab, Host::B, &recipe.options.as_destination())?;
    let report = stock::run(&lab, &mut source, &mut destination, &plan)?;
    assert!(
        !report.converged && report.downtime_ms.is_none(),
        "{report:?}"
    );
    assert!(
        report.remaining_bytes > 0 && report.total_ms >= 6000.0,
        "{report:?}"
    );
    assert_eq!(source.status()?, "running");
    destination.wait_ended(Duration::from_secs(20))?;
    drop(destination);

    plan.mode = stock::Mode::PostCopy;
    let mut destination = Vm::start(&lab, Host::B, &recipe.options.as_destination())?;
    let report = stock::run(&lab, &mut source, &mut destination, &plan)?;
    assert!(report.converged, "{report:?}");
    assert!(
        report
            .downtime_ms
            .is_some_and(|downtime| downtime < report.total_ms)
    );
    destination.guest("lab-guest writer-ctl job verify")?;
    Ok(())
}

/// What a process that turns to the outside does is seen there.
#[test]
fn a_writer_calls_outside_and_answers() -> Result<()> {
    let lab = Lab::new(&LabOptions::default())?;
    let mut vm = busy_guest().start(&lab, Host::A, |_| Ok(()))?;
    let mut peer = Running::peer(&lab, 7009, 5000)?;
    vm.guest("lab-guest writer-ctl job call-out 10.77.0.1:7009")?;
    peer.mark("called")?;
    vm.guest("lab-guest writer-ctl job stat")?;
    peer.mark("frozen")?;
    vm.qmp("stop", &json!({}))?;
    std::thread::sleep(Duration::from_millis(500));
    vm.qmp("cont", &json!({}))?;
    vm.guest("lab-guest writer-ctl job stat")?;
    let report: EchoReport = peer.finish()?;
    assert_eq!((report.lost, report.windows.len()), (0, 2), "{report:?}");
    assert!(report.windows[0].answered > 0, "{report:?}");
    // It belongs to the window of the last answer before it, which may be either.
    assert!(report.longest_gap_ms > 400.0, "{report:?}");
    Ok(())
}
