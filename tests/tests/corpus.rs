//! Every input that fuzzing has found worth keeping, once more.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

type Entry = fn(&[u8]);

const TARGETS: [(&str, Entry); 9] = [
    ("stream", qemu_stream::fuzz_entry::stream),
    ("return_path", qemu_stream::fuzz_entry::return_path),
    ("wire", wire::fuzz_entry::decode),
    ("stripes", wire::fuzz_entry::assemble),
    ("pack", pack::fuzz_entry::unpack),
    ("guest", |data| {
        guest_proto::fuzz_entry::answers(data);
        guest_proto::fuzz_entry::requests(data);
    }),
    ("destination", migrate::fuzz_entry::destination),
    ("source", migrate::fuzz_entry::source),
    ("monitor", hypervisor::fuzz_entry::monitor),
];

fn inputs(archive: &Path) -> Result<Vec<Vec<u8>>> {
    let folder = tempfile::tempdir()?;
    let status = Command::new("tar")
        .args(["-xzf"])
        .arg(archive)
        .arg("-C")
        .arg(folder.path())
        .status()?;
    ensure!(status.success(), "tar: {status}");
    let entries = fs::read_dir(folder.path())?;
    entries.map(|entry| Ok(fs::read(entry?.path())?)).collect()
}

#[test]
fn what_fuzzing_has_found_does_no_harm() -> Result<()> {
    for (name, entry) in TARGETS {
        let archive = lab::root().join(format!("fuzz/corpus/{name}.tar.gz"));
        let inputs = inputs(&archive).with_context(|| name.to_owned())?;
        ensure!(inputs.len() > 10, "{name}: {} inputs", inputs.len());
        for input in &inputs {
            entry(input);
        }
    }
    Ok(())
}
