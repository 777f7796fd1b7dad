//! What the source half says on its way to the link: as it is, or with its batches compressed.

use std::collections::BTreeSet;

use migrate::Source;
use pack::{Compressor, History, Method};
use wire::own_frames;

use crate::qemu::PAGE;

pub(crate) struct Outlet {
    method: Option<Method>,
    compressor: Compressor,
    history: Option<History>,
}

impl Outlet {
    pub(crate) fn of_seed(seed: u64) -> Self {
        let method = match seed % 5 {
            0 => Some(Method::Lz4),
            1 => Some(Method::Zstd(1)),
            _ => None,
        };
        Outlet {
            history: seed
                .is_multiple_of(3)
                .then(|| History::new(PAGE, 40 * PAGE)),
            ..Self::with(method)
        }
    }

    pub(crate) fn plain() -> Self {
        Self::with(None)
    }

    fn with(method: Option<Method>) -> Self {
        Outlet {
            method,
            compressor: Compressor::default(),
            history: None,
        }
    }

    /// Passes whole frames on.
    pub(crate) fn pass(
        &mut self,
        source: &Source,
        frames: &[u8],
        to: &mut Vec<u8>,
        seen: &mut BTreeSet<&'static str>,
    ) {
        let method = self.method.filter(|_| source.can_pack());
        for frame in own_frames(frames) {
            let Some((method, pages)) = method.zip(frame.pages) else {
                to.extend_from_slice(frame.bytes);
                continue;
            };
            let mut batch = Vec::new();
            let recalled = self
                .history
                .as_mut()
                .and_then(|it| it.recall(pages, &mut batch));
            if let Some(recalled) = recalled {
                self.compressor.compress_recalled(method, &batch, to);
                if recalled.same > 0 {
                    seen.insert("same page");
                }
                if recalled.differing > 0 {
                    seen.insert("difference");
                }
            } else if self.compressor.compress(method, pages, to) {
                seen.insert("packed");
            } else {
                to.extend_from_slice(frame.bytes);
            }
        }
    }
}
