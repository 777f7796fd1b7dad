//! Probes that do not work in a guest, and what is uncertain without them.

use serde::{Deserialize, Serialize};

use crate::message::shortened;

/// Longest detail, in bytes.
const DETAIL_MAX: usize = 300;

/// Why a probe does not work. Their order is their number on the wire: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LossCause {
    /// The kernel has no function or event of that name.
    NotInKernel,
    /// The kernel's verifier refuses the program.
    Verifier,
    /// The kernel's type information lacks a field that the program reads (CO-RE).
    Relocation,
    /// The program loads, but it cannot be attached.
    Attach,
    /// The kernel has no type information (BTF).
    NoTypeInformation,
    /// The agent lacks a privilege.
    Privilege,
    /// Kernel lockdown forbids reading the kernel's memory.
    Lockdown,
    /// There is not enough memory.
    Memory,
    /// The kernel is older than the oldest that can be followed.
    TooOld,
    /// So many probes failed that the agent has stopped trying.
    TooMany,
    /// The agent does not recognise the cause; its detail is all that is known.
    Other,
}

impl LossCause {
    /// Whether this concerns every probe, so that none works.
    pub fn concerns_all(self) -> bool {
        use LossCause as C;
        match self {
            C::NotInKernel | C::Verifier | C::Relocation | C::Attach | C::Other => false,
            C::NoTypeInformation
            | C::Privilege
            | C::Lockdown
            | C::Memory
            | C::TooOld
            | C::TooMany => true,
        }
    }

    /// The cause, in words that end a sentence which begins with the probe's name.
    pub fn words(self) -> &'static str {
        match self {
            LossCause::NotInKernel => "this kernel has no place for it",
            LossCause::Verifier => "the kernel's verifier refuses it",
            LossCause::Relocation => "the kernel's type information lacks a field that it reads",
            LossCause::Attach => "it cannot be attached",
            LossCause::NoTypeInformation => "the kernel has no type information (BTF)",
            LossCause::Privilege => "the agent lacks a privilege",
            LossCause::Lockdown => "kernel lockdown forbids it",
            LossCause::Memory => "there is not enough memory",
            LossCause::TooOld => "the kernel is too old",
            LossCause::TooMany => "too many probes failed",
            LossCause::Other => "it does not load",
        }
    }

    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            LossCause::NotInKernel | LossCause::Verifier | LossCause::Relocation => {
                "use a newer unmoor-agent, or report this kernel with the agent's log"
            }
            LossCause::Attach | LossCause::Other => {
                "the agent's log in the guest has the kernel's words: report them"
            }
            LossCause::NoTypeInformation => "run a kernel that is built with CONFIG_DEBUG_INFO_BTF",
            LossCause::Privilege => {
                "run the agent as root outside containers, with CAP_BPF, CAP_PERFMON and \
                 CAP_SYS_ADMIN"
            }
            LossCause::Lockdown => {
                "boot the guest without lockdown=confidentiality (lockdown=integrity is no hindrance)"
            }
            LossCause::Memory => {
                "give the guest more memory, or raise the agent's limits (memlock)"
            }
            LossCause::TooOld => "run Linux 5.12 or later; 6.1 is the oldest that is tested",
            LossCause::TooMany => "use a newer unmoor-agent: this one is too old for this kernel",
        }
    }
}

/// What is uncertain without a probe. Their order is their number on the wire: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LossEffect {
    /// Nothing: what it would have seen is found in another way.
    None,
    /// The processes that do what it would have seen, and those that may have received something by that.
    Users,
    /// Every process.
    Everyone,
}

impl LossEffect {
    /// Which processes are taken to be dependent without the probe, as a sentence.
    pub fn words(self) -> &'static str {
        match self {
            LossEffect::None => "nothing is uncertain without it",
            LossEffect::Users => {
                "processes that do this, or may receive something by it, are taken to be dependent"
            }
            LossEffect::Everyone => "every process is taken to be dependent",
        }
    }
}

/// A probe that does not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostProbe {
    /// Its name, as the program in the kernel is called.
    pub name: String,
    /// What it would have seen.
    pub sees: String,
    /// Why it does not work.
    pub cause: LossCause,
    /// The kernel's or the library's own words, shortened.
    pub detail: String,
    /// What is uncertain without it.
    pub effect: LossEffect,
}

impl LostProbe {
    /// One whose detail is cut to a length that fits a message.
    pub fn new(name: &str, sees: &str, cause: LossCause, detail: &str, effect: LossEffect) -> Self {
        LostProbe {
            name: name.to_owned(),
            sees: sees.to_owned(),
            cause,
            detail: shortened(detail, DETAIL_MAX),
            effect,
        }
    }
}

/// The state of all probes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeState {
    /// None works, for this reason and with this detail.
    pub none: Option<(LossCause, String)>,
    /// Those that do not work although others do.
    pub lost: Vec<LostProbe>,
    /// Attempts to load them that it took.
    pub tries: u16,
    /// How long loading and attaching took, in milliseconds.
    pub took_ms: u32,
}

impl ProbeState {
    /// Without any probe.
    pub fn none(cause: LossCause, detail: &str) -> Self {
        ProbeState {
            none: Some((cause, shortened(detail, DETAIL_MAX))),
            ..ProbeState::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_fit_a_message() {
        let probe = LostProbe::new(
            "file_lock",
            "locks",
            LossCause::Verifier,
            &"ä".repeat(1000),
            LossEffect::Users,
        );
        assert_eq!(probe.detail.len(), DETAIL_MAX);
        let state = ProbeState::none(LossCause::Memory, &"x".repeat(1000));
        assert_eq!(state.none.map(|(_, detail)| detail.len()), Some(DETAIL_MAX));
    }
}
