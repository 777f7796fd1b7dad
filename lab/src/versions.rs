//! Which versions the lab has: what `lab/setup.sh` and `lab/versions.sh` wrote down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use crate::provisions;

/// Why a thing is not here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// The set-up has not tried to fetch it.
    NotSetUp {
        /// What it is.
        what: String,
    },
    /// It could not be had when the lab was set up.
    NotHad {
        /// What it is.
        what: String,
        /// Why not.
        why: String,
    },
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::NotSetUp { what } => {
                write!(f, "{what} is missing: run `make setup setup-versions`")
            }
            Missing::NotHad { what, why } => write!(
                f,
                "{what} was not had when the lab was set up ({why}): `make setup setup-versions` tries again"
            ),
        }
    }
}

impl std::error::Error for Missing {}

/// A folder that the set-up made of a thing.
pub(crate) fn folder(thing: &str, label: &str) -> PathBuf {
    provisions().join(format!("{thing}-{label}"))
}

/// The exact version of a thing, as its package has it.
pub(crate) fn exact(thing: &str, label: &str) -> Result<String, Missing> {
    let all = recorded(&provisions().join("versions.tsv"));
    let what = format!("{thing} {label}");
    match all.get(&what) {
        None => Err(Missing::NotSetUp { what }),
        Some(Err(why)) => {
            let why = why.clone();
            Err(Missing::NotHad { what, why })
        }
        Some(Ok(version)) => Ok(version.clone()),
    }
}

/// Every thing that the lab was to have, with its exact version or why it has none.
pub fn all() -> BTreeMap<String, String> {
    let told = |version: Result<String, String>| match version {
        Ok(version) => version,
        Err(why) => format!("not had: {why}"),
    };
    recorded(&provisions().join("versions.tsv"))
        .into_iter()
        .map(|(what, version)| (what, told(version)))
        .collect()
}

fn recorded(file: &Path) -> BTreeMap<String, Result<String, String>> {
    // Without the file nothing has been set up.
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

/// A line of versions.tsv; lab/archive.sh tells what is in one.
fn parse(line: &str) -> Option<(String, Result<String, String>)> {
    let fields: Vec<&str> = line.splitn(5, '\t').collect();
    let [thing, spec, _package, version, suite] = fields[..] else {
        return None;
    };
    let version = match version {
        "not had" => Err(suite.to_owned()),
        _ => Ok(version.to_owned()),
    };
    Some((format!("{thing} {spec}"), version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_had_tells_why() {
        let had = parse("qemu\t10.0\tqemu-system-x86\t1:10.0.2+ds-2\tbookworm-backports");
        assert_eq!(had, Some(("qemu 10.0".into(), Ok("1:10.0.2+ds-2".into()))));
        let not_had = parse("libvirt\tnewest\t-\tnot had\tno libvirt-daemon is in sid");
        let why = Err("no libvirt-daemon is in sid".into());
        assert_eq!(not_had, Some(("libvirt newest".into(), why)));
        assert_eq!(parse("qemu"), None);
    }
}
