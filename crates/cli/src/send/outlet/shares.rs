//! What the bytes on the link stand for.

use std::collections::VecDeque;

/// The pieces of an output, in order: bytes on the link, and what they were before.
#[derive(Debug, Default)]
pub(super) struct Shares(VecDeque<Share>);

#[derive(Debug)]
struct Share {
    wire: usize,
    plain: usize,
}

impl Shares {
    /// So much was added to the output.
    pub(super) fn add(&mut self, wire: usize, plain: usize) {
        match self.0.back_mut() {
            // As they are: no need to tell them apart.
            Some(last) if last.wire == last.plain && wire == plain => {
                last.wire += wire;
                last.plain += plain;
            }
            _ if wire > 0 => self.0.push_back(Share { wire, plain }),
            _ => {}
        }
    }

    /// So much of the output went out; what it stood for.
    pub(super) fn sent(&mut self, mut wire: usize) -> usize {
        let mut plain = 0;
        while wire > 0 {
            let Some(first) = self.0.front_mut() else {
                return plain + wire;
            };
            if wire >= first.wire {
                wire -= first.wire;
                plain += first.plain;
                self.0.pop_front();
            } else {
                // Both lengths are a frame's.
                let part = first.plain * wire / first.wire;
                first.wire -= wire;
                first.plain -= part;
                plain += part;
                wire = 0;
            }
        }
        plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_went_in_comes_out_in_proportion() {
        let mut shares = Shares::default();
        shares.add(100, 400);
        shares.add(50, 50);
        shares.add(50, 50);
        shares.add(10, 1000);
        assert_eq!(shares.sent(25), 100);
        assert_eq!(shares.sent(100), 325);
        assert_eq!(shares.sent(75), 75);
        assert_eq!(shares.sent(3), 300);
        assert_eq!(shares.sent(7), 700);
        assert_eq!(shares.sent(5), 5);
    }
}
