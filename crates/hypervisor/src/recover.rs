//! After a migration that did not happen.

use std::fmt;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::{Error, MigrationStatus, RunState, Vm};

/// Time between two looks while QEMU gets there. It announces most of it by events, which end
/// the wait at once.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Time between two orders to resume the VM that QEMU refuses: it logs every refusal.
const RETRY_EVERY: Duration = Duration::from_millis(250);

/// How the VM is after a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// It runs, and had not been stopped, or QEMU resumed it by itself.
    RunsOn,
    /// It had come to rest and was resumed.
    Resumed,
    /// It is paused, as it was before.
    StaysPaused,
}

impl fmt::Display for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Recovered::RunsOn => "the VM runs on at the source",
            Recovered::Resumed => "the VM has been resumed at the source",
            Recovered::StaysPaused => "the VM is at the source, paused as before",
        })
    }
}

/// Ends whatever QEMU's migration is doing and makes the VM as it was: running if `was_running`.
///
/// A source whose migration has completed rests and never resumes by itself; one whose migration
/// fails before that does. QEMU is asked to resume it again and again until `limit`, for it may
/// refuse at first. On failure the VM may be paused, and the error tells its state or QEMU's words.
///
/// **Never call this once the commit has been recorded**: the VM may run at the destination.
pub fn recover_source(vm: &mut Vm, was_running: bool, limit: Duration) -> Result<Recovered, Error> {
    let deadline = Instant::now() + limit;
    let mut resumed = false;
    let mut refusal = None;
    loop {
        let mut pause = LOOK_EVERY;
        let migration = vm.migration_info()?.status;
        let state = vm.status()?;
        let under_way = matches!(migration, MigrationStatus::UnderWay(_));
        match (&state, under_way) {
            (_, true) => {
                // Refused in some states, and then the migration ends by itself: its stream is
                // closed.
                let _ = vm.ask("migrate_cancel", &json!({}));
            }
            (RunState::Running, false) => {
                return Ok(if resumed {
                    Recovered::Resumed
                } else {
                    Recovered::RunsOn
                });
            }
            (_, false) if !was_running => return Ok(Recovered::StaysPaused),
            // QEMU is still on its way into or out of it.
            (RunState::FinishMigrate, false) => {}
            (_, false) => match vm.ask("cont", &json!({})) {
                Ok(_) => resumed = true,
                // What stands in the way may go away: a disk's lock, or QEMU's own clearing up.
                Err(error @ Error::Refused { .. }) if can_resume(&state) => {
                    refusal = Some(error);
                    pause = RETRY_EVERY;
                }
                Err(error) => return Err(error),
            },
        }
        if Instant::now() >= deadline {
            return Err(refusal.unwrap_or(Error::Stuck {
                state: state.to_string(),
                migration: migration.to_string(),
            }));
        }
        vm.wait_event(deadline.min(Instant::now() + pause))?;
    }
}

/// Whether `cont` is enough in this state: after a shutdown, for one, QEMU wants a reset first.
fn can_resume(state: &RunState) -> bool {
    matches!(state, RunState::Paused | RunState::PostMigrate)
}

/// Makes sure that a QEMU which waited for a VM is gone: it ends by itself when its stream breaks
/// off, and is told to where it does not.
pub fn discard_destination(vm: &mut Vm, limit: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + limit;
    match vm.ask("quit", &json!({})) {
        Ok(_) | Err(Error::Closed) => {}
        Err(error) => return Err(error),
    }
    // The end of the monitor is the end of QEMU.
    while vm.client().wait_readable(deadline)? {
        match vm.process() {
            Ok(_) => {}
            Err(Error::Closed) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Err(Error::Timeout {
        command: "quit".into(),
    })
}
