//! The forecast for people.

use std::fmt::Write;

use depgraph::ProcessId;
use migrate::forecast::{Forecast, Outcome, Picture, Way, Why};
use migrate::pilot::Spared;
use serde_json::{Value, json};

use super::look::{Guest, Writer};
use super::millis;
use crate::agent::{self, printable};
use crate::args::PlanArgs;
use crate::report::{bytes, duration_ms, rate};

/// Writers that are listed.
const LISTED: usize = 8;

/// What is told of.
pub(super) struct Words<'a> {
    pub(super) guest: &'a Guest,
    pub(super) picture: &'a Picture,
    pub(super) args: &'a PlanArgs,
}

/// A protocol's name, as `unmoor send` has it.
pub(super) fn name(way: Way) -> &'static str {
    match way {
        Way::PreCopy => "pre-copy",
        Way::Live => "live",
        Way::StopCopy => "stop-copy",
        Way::PostCopy => "post-copy",
    }
}

impl Words<'_> {
    /// All of it.
    pub(super) fn table(&self, forecasts: &[Forecast], met: bool) -> String {
        let (guest, picture) = (self.guest, self.picture);
        let mut text = format!(
            "{} of {} is in use{}; the link carries {} ({}/s besides headers); without compression\n",
            bytes(guest.used),
            bytes(guest.memory),
            if guest.used_is_known { "" } else { " at most" },
            rate(self.args.bandwidth),
            bytes(picture.link),
        );
        for note in &guest.notes {
            let _ = writeln!(text, "note: {note}");
        }
        for writer in self.fastest().take(LISTED) {
            let _ = writeln!(text, "{}", self.line(writer));
        }
        let _ = writeln!(
            text,
            "\n{:<10} {:>9} {:>9} {:>9} {:>9} {:>6}  why",
            "protocol", "bytes", "time", "downtime", "pause", "odds"
        );
        for forecast in forecasts {
            let [sent, time, downtime, pause] = cells(forecast);
            let odds = format!("{:.0} %", forecast.odds * 100.0);
            let why = self.why(forecast).join("; ");
            let _ = writeln!(
                text,
                "{:<10} {sent:>9} {time:>9} {downtime:>9} {pause:>9} {odds:>6}  {why}",
                name(forecast.way)
            );
        }
        for outcome in forecasts.iter().filter_map(|one| one.outcome.as_ref()) {
            for (id, long) in &outcome.pauses {
                let who = self.who(*id);
                let long = duration_ms(millis(*long));
                let _ = writeln!(text, "{who} would pause for {long}");
            }
        }
        let following = forecasts.iter().filter(|one| one.way == Way::PostCopy);
        for outcome in following.filter_map(|one| one.outcome.as_ref()) {
            let free = duration_ms(millis(outcome.source_free));
            let _ = writeln!(text, "with post-copy the source would be free after {free}");
        }
        if let Err(why) = &guest.pausable {
            let _ = writeln!(text, "nobody can be paused: {why}");
        }
        let auto = super::automatic(forecasts).map_or("", |one| name(one.way));
        let goals = format!(
            "a downtime of {} and pauses of {}",
            humantime::format_duration(self.args.downtime_limit),
            humantime::format_duration(self.args.max_pause)
        );
        let _ = match met {
            true => writeln!(text, "{auto}, which `auto` chooses, keeps to {goals}"),
            false => writeln!(text, "{auto}, which `auto` chooses, cannot keep to {goals}"),
        };
        text
    }

    /// The reasons, a sentence each.
    pub(super) fn why(&self, forecast: &Forecast) -> Vec<String> {
        let told = forecast.why.iter().map(|why| match why {
            Why::Outruns { rate, leaves, fits } => format!(
                "it does not end: what is moved live is written at {}/s, and each pass leaves {} where {} fit the downtime",
                bytes(*rate),
                bytes(*leaves),
                bytes(*fits)
            ),
            Why::Shrinks { passes: 0 } => "what is written in the first pass fits the downtime".to_owned(),
            Why::Shrinks { passes: 1 } => "one more pass, and the rest fits the downtime".to_owned(),
            Why::Shrinks { passes } => format!("{passes} more passes, and the rest fits the downtime"),
            Why::Paused { processes, bytes: sent } => format!(
                "{} of {processes} paused process{} goes once",
                bytes(*sent),
                if *processes == 1 { "" } else { "es" }
            ),
            Why::Follows { processes, bytes: sent } => format!(
                "{} of {processes} process{} follow after the switchover",
                bytes(*sent),
                if *processes == 1 { "" } else { "es" }
            ),
            Why::Spared(id, Spared::TooLong(long)) => format!(
                "{} is not paused: that would take {}",
                self.who(*id),
                duration_ms(millis(*long))
            ),
            Why::Spared(id, Spared::Quiet) => format!("{} writes little", self.who(*id)),
            Why::NobodyToPause => "nobody is worth a pause".to_owned(),
        });
        told.collect()
    }

    /// Who writes, the fastest first.
    pub(super) fn writers(&self) -> Vec<Value> {
        let told = self.fastest().map(|writer| {
            json!({
                "pid": writer.record.id.pid,
                "name": writer.record.name,
                "cgroup": writer.record.cgroup,
                "class": agent::Words::class(writer.record.class),
                "anonymous_kib": writer.record.anonymous_kib,
                "dirty_bytes_per_s": writer.dirtying.rate(),
                "dirty_bytes_most": writer.dirtying.most(),
                "hot_bytes": writer.job.map(|job| job.hot_bytes),
                "pause_limit_ms": writer.job.map(|job| millis(job.limit)),
            })
        });
        told.collect()
    }

    /// How long processes would stand.
    pub(super) fn pauses(&self, outcome: &Outcome) -> Vec<Value> {
        let told = outcome.pauses.iter().map(|(id, long)| {
            let record = self.writer(*id).map(|writer| &writer.record);
            json!({
                "pid": id.pid,
                "name": record.map(|record| &record.name),
                "cgroup": record.map(|record| &record.cgroup),
                "pause_ms": millis(*long),
            })
        });
        told.collect()
    }

    fn fastest(&self) -> impl Iterator<Item = &Writer> {
        let mut writers: Vec<&Writer> = self.guest.writers.iter().collect();
        writers.retain(|writer| writer.dirtying.rate() > 0);
        writers.sort_by_key(|writer| std::cmp::Reverse(writer.dirtying.rate()));
        writers.into_iter()
    }

    fn line(&self, writer: &Writer) -> String {
        let may = match writer.job {
            Some(job) => format!("may pause up to {}", humantime::format_duration(job.limit)),
            None if writer.record.class.stays_live() => "stays live".to_owned(),
            None => "is too small to be paused".to_owned(),
        };
        format!(
            "  {} writes {}/s, {} in the end, and {may}",
            self.who(writer.record.id),
            bytes(writer.dirtying.rate()),
            bytes(writer.dirtying.most()),
        )
    }

    fn who(&self, id: ProcessId) -> String {
        let name = self.writer(id).map(|writer| printable(&writer.record.name));
        format!("{} ({})", name.unwrap_or_default(), id.pid)
    }

    fn writer(&self, id: ProcessId) -> Option<&Writer> {
        let mut writers = self.guest.writers.iter();
        writers.find(|writer| writer.record.id == id)
    }
}

/// Figures of a protocol: bytes, time, downtime and the longest pause.
fn cells(forecast: &Forecast) -> [String; 4] {
    let Some(outcome) = &forecast.outcome else {
        return ["–", "endless", "–", "–"].map(str::to_owned);
    };
    let longest = outcome.pauses.iter().map(|(_, long)| *long).max();
    [
        bytes(outcome.bytes),
        duration_ms(millis(outcome.total)),
        duration_ms(millis(outcome.downtime)),
        longest.map_or_else(|| "–".to_owned(), |long| duration_ms(millis(long))),
    ]
}
