//! How much may be sent: a rate, or a share of what the network card can do.

use std::fmt::{self, Display};
use std::fs;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Bandwidth {
    /// Bytes a second.
    Rate(u64),
    /// Percent of the network card's rate.
    Share(u8),
}

impl Bandwidth {
    /// Bytes a second, on the connection that goes out from this address of this host.
    pub(crate) fn bytes_per_second(self, from: IpAddr) -> Result<u64, String> {
        let share = match self {
            Bandwidth::Rate(rate) => return Ok(rate),
            Bandwidth::Share(share) => u64::from(share),
        };
        let card = card_of(from)
            .ok_or_else(|| format!("no network card has the address {from}: give a rate"))?;
        let rate = card_rate(&card).ok_or_else(|| {
            format!("the network card {card} does not say how fast it is: give a rate")
        })?;
        Ok(rate / 100 * share)
    }
}

/// The network card that has this address.
fn card_of(address: IpAddr) -> Option<String> {
    let cards = if_addrs::get_if_addrs().ok()?;
    let card = cards.into_iter().find(|card| card.ip() == address)?;
    Some(card.name)
}

/// Bytes a second.
fn card_rate(card: &str) -> Option<u64> {
    let speed = fs::read_to_string(format!("/sys/class/net/{card}/speed")).ok()?;
    // In Mbit/s; -1 where it is not known.
    let speed: u64 = speed.trim().parse().ok()?;
    Some(speed * 1_000_000 / 8)
}

impl Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bandwidth::Rate(rate) => write!(f, "{rate}B"),
            Bandwidth::Share(share) => write!(f, "{share}%"),
        }
    }
}

impl From<Bandwidth> for String {
    fn from(bandwidth: Bandwidth) -> Self {
        bandwidth.to_string()
    }
}

impl TryFrom<String> for Bandwidth {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Bandwidth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(share) = text.trim().strip_suffix('%') else {
            return rate(text).map(Bandwidth::Rate);
        };
        match share.trim().parse() {
            Ok(share @ 1..=100) => Ok(Bandwidth::Share(share)),
            _ => Err("a share between 1% and 100%, please".into()),
        }
    }
}

/// Bytes per second from a rate such as `1Gbit`, `100Mbit`, `118MB`, `50MiB`, with or without
/// `/s` or `ps`.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    let explain = || "write a rate such as 1Gbit, 100Mbit, 118MB or 50MiB (per second)".to_owned();
    let trimmed = text.trim();
    let trimmed = trimmed
        .strip_suffix("/s")
        .or_else(|| trimmed.strip_suffix("ps"))
        .unwrap_or(trimmed);
    let unit_at = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .ok_or_else(explain)?;
    let (number, unit) = trimmed.split_at(unit_at);
    let number: f64 = number.parse().map_err(|_| explain())?;
    let bytes = match unit.trim().to_ascii_lowercase().as_str() {
        "bit" => 1.0 / 8.0,
        "kbit" => 1e3 / 8.0,
        "mbit" => 1e6 / 8.0,
        "gbit" => 1e9 / 8.0,
        "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(explain()),
    };
    let rate = number * bytes;
    if !(64e3..=1e13).contains(&rate) {
        return Err("a rate between 512kbit and 80000Gbit, please".into());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked just above"
    )]
    let rate = rate as u64;
    Ok(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_in_bits_and_bytes() {
        assert_eq!(rate("1Gbit"), Ok(125_000_000));
        assert_eq!(rate("100 Mbit/s"), Ok(12_500_000));
        assert_eq!(rate("1.5MB"), Ok(1_500_000));
        assert_eq!(rate("2MiB/s"), Ok(2 << 20));
        for wrong in ["1000", "fast", "10Mfoo", "1bit", "-5MB", "9999999Gbit"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn limits_are_read_as_they_are_written() {
        for (text, limit) in [
            ("1Gbit", Bandwidth::Rate(125_000_000)),
            ("30%", Bandwidth::Share(30)),
        ] {
            assert_eq!(text.parse(), Ok(limit));
            assert_eq!(limit.to_string().parse(), Ok(limit));
        }
        for wrong in ["0%", "101%", "1.5%", "%", "half"] {
            assert!(wrong.parse::<Bandwidth>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_share_needs_a_card_that_says_how_fast_it_is() {
        let local = [127, 0, 0, 1].into();
        let nobody = [203, 0, 113, 77].into();
        assert_eq!(Bandwidth::Rate(5).bytes_per_second(nobody), Ok(5));
        let why = Bandwidth::Share(5).bytes_per_second(nobody);
        assert_eq!(
            why,
            Err("no network card has the address 203.0.113.77: give a rate".into())
        );
        let why = Bandwidth::Share(5).bytes_per_second(local);
        assert!(why.is_err_and(|why| why.contains("the network card lo does not say")));
    }
}
