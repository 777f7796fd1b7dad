//! Whether a batch is worth a try at all.
//!
//! What is encrypted, compressed or random should cost next to nothing: a look at a few places shows
//! most of it. But what repeats itself from page to page only does not show there, so whole batches
//! are tried now and then all the same; if that works, the look is not believed any more.

use wire::MAX_PAYLOAD;

use crate::codec::is_worth_it;

/// Bytes looked at in one place of a batch.
const PROBE: usize = 4096;
/// How many places.
const PROBES: usize = 3;
/// Batches that are left as they are between two tries, when tries have come to nothing.
const LEFT_AT_MOST: u32 = 32;

/// Decides which batches are tried.
#[derive(Debug, Clone, Default)]
pub struct Scout {
    /// Between two tries.
    gap: u32,
    until_try: u32,
}

/// Why a batch is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Try {
    /// A look has shown that it can be compressed.
    Seen,
    /// A look has shown nothing.
    Doubtful,
}

impl Scout {
    /// Whether this batch is worth a try.
    pub fn look(&mut self, plain: &[u8]) -> Option<Try> {
        if plain.len() <= MAX_PAYLOAD && looks_compressible(plain) {
            return Some(Try::Seen);
        }
        if self.until_try > 0 {
            self.until_try -= 1;
            return None;
        }
        self.until_try = self.gap;
        Some(Try::Doubtful)
    }

    /// What came of a try.
    pub fn tried(&mut self, why: Try, plain: usize, packed: usize) {
        match why {
            Try::Doubtful if is_worth_it(packed, plain) => self.gap = 0,
            Try::Doubtful => self.gap = (self.gap * 2).clamp(1, LEFT_AT_MOST),
            Try::Seen => {}
        }
        self.until_try = self.until_try.min(self.gap);
    }
}

fn looks_compressible(plain: &[u8]) -> bool {
    let step = plain.len().saturating_sub(PROBE) / (PROBES - 1);
    let mut out = [0; 2 * PROBE];
    (0..PROBES).any(|i| {
        let from = i * step;
        let upto = plain.len().min(from + PROBE);
        let place = &plain[from..upto];
        lz4_flex::block::compress_into(place, &mut out)
            .is_ok_and(|length| is_worth_it(length, place.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise;

    #[test]
    fn a_batch_that_is_compressible_in_one_place_is_worth_a_try() {
        let mut bytes = noise(256 << 10);
        bytes[..128 << 10].fill(1);
        assert_eq!(Scout::default().look(&bytes), Some(Try::Seen));
    }

    #[test]
    fn noise_is_tried_ever_more_rarely() {
        let noise = noise(256 << 10);
        let mut scout = Scout::default();
        let mut tries = 0;
        for _ in 0..1000 {
            if let Some(why) = scout.look(&noise) {
                scout.tried(why, 100, 100);
                tries += 1;
            }
        }
        assert!((10..50).contains(&tries), "{tries}");
    }

    #[test]
    fn what_repeats_itself_from_page_to_page_only_is_found_out() {
        // Each page is noise, and the same noise.
        let page = noise(PROBE);
        let bytes = page.repeat(64);
        let mut scout = Scout::default();
        for _ in 0..100 {
            if let Some(why) = scout.look(&noise(PROBE * 8)) {
                scout.tried(why, 100, 100);
            }
        }
        let batches = (0..100).map(|_| {
            let why = scout.look(&bytes)?;
            scout.tried(why, 100, 2);
            Some(why)
        });
        let tried = batches.filter(Option::is_some).count();
        assert!(tried > 60, "{tried}");
    }
}
