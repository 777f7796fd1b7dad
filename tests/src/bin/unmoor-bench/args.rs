//! The benchmark's command line.

use anyhow::{Context, Result, bail};
use unmoor_tests::bench::{ALL, Mode, Workload};

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    Measure,
    /// The relay's core alone.
    Core,
    /// The tables, from the figures of the last run.
    Render,
}

#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) task: Task,
    /// As it was typed.
    pub(crate) command: String,
    pub(crate) runs: u32,
    /// Runs again what did not converge.
    pub(crate) repeat_capped: bool,
    /// Goes on with the last run of the same matrix, which was broken off.
    pub(crate) resume: bool,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) modes: Vec<(&'static str, Mode)>,
}

impl Args {
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Self> {
        let words: Vec<String> = words.into_iter().collect();
        let mut args = Args {
            command: match words.iter().all(|word| word == "--resume") {
                true => "make bench".into(),
                false => format!("unmoor-bench {}", words.join(" ")),
            },
            task: Task::Measure,
            runs: 3,
            repeat_capped: false,
            resume: false,
            workloads: ALL.to_vec(),
            modes: Mode::ALL[..Mode::USUAL].to_vec(),
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value = || {
                words
                    .next()
                    .with_context(|| format!("{word} takes a value"))
            };
            match word.as_str() {
                "--core" => args.task = Task::Core,
                "--render" => args.task = Task::Render,
                "--repeat-capped" => args.repeat_capped = true,
                "--resume" => args.resume = true,
                "--runs" => args.runs = value()?.parse().context("--runs takes a number")?,
                "--only" => {
                    args.workloads = chosen(&value()?, &ALL, |one| one.name)?;
                }
                "--modes" => args.modes = chosen(&value()?, &Mode::ALL, |one| one.0)?,
                other => bail!(
                    "`{other}` is not known: use --core, --render, --runs N, --only W1,W2, --modes precopy,stop-copy, --repeat-capped or --resume"
                ),
            }
        }
        Ok(args)
    }

    /// Whether nothing is left out.
    pub(crate) fn is_whole(&self) -> bool {
        self.workloads.len() == ALL.len() && self.modes.len() >= Mode::USUAL
    }
}

fn chosen<T: Copy>(list: &str, all: &[T], name: impl Fn(&T) -> &'static str) -> Result<Vec<T>> {
    let names: Vec<&str> = all.iter().map(&name).collect();
    list.split(',')
        .map(|wanted| {
            let found = all.iter().find(|one| name(one) == wanted);
            found
                .copied()
                .with_context(|| format!("there is no `{wanted}`, only {}", names.join(", ")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args> {
        Args::parse(line.split_ascii_whitespace().map(str::to_owned))
    }

    #[test]
    fn all_by_default_and_parts_by_name() -> Result<()> {
        assert!(parse("")?.is_whole());
        let part = parse("--only W1,W4 --modes stop-copy --runs 1")?;
        assert!(!part.is_whole());
        assert_eq!(parse("--modes postcopy-preempt")?.modes.len(), 1);
        assert_eq!(
            (part.workloads.len(), part.modes.len(), part.runs),
            (2, 1, 1)
        );
        for wrong in ["--only W9", "--runs", "--runs few", "--modes", "fast"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        Ok(())
    }
}
