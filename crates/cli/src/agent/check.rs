//! The agent's part of `unmoor check`.

use std::fmt;
use std::path::Path;

use guest_proto::{Capabilities, Tier};
use serde::Serialize;

use super::client::{AgentError, Client};
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
    /// What to change.
    advice: String,
}

impl Check {
    /// Asks it.
    pub(crate) fn of(path: &Path) -> Self {
        match Client::connect(path) {
            Ok((_, welcome)) => {
                let Capabilities { owners, freezer } = welcome.capabilities;
                let advice = match &welcome.tier {
                    Tier::Probes => String::new(),
                    Tier::StandingFactsOnly { reason } => format!(
                        "run a kernel with type information (CONFIG_DEBUG_INFO_BTF) and let the \
                         agent have CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN: {}",
                        printable(reason)
                    ),
                };
                Check {
                    answers: true,
                    software: printable(&welcome.software),
                    kernel: printable(&welcome.kernel),
                    probes: welcome.tier == Tier::Probes,
                    owners,
                    freezer,
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
        Ok(())
    }
}
