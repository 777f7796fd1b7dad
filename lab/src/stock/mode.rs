//! QEMU's ways to migrate.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Cache for the last content of each page: more than any writer of the lab rewrites.
const XBZRLE_CACHE: u64 = 1 << 30;

/// How QEMU migrates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Pass by pass, until what is left fits the downtime limit.
    PreCopy,
    /// The same, with the guest's processors throttled when that does not converge.
    AutoConverge,
    /// The same, with what has changed in a page instead of the page.
    Xbzrle,
    /// The same over several connections.
    Multifd,
    /// One pass, then the VM runs at the destination, which asks for what it lacks.
    PostCopy,
    /// The same, with a connection of its own for what is asked for.
    PostCopyPreempt,
}

impl Mode {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Mode::PreCopy => "pre-copy",
            Mode::AutoConverge => "auto-converge",
            Mode::Xbzrle => "XBZRLE",
            Mode::Multifd => "multifd",
            Mode::PostCopy => "post-copy",
            Mode::PostCopyPreempt => "post-copy, preempt",
        }
    }

    pub(super) fn is_post_copy(self) -> bool {
        matches!(self, Mode::PostCopy | Mode::PostCopyPreempt)
    }

    /// Every capability that a mode may need, on or off: one migration must not leave its own to
    /// the next.
    pub(super) fn capabilities(self) -> Value {
        let all = [
            ("events", true),
            ("auto-converge", self == Mode::AutoConverge),
            ("xbzrle", self == Mode::Xbzrle),
            ("multifd", self == Mode::Multifd),
            ("postcopy-ram", self.is_post_copy()),
            ("postcopy-preempt", self == Mode::PostCopyPreempt),
        ];
        let all = all.map(|(name, state)| json!({"capability": name, "state": state}));
        json!({"capabilities": all})
    }

    /// As fast as the link allows.
    pub(super) fn parameters(self, downtime_limit_ms: u64) -> Value {
        json!({
            "max-bandwidth": 0,
            "max-postcopy-bandwidth": 0,
            "downtime-limit": downtime_limit_ms,
            "xbzrle-cache-size": XBZRLE_CACHE,
        })
    }
}
