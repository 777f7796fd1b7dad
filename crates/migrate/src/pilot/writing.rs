//! Who writes how much, and whether a process goes through all of its memory.
//!
//! A process that has written all of its pages within the first look goes through all of them: all
//! are held. If it has written few, the others are moved live. In between, it may be one that has
//! a part that it writes again and again, or one that goes through everything but gets little of
//! the processor just then: a second look tells. The former writes the same pages again, the
//! latter others.

use std::time::Duration;

use depgraph::ProcessId;
use guest_proto::Run;
use roaring::RoaringBitmap;

use super::member::{Member, State};
use super::talk::Pages;
use super::{Job, Pilot, PilotAction, PilotNews, Step};
use crate::Source;

/// One that has written so many of its pages, within about a second, goes through all of them.
const SWEEPS: u64 = 3;
/// One that has written less than one page in so many does not, in a time that matters.
const RESTS: u64 = 8;
/// Of one that has less than so many times what is worth a pause, a second look is not.
const UNCLEAR_MIN: u64 = 4;

/// What the first look has shown.
#[derive(Debug)]
pub(super) struct Look {
    pages: Pages,
    /// How long it took.
    passed: Duration,
    /// What those have written of whom it is not clear what they do.
    unclear: Vec<(ProcessId, RoaringBitmap)>,
}

impl Pilot {
    /// The answer to the first look.
    pub(super) fn told_written(&mut self, pages: Pages, source: &mut Source) {
        let worth_it = UNCLEAR_MIN * self.settings.small_bytes / source.page_size().max(1);
        let held = self.members.iter().filter(|one| one.state == State::Held);
        let unclear = held
            .filter(|one| one.pages >= worth_it && is_unclear(written(&pages, one.id), one.pages))
            .map(|one| (one.id, source.of_group(one.group, &pages.runs)))
            .collect();
        let look = Look {
            passed: self.view.now.saturating_sub(self.watched_from),
            pages,
            unclear,
        };
        if look.unclear.is_empty() {
            self.judge(&look, None, source);
        } else {
            self.look = Some(look);
            self.step = Step::WatchAgain;
        }
    }

    /// The answer to the second.
    pub(super) fn told_written_again(&mut self, pages: &Pages, source: &mut Source) {
        match self.look.take() {
            Some(first) => self.judge(&first, Some(pages), source),
            None => self.step = Step::Open,
        }
    }

    /// Those whom a second look is for.
    pub(super) fn unclear(&self) -> Vec<ProcessId> {
        let look = self.look.iter();
        look.flat_map(|look| look.unclear.iter().map(|(id, _)| *id))
            .collect()
    }

    /// Who is frozen when follows from who writes how much.
    fn judge(&mut self, first: &Look, again: Option<&Pages>, source: &mut Source) {
        self.step = Step::Open;
        let millis = u64::try_from(first.passed.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        let page_size = source.page_size();
        let mut jobs = Vec::new();
        for member in self.members.iter().filter(|one| one.state == State::Held) {
            let written = written(&first.pages, member.id);
            let hot = if sweeps(written, member.pages) || goes_on(member, first, again, source) {
                member.pages.max(written)
            } else {
                let runs = first
                    .pages
                    .runs
                    .iter()
                    .chain(again.iter().flat_map(|a| &a.runs));
                source.only_hot(member.group, &runs.copied().collect::<Vec<Run>>());
                written
            };
            jobs.push(Job {
                id: member.id,
                hot_bytes: hot.saturating_mul(page_size),
                rate: written.saturating_mul(page_size).saturating_mul(1000) / millis,
                limit: member.limit(self.settings.max_pause),
            });
        }
        let news = PilotNews::Writing(jobs.clone());
        self.actions.push_back(PilotAction::Tell(news));
        self.jobs = jobs;
        self.estimate_at = self.seen_enough_at;
    }
}

/// Whether a process that has written so many of its pages, within about a second, goes through
/// all of them.
pub fn sweeps(written: u64, pages: u64) -> bool {
    written.saturating_mul(SWEEPS) >= pages
}

fn is_unclear(written: u64, pages: u64) -> bool {
    !sweeps(written, pages) && written.saturating_mul(RESTS) >= pages
}

/// Whether most of what it has written in the second look is not what it wrote in the first.
fn goes_on(member: &Member, first: &Look, again: Option<&Pages>, source: &Source) -> bool {
    let before = first.unclear.iter().find(|(id, _)| *id == member.id);
    let Some(((_, before), again)) = before.zip(again) else {
        return false;
    };
    let now = source.of_group(member.group, &again.runs);
    let others = now.len() - now.intersection_len(before);
    others > 0 && others * 2 >= now.len()
}

fn written(pages: &Pages, id: ProcessId) -> u64 {
    let of = pages.by_process.iter().find(|(one, _)| *one == id);
    of.map_or(0, |(_, written)| *written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_look_is_for_those_in_between() {
        let pages = 100_000;
        for (written, expected) in [
            (100_000, false),
            (34_000, false),
            (33_000, true),
            (12_500, true),
            (12_000, false),
            (0, false),
        ] {
            assert_eq!(is_unclear(written, pages), expected, "{written}");
        }
    }
}
