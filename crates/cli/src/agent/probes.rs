//! Probes of the guest that do not work: what people are told of them.

use guest_proto::{LossCause, LossEffect, ProbeState, shortened};
use serde::Serialize;

use super::words::printable;

/// Probes that are told of: more than the agent has.
const TOLD_MAX: usize = 100;
/// Longest text of a guest, in bytes.
const TEXT_MAX: usize = 300;

/// A probe that does not work, as JSON and report have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LostProbe {
    /// Its name; absent where it is about all of them.
    pub(crate) name: Option<String>,
    /// What it would have seen.
    pub(crate) sees: String,
    pub(crate) cause: LossCause,
    /// The kernel's own words.
    pub(crate) detail: String,
    pub(crate) effect: LossEffect,
    /// What to do about it.
    pub(crate) advice: &'static str,
}

impl LostProbe {
    /// What a guest says of its probes, made fit for people.
    pub(crate) fn of(state: &ProbeState) -> Vec<LostProbe> {
        let text = |text: &str| shortened(&printable(text), TEXT_MAX);
        let all = state.none.iter().map(|(cause, detail)| LostProbe {
            name: None,
            sees: "what processes do".into(),
            cause: *cause,
            detail: text(detail),
            effect: LossEffect::Everyone,
            advice: cause.advice(),
        });
        let some = state.lost.iter().take(TOLD_MAX).map(|lost| LostProbe {
            name: Some(text(&lost.name)),
            sees: text(&lost.sees),
            cause: lost.cause,
            detail: text(&lost.detail),
            effect: lost.effect,
            advice: lost.cause.advice(),
        });
        all.chain(some).collect()
    }

    /// One sentence: what is lost, why, which processes are concerned, and what to do.
    pub(crate) fn sentence(&self) -> String {
        let cause = match self.detail.is_empty() {
            true => self.cause.words().to_owned(),
            false => format!("{} ({})", self.cause.words(), self.detail),
        };
        match &self.name {
            Some(name) => format!(
                "the guest's probe {name} ({}) does not work: {cause}; {}; {}",
                self.sees,
                self.effect.words(),
                self.advice
            ),
            None => format!(
                "none of the guest's probes works: {cause}; every active process is taken to be \
                 dependent, and none is paused; {}",
                self.advice
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_of_in_whole_sentences_and_cannot_play_tricks() {
        let lost = guest_proto::LostProbe::new(
            "do_tee",
            "tee between pipes",
            LossCause::Verifier,
            "R4 pointer\u{1b}[2J",
            LossEffect::Users,
        );
        let mut state = ProbeState {
            lost: vec![lost; 1000],
            ..ProbeState::default()
        };
        let told = LostProbe::of(&state);
        assert_eq!(told.len(), TOLD_MAX);
        assert_eq!(
            told[0].sentence(),
            "the guest's probe do_tee (tee between pipes) does not work: the kernel's verifier \
             refuses it (R4 pointer?[2J); processes that do this, or may receive something by it, are \
             taken to be dependent; use a newer unmoor-agent, or report this kernel with the agent's log"
        );
        state.lost.clear();
        state.none = Some((LossCause::TooOld, String::new()));
        let sentence = LostProbe::of(&state)[0].sentence();
        assert!(sentence.contains("5.12"), "{sentence}");
        assert!(!sentence.contains("BTF"), "{sentence}");
    }
}
