//! The agent's part of `unmoor check`.

use std::fmt;
use std::path::Path;

use guest_proto::{Capabilities, Tier};
use serde::Serialize;

use super::client::{AgentError, Client};
use super::probes::LostProbe;
use super::words::printable;

/// Whether the guest's agent can do what a dependency-aware migration needs.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    /// It answers.
    answers: bool,
    /// Its release.
    software: String,
    /// The guest's kernel.
    kernel: String,
    /// It follows processes by probes.
    probes: bool,
    /// It can tell whose pages are whose.
    owners: bool,
    /// It can freeze processes.
    freezer: bool,
    /// Probes that do not work, and what is uncertain without them.
    lost_probes: Vec<LostProbe>,
    /// What to change.
    advice: String,
}

impl Check {
    /// Asks it.
    pub(crate) fn of(path: &Path) -> Self {
        let asked = Client::connect(path).and_then(|(mut client, welcome)| {
            let state = client.probe_state()?;
            Ok((welcome, state))
        });
        match asked {
            Ok((welcome, state)) => {
                let Capabilities { owners, freezer } = welcome.capabilities;
                let lost_probes = LostProbe::of(&state);
                let advice = match &welcome.tier {
                    // An agent of the version before gives a reason only.
                    Tier::StandingFactsOnly { reason } if lost_probes.is_empty() => {
                        printable(reason)
                    }
                    Tier::StandingFactsOnly { .. } | Tier::Probes => String::new(),
                };
                Check {
                    answers: true,
                    software: printable(&welcome.software),
                    kernel: printable(&welcome.kernel),
                    probes: welcome.tier == Tier::Probes,
                    owners,
                    freezer,
                    lost_probes,
                    advice,
                }
            }
            Err(error) => Self::silent(&error),
        }
    }

    fn silent(error: &AgentError) -> Self {
        Check {
            answers: false,
            software: String::new(),
            kernel: String::new(),
            probes: false,
            owners: false,
            freezer: false,
            lost_probes: Vec::new(),
            advice: error.to_string(),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.answers {
            return write!(
                f,
                "agent: {}; the VM moves with every page live",
                self.advice
            );
        }
        write!(f, "agent: {} on Linux {}", self.software, self.kernel)?;
        for (able, what) in [
            (self.probes, "follows processes"),
            (self.owners, "knows page owners"),
            (self.freezer, "can freeze"),
        ] {
            write!(f, ", {}{what}", if able { "" } else { "not: " })?;
        }
        if !self.advice.is_empty() {
            write!(f, "; {}", self.advice)?;
        }
        for lost in &self.lost_probes {
            write!(f, "\nagent: {}", lost.sentence())?;
        }
        Ok(())
    }
}
