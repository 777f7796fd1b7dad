//! Every test that docs/guarantees.md names exists.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

/// All Rust sources below a folder, in one text.
fn sources(folder: &Path, text: &mut String) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, text)?;
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            *text += &fs::read_to_string(path)?;
        }
    }
    Ok(())
}

#[test]
fn each_promise_is_held_by_a_test() -> Result<()> {
    let promises = fs::read_to_string(lab::root().join("docs/guarantees.md"))?;
    let mut text = String::new();
    for folder in ["crates", "tests", "lab"] {
        sources(&lab::root().join(folder), &mut text)?;
    }
    let words = promises.split('`').skip(1).step_by(2);
    let names: Vec<&str> = words
        .filter(|word| word.contains('_') && !word.contains(['.', '/', ' ']))
        .collect();
    ensure!(names.len() > 20, "{names:?}");
    for name in names {
        let is_test = text.split(&format!("fn {name}()")).skip(1).count() == 1;
        ensure!(is_test, "docs/guarantees.md names {name}, which is no test");
    }
    Ok(())
}
