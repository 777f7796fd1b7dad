//! A selection of the fault matrix, of what no other test breaks; `make test-faults` runs all of it.

use anyhow::{Context, Result};
use lab::results;
use serde_json::json;
use unmoor_tests::matrix::Protocol::{Live, PostCopy, StopCopy};
use unmoor_tests::matrix::{Cell, Fault, Moment, Outcome, Place, Protocol};

fn run(protocol: Protocol, fault: Fault, moment: Moment) -> Result<Outcome> {
    let cell = Cell {
        fault,
        moment,
        protocol,
    };
    let outcome = cell.run().with_context(|| cell.name())?;
    results::record(&format!("matrix.{}", cell.name()), &json!(outcome))?;
    Ok(outcome)
}

/// Jobs stand frozen in a guest whose relay is gone.
#[test]
fn a_relay_that_dies_with_jobs_frozen() -> Result<()> {
    let outcome = run(StopCopy, Fault::SourceRelayKilled, Moment::Flush)?;
    assert_eq!(outcome.place, Place::Source);
    Ok(())
}

#[test]
fn a_guest_that_is_reset_with_jobs_frozen() -> Result<()> {
    run(StopCopy, Fault::GuestReset, Moment::Flush).map(drop)
}

#[test]
fn a_guest_that_panics_with_jobs_frozen() -> Result<()> {
    run(StopCopy, Fault::GuestPanic, Moment::Flush).map(drop)
}

#[test]
fn clocks_that_jump_with_jobs_frozen() -> Result<()> {
    let outcome = run(StopCopy, Fault::ClockJumps, Moment::Flush)?;
    assert_eq!(outcome.place, Place::Destination);
    Ok(())
}

#[test]
fn a_link_that_flaps() -> Result<()> {
    let outcome = run(Live, Fault::LinkFlaps, Moment::FirstPass)?;
    assert_eq!(outcome.place, Place::Destination);
    Ok(())
}

/// Reports, records and doubts cannot be written: it moves all the same.
#[test]
fn disks_that_are_full() -> Result<()> {
    let outcome = run(StopCopy, Fault::DiskFull, Moment::Ready)?;
    assert_eq!(outcome.place, Place::Destination);
    Ok(())
}

#[test]
fn a_source_relay_without_memory() -> Result<()> {
    run(StopCopy, Fault::SourceOutOfMemory, Moment::FirstPass).map(drop)
}

#[test]
fn a_destination_relay_without_files_while_memory_follows() -> Result<()> {
    let outcome = run(PostCopy, Fault::DestinationOutOfFiles, Moment::After)?;
    assert_eq!(outcome.place, Place::Destination);
    Ok(())
}

/// The destination has lost its QEMU before it heard the commit: the source's copy is there.
#[test]
fn a_destination_that_has_lost_the_vm_before_the_commit_was_heard() -> Result<()> {
    let outcome = run(PostCopy, Fault::DestinationQemuKilled, Moment::Committed)?;
    assert_eq!(outcome.place, Place::Source);
    Ok(())
}

/// Nobody is there any more who could say what has become of the commit: an operator can.
#[test]
fn a_destination_relay_that_dies_before_the_commit_was_heard() -> Result<()> {
    let outcome = run(PostCopy, Fault::DestinationRelayKilled, Moment::Committed)?;
    assert_eq!((outcome.place, outcome.resolved), (Place::Source, true));
    Ok(())
}
