//! The ways to compress.

use std::fmt::{self, Display};
use std::str::FromStr;

/// A way to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// LZ4: hardly any time.
    Lz4,
    /// Zstandard at a level from 1 to 19: smaller, the higher the slower.
    Zstd(u8),
}

impl Method {
    /// The number in a packed frame.
    pub(crate) fn number(self) -> u8 {
        match self {
            Method::Lz4 => 1,
            Method::Zstd(_) => 2,
        }
    }
}

impl Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Method::Lz4 => write!(f, "lz4"),
            Method::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level)),
            None => (text, None),
        };
        match (name, level) {
            ("lz4", None) => Ok(Method::Lz4),
            ("zstd", None) => Ok(Method::Zstd(1)),
            ("zstd", Some(level)) => match level.parse() {
                Ok(level @ 1..=19) => Ok(Method::Zstd(level)),
                _ => Err("zstd takes a level from 1 to 19".into()),
            },
            _ => Err("lz4, zstd or zstd:LEVEL".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for method in [Method::Lz4, Method::Zstd(1), Method::Zstd(19)] {
            assert_eq!(method.to_string().parse(), Ok(method));
        }
        assert_eq!("zstd".parse(), Ok(Method::Zstd(1)));
        for wrong in ["", "gzip", "lz4:1", "zstd:0", "zstd:20", "zstd:", "Zstd"] {
            assert!(wrong.parse::<Method>().is_err(), "{wrong}");
        }
    }
}
