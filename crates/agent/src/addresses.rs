//! This machine's own addresses, those of its containers' networks included.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The addresses of every network namespace that a process lives in.
pub(crate) fn own() -> HashSet<IpAddr> {
    let mut seen = HashSet::new();
    let mut addresses = HashSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let is_pid = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.parse::<u32>().is_ok());
        let Ok(space) = fs::read_link(entry.path().join("ns/net")) else {
            continue;
        };
        if !is_pid || !seen.insert(space) {
            continue;
        }
        let file = |name: &str| fs::read_to_string(entry.path().join("net").join(name));
        addresses.extend(v4(&file("fib_trie").unwrap_or_default()).map(IpAddr::V4));
        addresses.extend(v6(&file("if_inet6").unwrap_or_default()).map(IpAddr::V6));
    }
    addresses
}

/// The routing table has a line for each own address: `|-- ADDRESS`, then `/32 host LOCAL`.
fn v4(fib_trie: &str) -> impl Iterator<Item = Ipv4Addr> + '_ {
    fib_trie
        .lines()
        .zip(fib_trie.lines().skip(1))
        .filter(|(_, next)| next.contains("/32 host LOCAL"))
        .filter_map(|(line, _)| line.trim().strip_prefix("|-- ")?.parse().ok())
}

/// A line for each: 32 hex digits first.
fn v6(if_inet6: &str) -> impl Iterator<Item = Ipv6Addr> + '_ {
    if_inet6.lines().filter_map(|line| {
        let digits = line.split_ascii_whitespace().next()?;
        let digits = (digits.len() == 32).then_some(digits)?;
        Some(Ipv6Addr::from(u128::from_str_radix(digits, 16).ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_told_from_routes() {
        let trie = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n\
                    |-- 10.77.0.10\n           /32 host LOCAL\n        |-- 10.77.0.255\n           /32 link BROADCAST\n";
        assert_eq!(v4(trie).collect::<Vec<_>>(), [Ipv4Addr::new(10, 77, 0, 10)]);
    }

    #[test]
    fn v6_addresses_are_hex_digits() {
        let lines = "00000000000000000000000000000001 01 80 10 80       lo\nbad\n";
        assert_eq!(v6(lines).collect::<Vec<_>>(), [Ipv6Addr::LOCALHOST]);
    }

    #[test]
    fn this_machine_has_a_loopback() {
        assert!(own().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
