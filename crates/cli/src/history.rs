//! `unmoor history`: the migrations from this host that have ended.

use std::io::{self, Write};
use std::path::Path;

use serde_json::Value;

use crate::args::HistoryArgs;
use crate::exit::Exit;
use crate::report::{bytes, duration_ms, records, records_folder};

/// Runs the command.
pub(crate) fn run(args: &HistoryArgs) -> Exit {
    let told = records_folder().map_or(Ok(()), |folder| tell(&folder, args));
    match told {
        // Whoever reads has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Success,
        Err(error) => {
            eprintln!("unmoor: {error}");
            Exit::Failed
        }
        Ok(()) => Exit::Success,
    }
}

fn tell(folder: &Path, args: &HistoryArgs) -> io::Result<()> {
    let all = records(folder)?;
    let mut out = io::stdout().lock();
    for file in &all[all.len().saturating_sub(args.last)..] {
        let record: Value = match std::fs::read(file).map(|bytes| serde_json::from_slice(&bytes)) {
            Ok(Ok(record)) => record,
            Ok(Err(error)) => {
                eprintln!("unmoor: {}: {error}", file.display());
                continue;
            }
            // It was the oldest, and has just gone.
            Err(_) => continue,
        };
        match args.json {
            true => writeln!(out, "{record}")?,
            false => writeln!(out, "{}", line(&record))?,
        }
    }
    Ok(())
}

fn line(record: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let session = text(&record["session"]);
    let outcome = &record["outcome"];
    let how = match outcome["result"].as_str() {
        Some("moved") => {
            let ms = |name: &str| outcome[name].as_f64().map_or("-".into(), duration_ms);
            let wire = outcome["wire_bytes"].as_u64().map_or("-".into(), bytes);
            let pause = match outcome["longest_pause_ms"].as_f64() {
                Some(ms) => format!(", longest pause {}", duration_ms(ms)),
                None => String::new(),
            };
            format!(
                "moved in {}, downtime {}, {wire}{pause}",
                ms("total_ms"),
                ms("downtime_ms"),
            )
        }
        Some(_) => format!("not moved: {}", text(&outcome["error"])),
        None => "no outcome".into(),
    };
    format!(
        "{}  {}  to {}: {how}",
        text(&record["began"]),
        session.get(..8).unwrap_or("-"),
        text(&record["wanted"]["to"]),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_tells_how_it_ended() {
        let mut record = json!({
            "began": "2026-01-02T03:04:05Z",
            "session": "0123456789abcdef",
            "wanted": {"to": "b:7070"},
            "outcome": {
                "result": "moved", "total_ms": 6100.0, "downtime_ms": 19.4,
                "wire_bytes": 624_000_000, "longest_pause_ms": 4700.0,
            },
        });
        assert_eq!(
            line(&record),
            "2026-01-02T03:04:05Z  01234567  to b:7070: moved in 6.10 s, downtime 19 ms, 624 MB, \
             longest pause 4.70 s"
        );
        record["outcome"] = json!({"result": "not_moved", "error": "cancelled by a signal"});
        assert!(line(&record).ends_with("to b:7070: not moved: cancelled by a signal"));
        assert_eq!(line(&json!({})), "-  -  to -: no outcome");
    }
}
