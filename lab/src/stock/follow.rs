//! The source's part of a stock migration, event by event.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hypervisor::Incoming;
use serde_json::{Value, json};

use super::{END_LIMIT, Plan};
use crate::Vm;

/// How it ended.
pub(super) struct End {
    /// When, on the host's clock.
    pub(super) at: Duration,
    /// When the source stopped.
    pub(super) stopped: Option<Duration>,
    /// QEMU's figures right before it was cancelled, if it was.
    pub(super) gave_up: Option<Value>,
}

/// Has post-copy begin after one pass, and cancels what has not ended at the cap.
pub(super) fn follow(source: &mut Vm, plan: &Plan) -> Result<End> {
    let mut stopped = None;
    let mut at_cap: Option<Value> = None;
    let mut has_switched = false;
    let mut deadline = Instant::now() + plan.cap;
    loop {
        for incoming in source.monitor()?.process()? {
            let Incoming::Event(event) = incoming else {
                continue;
            };
            let status = event.data["status"].as_str().unwrap_or("");
            match (event.name.as_str(), status) {
                ("STOP", _) => stopped = stopped.or(Some(event.timestamp)),
                ("MIGRATION", "failed") => bail!("QEMU's migration failed"),
                ("MIGRATION", "completed") => {
                    return Ok(End {
                        at: event.timestamp,
                        stopped,
                        gave_up: None,
                    });
                }
                ("MIGRATION", "cancelled") => {
                    return Ok(End {
                        at: event.timestamp,
                        stopped: None,
                        gave_up: Some(at_cap.unwrap_or(Value::Null)),
                    });
                }
                // The first pass is announced when it begins, the second when that is over.
                ("MIGRATION_PASS", _)
                    if plan.mode.is_post_copy() && !has_switched && event.data["pass"] != 1 =>
                {
                    has_switched = true;
                    source.qmp("migrate-start-postcopy", &json!({}))?;
                }
                _ => {}
            }
        }
        if !source.monitor()?.wait_readable(deadline)? {
            // A VM that is split over two hosts cannot be taken back.
            if at_cap.is_some() || has_switched {
                bail!("QEMU's migration does not end");
            }
            at_cap = Some(source.qmp("query-migrate", &json!({}))?);
            source.qmp("migrate_cancel", &json!({}))?;
            deadline = Instant::now() + END_LIMIT;
        }
    }
}
