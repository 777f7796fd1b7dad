//! What the pilot makes of the agent's answers.

use depgraph::ProcessId;
use guest_proto::{Answer, Request, Tier, VERSION, VERSION_OLDEST};

use super::member::{self, Member, State};
use super::talk::{Pages, Told};
use super::{
    ALL_PROBES_MIN, CANDIDATES_MAX, Course, FreePages, Pilot, PilotAction, PilotNews, Protocol,
    RENEW_EVERY, Step,
};
use crate::{Source, Treatment};

impl Pilot {
    /// A part of the agent's answer.
    pub fn answer(&mut self, answer: Answer, last: bool, source: &mut Source) {
        let Some((hearing, _)) = &mut self.hearing else {
            return;
        };
        match hearing.part(answer, last, self.settings.frames) {
            Ok(None) => {}
            Ok(Some(told)) => {
                self.hearing = None;
                self.told(told, source);
            }
            Err(why) => self.agent_lost(&why, source),
        }
    }

    /// The agent could not do what was asked.
    pub fn refused(&mut self, why: &str, source: &mut Source) {
        let Some((hearing, _)) = self.hearing.take() else {
            return;
        };
        match hearing.asked() {
            Request::FreePages => {
                self.note(format!("free pages travel like others: {why}"));
                self.free = FreePages::Settled;
                source.none_is_free();
                if self.step == Step::FreePages {
                    self.after_free_pages();
                }
            }
            Request::Freeze { .. } => {
                let stage = self.stages.pop_front().unwrap_or_default();
                let who: Vec<_> = stage.iter().map(|job| job.id).collect();
                self.release(&who, why, source);
                self.next_stage_or_settle();
            }
            // It is only to be told to people.
            Request::ProbeState => self.step = self.after_probes,
            // What was to be thawed has been thawed, or the window is gone with all it held.
            Request::Renew { .. } | Request::Thaw => {
                self.agent_lost(why, source);
            }
            _ => {
                self.note(format!("all memory is moved live: {why}"));
                self.release_all(source);
                if self.step < Step::FreePages {
                    self.step = Step::FreePages;
                } else {
                    self.step = Step::Open;
                }
            }
        }
    }

    fn told(&mut self, told: Told, source: &mut Source) {
        match told {
            Told::Welcome(welcome) if !(VERSION_OLDEST..=VERSION).contains(&welcome.version) => {
                let why = "it is of another release: run the same unmoor in the guest as here";
                self.agent_lost(why, source);
            }
            Told::Welcome(welcome) => {
                let can = welcome.capabilities.owners && welcome.capabilities.freezer;
                let tells_of_probes = welcome.version > VERSION_OLDEST;
                let next = match (self.settings.protocol, &welcome.tier) {
                    (Protocol::Live, _) => Step::FreePages,
                    (Protocol::StopCopy, Tier::Probes) if can => Step::Survey,
                    // Nobody is frozen.
                    (Protocol::PostCopy, Tier::Probes) if welcome.capabilities.owners => {
                        Step::Survey
                    }
                    // What it says of its probes has the reason.
                    (_, Tier::StandingFactsOnly { .. }) if tells_of_probes => Step::FreePages,
                    (_, Tier::StandingFactsOnly { reason }) => {
                        let reason = format!("all memory is moved live: {reason}");
                        self.note(reason);
                        Step::FreePages
                    }
                    (_, Tier::Probes) => {
                        self.note("all memory is moved live: the agent cannot freeze".to_owned());
                        Step::FreePages
                    }
                };
                let asks = tells_of_probes && self.settings.protocol != Protocol::Live;
                self.after_probes = next;
                self.step = if asks { Step::Probes } else { next };
            }
            Told::Probes(state) => {
                self.step = self.after_probes;
                self.actions
                    .push_back(PilotAction::Tell(PilotNews::Probes(state)));
            }
            Told::Candidates(mut candidates) => {
                candidates.sort_by_key(|one| std::cmp::Reverse(one.anonymous_kib));
                candidates.truncate(CANDIDATES_MAX);
                self.unasked = candidates.iter().map(|one| one.id).collect();
                self.step = match self.unasked.is_empty() {
                    true => Step::FreePages,
                    false => Step::Owners,
                };
            }
            Told::Pages(pages) => self.told_pages(pages, source),
            Told::Watching if self.step == Step::WatchAgain => self.step = Step::WrittenAgain,
            Told::Watching => self.step = Step::Arm,
            Told::Armed => {
                let seen = self.view.now + ALL_PROBES_MIN;
                self.seen_enough_at = self.seen_enough_at.max(seen);
                self.step = Step::Report;
            }
            Told::Report(processes, summary) => {
                self.step = Step::FreePages;
                for member in &mut self.members {
                    let record = processes.iter().find(|record| record.id == member.id);
                    member.pause_limit = record.and_then(member::pause_limit);
                }
                let gone = |member: &&Member| !processes.iter().any(|r| r.id == member.id);
                let gone: Vec<_> = self.members.iter().filter(gone).map(|m| m.id).collect();
                let news = PilotNews::Classified(processes, summary);
                self.actions.push_back(PilotAction::Tell(news));
                self.release(&gone, "they have ended", source);
            }
            Told::Dependents(who) => {
                let frozen = self.frozen().any(|(id, _)| who.contains(&id));
                self.release(&who, "they depend on the outside", source);
                // The agent thaws by itself whom somebody turns to; whatever the way, one that
                // has become dependent must not stand.
                self.thaw |= frozen;
            }
            Told::Frozen(report) => self.told_frozen(&report.frozen, report.refused, source),
            Told::Renewed => {}
            Told::Thawed(_) if self.again => {
                self.thaw = false;
                self.again = false;
            }
            Told::Thawed(_) if self.following.thawed_to_follow => {
                self.thaw = false;
                self.following.thawed_to_follow = false;
            }
            Told::Thawed(who) => {
                self.thaw = false;
                self.release(&who, "they were thawed", source);
                self.release_all(source);
                self.set_free();
            }
        }
    }

    fn told_pages(&mut self, pages: Pages, source: &mut Source) {
        match self.step {
            Step::Owners => {
                if let Some(id) = self.unasked.pop_front()
                    && let Some(group) = source.hold(&pages.runs)
                {
                    self.members.push(Member::new(id, group, pages.count()));
                }
                if self.unasked.is_empty() {
                    self.step = match self.members.is_empty() {
                        true => Step::FreePages,
                        false => Step::Watch,
                    };
                }
            }
            Step::FreePages => {
                source.may_be_free(&pages.runs);
                let news = PilotNews::DeclaredFree(pages.count());
                self.actions.push_back(PilotAction::Tell(news));
                self.free = FreePages::Declared;
                self.after_free_pages();
            }
            Step::Written => self.told_written(pages, source),
            Step::WrittenAgain => self.told_written_again(&pages, source),
            _ => {
                let left = source.are_free(&pages.runs);
                self.free = FreePages::Settled;
                let news = PilotNews::Free(left);
                self.actions.push_back(PilotAction::Tell(news));
            }
        }
    }

    /// Where anybody's memory is held, who writes how much is of interest.
    fn after_free_pages(&mut self) {
        let holds = self.members.iter().any(|m| m.state == State::Held);
        self.step = match holds {
            true => Step::Written,
            false => Step::Open,
        };
    }

    fn told_frozen(
        &mut self,
        frozen: &[ProcessId],
        refused: Vec<(ProcessId, String)>,
        source: &mut Source,
    ) {
        let now = self.view.now;
        self.standing
            .extend(self.stages.pop_front().unwrap_or_default());
        let mut stand = Vec::new();
        for member in &mut self.members {
            if frozen.contains(&member.id) && member.state == State::Held {
                member.state = State::Frozen { since: now };
                source.treat(member.group, Treatment::Stopping);
                stand.push(member.id);
            }
        }
        for (id, why) in refused {
            self.release(&[id], &why, source);
        }
        self.renew_at = now + RENEW_EVERY;
        if stand.is_empty() {
            self.next_stage_or_settle();
        } else {
            self.actions
                .push_back(PilotAction::Tell(PilotNews::Frozen(stand)));
            self.course = Course::Circling {
                since: now,
                synced: None,
            };
        }
    }
}
