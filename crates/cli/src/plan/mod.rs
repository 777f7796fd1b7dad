//! `unmoor plan`: what moving a VM would be like, before anything is begun.

mod look;
mod words;

use std::time::Duration;

use migrate::forecast::{Forecast, Way, forecast};
use serde_json::{Value, json};

use crate::args::PlanArgs;
use crate::exit::Exit;
use crate::signals::Signals;
use look::{Look, LookError};
use words::Words;

/// What TCP, IP and Ethernet leave of a link, in percent.
const PAYLOAD: u64 = 94;

/// Runs the command.
pub(crate) fn run(args: &PlanArgs) -> Exit {
    match plan(args) {
        Ok(exit) => exit,
        Err(LookError::Cancelled) => Exit::Cancelled,
        Err(error) => {
            eprintln!("unmoor: {error}");
            Exit::Failed
        }
    }
}

fn plan(args: &PlanArgs) -> Result<Exit, LookError> {
    let signals = Signals::install()?;
    let guest = Look::new(args, &signals)?.guest()?;
    let picture = guest.picture(args.bandwidth / 100 * PAYLOAD, args.downtime_limit);
    let mut ways = vec![Way::PreCopy, Way::Live];
    if guest.pausable.is_ok() {
        ways.extend([Way::StopCopy, Way::PostCopy]);
    }
    let forecasts: Vec<Forecast> = ways.iter().map(|way| forecast(&picture, *way)).collect();
    let met = automatic(&forecasts).is_some_and(|one| one.meets(&picture));
    let words = Words {
        guest: &guest,
        picture: &picture,
        args,
    };
    if args.json {
        println!("{}", as_json(&words, &forecasts, met));
    } else {
        print!("{}", words.table(&forecasts, met));
    }
    Ok(if met {
        Exit::Success
    } else {
        Exit::GoalsNotMet
    })
}

/// What `--protocol auto` would choose: the last that is possible and does not need the source when
/// the VM has gone.
fn automatic(forecasts: &[Forecast]) -> Option<&Forecast> {
    let mut last_first = forecasts.iter().rev();
    last_first.find(|one| one.way != Way::PostCopy)
}

fn as_json(words: &Words<'_>, forecasts: &[Forecast], met: bool) -> Value {
    let Words {
        guest,
        picture,
        args,
    } = words;
    let protocols: Vec<Value> = forecasts.iter().map(|one| protocol(words, one)).collect();
    json!({
        "memory_bytes": guest.memory,
        "used_bytes": picture.used,
        "used_is_known": guest.used_is_known,
        "link_bytes_per_s": picture.link,
        "downtime_limit_ms": millis(args.downtime_limit),
        "max_pause_ms": millis(args.max_pause),
        "writers": words.writers(),
        "background_bytes_per_s": guest.background.rate(),
        "arming_ms": guest.arming.map(millis),
        "notes": guest.notes,
        "protocols": protocols,
        "auto": automatic(forecasts).map(|one| words::name(one.way)),
        "goals_met": met,
    })
}

fn protocol(words: &Words<'_>, forecast: &Forecast) -> Value {
    let outcome = forecast.outcome.as_ref();
    let pauses = outcome.map(|outcome| words.pauses(outcome));
    json!({
        "protocol": words::name(forecast.way),
        "converges": outcome.is_some(),
        "odds": forecast.odds,
        "wire_bytes": outcome.map(|outcome| outcome.bytes),
        "total_ms": outcome.map(|outcome| millis(outcome.total)),
        "downtime_ms": outcome.map(|outcome| millis(outcome.downtime)),
        "source_free_ms": outcome.map(|outcome| millis(outcome.source_free)),
        "pauses": pauses,
        "meets_the_goals": forecast.meets(words.picture),
        "why": words.why(forecast),
    })
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
