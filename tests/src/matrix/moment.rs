//! The moments of a migration.

use serde::{Deserialize, Serialize};

/// A moment of a migration.
///
/// Those before `Ready` are when `unmoor send` tells of them, so that what breaks may do so a
/// little later; from `Devices` on the migration is held up before its commit, and at `Committed` after
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moment {
    /// The halves have just met.
    Hello,
    /// Memory is sent for the first time.
    FirstPass,
    /// It is sent again.
    LaterPass,
    /// Jobs are about to be frozen.
    Freeze,
    /// They stand, and their memory is sent.
    Flush,
    /// The VM has stopped.
    FinalPass,
    /// All memory has been sent, and device state is.
    Devices,
    /// The destination has loaded everything, and waits.
    Ready,
    /// The commit has been sent, and has not been heard.
    Committed,
    /// The VM runs at the destination; its memory may have to follow.
    After,
}

impl Moment {
    /// All of them, in order.
    pub const ALL: [Moment; 10] = [
        Moment::Hello,
        Moment::FirstPass,
        Moment::LaterPass,
        Moment::Freeze,
        Moment::Flush,
        Moment::FinalPass,
        Moment::Devices,
        Moment::Ready,
        Moment::Committed,
        Moment::After,
    ];

    /// For tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Moment::Hello => "hello",
            Moment::FirstPass => "first-pass",
            Moment::LaterPass => "later-pass",
            Moment::Freeze => "freeze",
            Moment::Flush => "flush",
            Moment::FinalPass => "final-pass",
            Moment::Devices => "devices",
            Moment::Ready => "ready",
            Moment::Committed => "committed",
            Moment::After => "after",
        }
    }

    /// Whether the decision is held up by the hook before it.
    pub(super) fn is_held(self) -> bool {
        matches!(self, Moment::Devices | Moment::Ready | Moment::Committed)
    }
}
