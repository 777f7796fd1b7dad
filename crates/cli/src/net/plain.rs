//! Whether a connection may be made in plain text.
//!
//! Guest memory holds passwords and keys: only when the user says `--insecure`, and then only within
//! networks that nobody else is on.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// How far the user allows plain text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Plain {
    /// `--insecure`: loopback and private networks.
    Private,
    /// `--insecure-anywhere`: any network.
    Anywhere,
}

/// A connection that must not be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlainError {
    #[error(
        "{0} is neither loopback nor a private network, and guest memory would travel in plain text: use certificates, a private address, or --insecure-anywhere if you are sure"
    )]
    PublicAddress(IpAddr),
    #[error(
        "listening on every address ({0}) would offer the plain-text port to every network: name a private address, or give --insecure-anywhere if you are sure"
    )]
    EveryAddress(IpAddr),
}

impl Plain {
    /// Whether to speak with, or listen on, `address`.
    pub(crate) fn check(self, address: IpAddr) -> Result<(), PlainError> {
        match self {
            Plain::Anywhere => Ok(()),
            Plain::Private if address.is_unspecified() => Err(PlainError::EveryAddress(address)),
            Plain::Private if is_private(address) => Ok(()),
            Plain::Private => Err(PlainError::PublicAddress(address)),
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

    fn check(plain: Plain, address: &str) -> Result<(), PlainError> {
        plain.check(address.parse().unwrap())
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
            assert_eq!(check(Plain::Private, address), Ok(()), "{address}");
        }
        for address in ["8.8.8.8", "172.32.0.1", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert!(
                matches!(
                    check(Plain::Private, address),
                    Err(PlainError::PublicAddress(_))
                ),
                "{address}"
            );
        }
        for address in ["0.0.0.0", "::"] {
            assert!(
                matches!(
                    check(Plain::Private, address),
                    Err(PlainError::EveryAddress(_))
                ),
                "{address}"
            );
        }
    }

    #[test]
    fn anywhere_means_anywhere() {
        assert_eq!(check(Plain::Anywhere, "8.8.8.8"), Ok(()));
        assert_eq!(check(Plain::Anywhere, "0.0.0.0"), Ok(()));
    }
}
