//! The first bytes on a connection, and the choice of a version.

use crate::WireError;

const MAGIC: [u8; 8] = *b"UNMOOR\r\n";

/// The oldest protocol version that this release speaks.
pub const VERSION_OLDEST: u16 = 1;
/// The newest protocol version that this release speaks.
pub const VERSION_NEWEST: u16 = 1;

/// The range of protocol versions that a side offers; the newest common one is used.
///
/// It is outside the framing, and will stay as it is in every version, so that two releases that
/// have nothing in common can still tell their users so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    /// Oldest version on offer.
    pub oldest: u16,
    /// Newest version on offer.
    pub newest: u16,
}

impl Preamble {
    /// Length on the wire in bytes.
    pub const LEN: usize = 16;

    /// What this release offers.
    pub const OURS: Preamble = Preamble {
        oldest: VERSION_OLDEST,
        newest: VERSION_NEWEST,
    };

    /// Appends the preamble to `out`.
    pub fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.oldest.to_be_bytes());
        out.extend_from_slice(&self.newest.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
    }

    /// Reads a preamble; `None` asks for more bytes. A foreign peer is recognised at its first
    /// differing byte, so that one which sends little and waits is not waited for.
    pub(crate) fn parse(input: &[u8]) -> Result<Option<Preamble>, WireError> {
        let seen = input.len().min(MAGIC.len());
        if input[..seen] != MAGIC[..seen] {
            return Err(WireError::NotOurProtocol);
        }
        let Some(rest) = input.get(MAGIC.len()..Self::LEN) else {
            return Ok(None);
        };
        let preamble = Preamble {
            oldest: u16::from_be_bytes([rest[0], rest[1]]),
            newest: u16::from_be_bytes([rest[2], rest[3]]),
        };
        if preamble.oldest > preamble.newest {
            return Err(WireError::NotOurProtocol);
        }
        Ok(Some(preamble))
    }

    /// The newest version that both sides speak.
    pub fn choose(self, peer: Preamble) -> Result<u16, WireError> {
        let newest = self.newest.min(peer.newest);
        if newest < self.oldest.max(peer.oldest) {
            return Err(WireError::Version {
                peer_oldest: peer.oldest,
                peer_newest: peer.newest,
                ours_oldest: self.oldest,
                ours_newest: self.newest,
            });
        }
        Ok(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(oldest: u16, newest: u16) -> Preamble {
        Preamble { oldest, newest }
    }

    #[test]
    fn the_newest_common_version_wins() {
        assert_eq!(range(1, 3).choose(range(2, 7)), Ok(3));
        assert_eq!(range(2, 7).choose(range(1, 3)), Ok(3));
        assert_eq!(range(1, 1).choose(range(1, 9)), Ok(1));
    }

    #[test]
    fn no_common_version_names_both_ranges() {
        let error = range(1, 1).choose(range(2, 4)).unwrap_err();
        assert_eq!(
            error,
            WireError::Version {
                peer_oldest: 2,
                peer_newest: 4,
                ours_oldest: 1,
                ours_newest: 1
            }
        );
        assert!(error.to_string().contains("versions 2 to 4"));
    }

    #[test]
    fn a_foreign_peer_is_known_by_its_first_byte() {
        assert_eq!(Preamble::parse(b"H"), Err(WireError::NotOurProtocol));
        assert_eq!(Preamble::parse(b"UNMO"), Ok(None));
    }

    #[test]
    fn golden_bytes() {
        let mut out = Vec::new();
        range(1, 2).put(&mut out);
        assert_eq!(out, b"UNMOOR\r\n\x00\x01\x00\x02\x00\x00\x00\x00");
        assert_eq!(Preamble::parse(&out), Ok(Some(range(1, 2))));
    }
}
