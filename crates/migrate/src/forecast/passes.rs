//! QEMU's passes after the first.

use super::Dirtying;

/// Passes after which nobody would still wait.
const PASSES_MAX: u32 = 60;

/// What they come to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Passes {
    /// How long they take, without what is left.
    pub(super) seconds: f64,
    /// Bytes sent in them.
    pub(super) bytes: f64,
    /// What the last one leaves.
    pub(super) left: f64,
    pub(super) count: u32,
    /// Whether that fits the downtime.
    pub(super) fit: bool,
}

/// Each pass sends what was dirtied in the one before, `at_least` so many, until the rest fits.
pub(super) fn passes(
    first: f64,
    dirtying: &[Dirtying],
    link: f64,
    fits: f64,
    at_least: u32,
) -> Passes {
    let mut passes = Passes::default();
    let mut last = first;
    loop {
        let dirtied = dirtying.iter().map(|one| one.within(last)).sum();
        passes.left = dirtied;
        passes.fit = dirtied <= fits;
        if (passes.fit && passes.count >= at_least) || passes.count == PASSES_MAX {
            return passes;
        }
        last = dirtied / link;
        passes.seconds += last;
        passes.bytes += dirtied;
        passes.count += 1;
    }
}
