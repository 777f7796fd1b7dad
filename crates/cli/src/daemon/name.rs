//! Names that are part of a path.

use std::fmt::{self, Display};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name.
const LONGEST: usize = 64;

/// Letters, digits, dots, dashes and underscores, not beginning with a dot: whoever sends one cannot
/// leave the folder with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_name = (1..=LONGEST).contains(&text.len())
            && !text.starts_with('.')
            && text.chars().all(plain);
        match is_name {
            true => Ok(Name(text.to_owned())),
            false => Err(format!(
                "{text:?} is no name: letters, digits, dots, dashes and underscores, {LONGEST} at the most"
            )),
        }
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_in_its_folder() {
        for good in ["0.sock", "host-b", "node_7.example"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let long = "a".repeat(LONGEST + 1);
        for bad in ["", ".", "..", "../x", "a/b", ".sock", "a b", "a\0", &long] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }
}
