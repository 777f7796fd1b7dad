//! What the source half says on its way to the link: as it is, or with its batches compressed.

use std::collections::BTreeSet;

use migrate::Source;
use pack::{Compressor, Method};
use wire::own_frames;

pub(crate) struct Outlet {
    method: Option<Method>,
    compressor: Compressor,
}

impl Outlet {
    pub(crate) fn of_seed(seed: u64) -> Self {
        let method = match seed % 5 {
            0 => Some(Method::Lz4),
            1 => Some(Method::Zstd(1)),
            _ => None,
        };
        Self::with(method)
    }

    pub(crate) fn plain() -> Self {
        Self::with(None)
    }

    fn with(method: Option<Method>) -> Self {
        Outlet {
            method,
            compressor: Compressor::default(),
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
            let packed = match (method, frame.pages) {
                (Some(method), Some(pages)) => self.compressor.compress(method, pages, to),
                _ => false,
            };
            if packed {
                seen.insert("packed");
            } else {
                to.extend_from_slice(frame.bytes);
            }
        }
    }
}
