//! Runs the fault matrix, or a part of it, and writes what it came to to `target/results/faults.json`
//! and, once all of it was run, to `docs/fault-matrix.md`.
//!
//! ```text
//! unmoor-faults [--part K/N] [--resume] [--tell] [WORD...]   cells whose names have all of the words
//! unmoor-faults --render                            only the tables
//! ```
//!
//! Names are `protocol.fault.moment`. `--part` runs every Nth cell, for several at a time; `--tell`
//! prints what both halves said.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use lab::{results, root};
use serde::{Deserialize, Serialize};
use unmoor_tests::matrix::{Cell, Fault, Moment, Outcome, Place, Protocol};

/// Where the tables go.
const DOCUMENT: &str = "docs/fault-matrix.md";
/// What they stand between.
const MARKS: [&str; 2] = ["<!-- matrix -->\n", "<!-- end -->\n"];

/// What became of a cell.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    cell: Cell,
    outcome: Option<Outcome>,
    failure: Option<String>,
}

#[derive(Debug, Default)]
struct Args {
    part: Option<(usize, usize)>,
    resume: bool,
    render: bool,
    tell: bool,
    words: Vec<String>,
}

impl Args {
    fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let mut args = Args::default();
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--resume" => args.resume = true,
                "--render" => args.render = true,
                "--tell" => args.tell = true,
                "--part" => {
                    let part = words.next().context("--part K/N")?;
                    let (one, of) = part.split_once('/').context("--part K/N")?;
                    args.part = Some((one.parse()?, of.parse()?));
                }
                _ if word.starts_with('-') => bail!("{word} is not known"),
                _ => args.words.push(word),
            }
        }
        Ok(args)
    }
}

fn folder() -> PathBuf {
    results::folder().join("faults.d")
}

fn main() -> Result<ExitCode> {
    let args = Args::parse(std::env::args().skip(1))?;
    if args.render {
        render()?;
        return Ok(ExitCode::SUCCESS);
    }
    fs::create_dir_all(folder())?;
    let cells: Vec<Cell> = Cell::all().filter(|cell| cell.is_possible()).collect();
    let (one, of) = args.part.unwrap_or((1, 1));
    let mut failed = 0;
    for (number, cell) in cells.iter().enumerate() {
        let name = cell.name();
        let wanted = number % of == one - 1 && args.words.iter().all(|word| name.contains(word));
        if !wanted || (args.resume && is_well(&name)) {
            continue;
        }
        let result = cell.run();
        match &result {
            Ok(outcome) => {
                let place = place(outcome);
                let code = outcome.exit.map_or("-".to_owned(), |code| code.to_string());
                println!("{name}: {place}, exit {code}, {:.1} s", outcome.seconds);
                if args.tell {
                    println!("{}", outcome.told);
                }
            }
            Err(error) => {
                failed += 1;
                println!("{name}: FAILED: {error:#}");
            }
        }
        let record = Record {
            cell: *cell,
            failure: result.as_ref().err().map(|error| format!("{error:#}")),
            outcome: result.ok(),
        };
        let file = folder().join(format!("{name}.json"));
        fs::write(file, serde_json::to_vec_pretty(&record)?)?;
    }
    results::gather("faults")?;
    if failed > 0 {
        eprintln!("{failed} cells failed");
        return Ok(ExitCode::FAILURE);
    }
    if cells.iter().all(|cell| is_well(&cell.name())) {
        render()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn record(name: &str) -> Option<Record> {
    let bytes = fs::read(folder().join(format!("{name}.json"))).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn is_well(name: &str) -> bool {
    record(name).is_some_and(|record| record.outcome.is_some())
}

/// In a word.
fn place(outcome: &Outcome) -> String {
    let place = match outcome.place {
        Place::Source => "stays",
        Place::Destination => "moves",
        Place::Nowhere => "gone",
    };
    match outcome.resolved {
        true => format!("{place}, resolved"),
        false => place.to_owned(),
    }
}

/// Writes the tables into the document.
fn render() -> Result<()> {
    let path = root().join(DOCUMENT);
    let text = fs::read_to_string(&path)?;
    let [begin, end] = MARKS;
    let (before, rest) = text.split_once(begin).context("no place for the tables")?;
    let (_, after) = rest.split_once(end).context("no end of the tables")?;
    let tables: String = Protocol::ALL.into_iter().map(table).collect();
    fs::write(path, format!("{before}{begin}{tables}{end}{after}"))?;
    Ok(())
}

fn table(protocol: Protocol) -> String {
    let cell = |fault, moment| Cell {
        fault,
        moment,
        protocol,
    };
    let possible = |moment| {
        Fault::ALL
            .into_iter()
            .any(|fault| cell(fault, moment).is_possible())
    };
    let moments: Vec<Moment> = Moment::ALL
        .into_iter()
        .filter(|one| possible(*one))
        .collect();
    let heads: Vec<&str> = moments.iter().map(|moment| moment.name()).collect();
    let mut text = format!("\n### {}\n\n| | {} |\n", protocol.name(), heads.join(" | "));
    text += &format!("|---|{}\n", "---|".repeat(moments.len()));
    for fault in Fault::ALL {
        let row: Vec<String> = moments
            .iter()
            .map(|moment| entry(cell(fault, *moment)))
            .collect();
        text += &format!("| {} | {} |\n", fault.name(), row.join(" | "));
    }
    text + "\n"
}

fn entry(cell: Cell) -> String {
    if !cell.is_possible() {
        return String::new();
    }
    match record(&cell.name()) {
        None => "not run".to_owned(),
        Some(record) => match record.outcome {
            Some(outcome) => place(&outcome),
            None => "**failed**".to_owned(),
        },
    }
}
