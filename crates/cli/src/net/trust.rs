//! Whether a connection may be made at all.
//!
//! There is no encryption yet, so a connection is made only when the user says `--insecure`, and
//! then only within networks that nobody else is on: guest memory holds passwords and keys.

use std::net::IpAddr;

/// How much the user trusts the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Nothing was said.
    Nothing,
    /// `--insecure`: loopback and private networks.
    Private,
    /// `--insecure-anywhere`: any network.
    Anywhere,
}

/// A connection that must not be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TrustError {
    #[error(
        "this release cannot encrypt yet: give --insecure to send guest memory in plain text over a network that only you use"
    )]
    NotAllowed,
    #[error(
        "{0} is neither loopback nor a private network, and guest memory would travel in plain text: use a private address, or --insecure-anywhere if you are sure"
    )]
    PublicAddress(IpAddr),
    #[error(
        "listening on every address ({0}) would offer the plain-text port to every network: name a private address, or give --insecure-anywhere if you are sure"
    )]
    EveryAddress(IpAddr),
}

impl Trust {
    pub(crate) fn from_flags(insecure: bool, anywhere: bool) -> Self {
        match (insecure, anywhere) {
            (_, true) => Trust::Anywhere,
            (true, false) => Trust::Private,
            (false, false) => Trust::Nothing,
        }
    }

    /// Whether to speak with, or listen on, `address`.
    pub(crate) fn check(self, address: IpAddr) -> Result<(), TrustError> {
        match self {
            Trust::Nothing => Err(TrustError::NotAllowed),
            Trust::Anywhere => Ok(()),
            Trust::Private if address.is_unspecified() => Err(TrustError::EveryAddress(address)),
            Trust::Private if is_private(address) => Ok(()),
            Trust::Private => Err(TrustError::PublicAddress(address)),
        }
    }
}

fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(trust: Trust, address: &str) -> Result<(), TrustError> {
        trust.check(address.parse().unwrap())
    }

    #[test]
    fn nothing_travels_in_plain_text_unasked() {
        assert_eq!(
            check(Trust::Nothing, "127.0.0.1"),
            Err(TrustError::NotAllowed)
        );
    }

    #[test]
    fn insecure_means_private_networks() {
        for address in [
            "127.0.0.1",
            "10.78.0.2",
            "192.168.1.9",
            "172.20.0.1",
            "169.254.3.4",
            "::1",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(check(Trust::Private, address), Ok(()), "{address}");
        }
        for address in ["8.8.8.8", "172.32.0.1", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert!(
                matches!(
                    check(Trust::Private, address),
                    Err(TrustError::PublicAddress(_))
                ),
                "{address}"
            );
        }
        for address in ["0.0.0.0", "::"] {
            assert!(
                matches!(
                    check(Trust::Private, address),
                    Err(TrustError::EveryAddress(_))
                ),
                "{address}"
            );
        }
    }

    #[test]
    fn anywhere_means_anywhere() {
        assert_eq!(check(Trust::Anywhere, "8.8.8.8"), Ok(()));
        assert_eq!(check(Trust::Anywhere, "0.0.0.0"), Ok(()));
    }
}
