//! Writes a small valid input for each target: without one a fuzzer hardly gets past the magic.
//!
//! `seeds FOLDER` makes `FOLDER/TARGET/seed`.

use std::fs;
use std::path::Path;

use qemu_stream::return_path::Message as Answer;
use qemu_stream::test_support::StreamBuilder;
use wire::{
    BatchWriter, Digest, Form, Message, Preamble, chunk_header, put_control, put_device, put_packed,
};

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    for (target, bytes) in [
        ("stream", stream()),
        ("return_path", return_path()),
        ("wire", connection()),
        ("stripes", chunks()),
        ("pack", pack::fuzz_entry::seed()),
        ("destination", migrate::fuzz_entry::seed()),
        ("source", connection()),
        ("monitor", monitor()),
        ("guest", guest_proto::fuzz_entry::seeds().concat()),
    ] {
        let folder = Path::new(&folder).join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("seed"), bytes)?;
    }
    Ok(())
}

fn stream() -> Vec<u8> {
    StreamBuilder::new("pc-q35-10.0")
        .ram_start(&[StreamBuilder::block("pc.ram", 1 << 16)])
        .device(9, "virtio-mem-device-early", &[1; 20])
        .part(|stream| {
            stream.page(0, 0, &[7; 4096]).zero(0, 4096);
        })
        .end(|stream| {
            stream.zero(0, 8192);
        })
        .device(4, "timer", &[0, 6, 0, 0, 0, 3])
        .finish()
}

fn return_path() -> Vec<u8> {
    let mut bytes = Vec::new();
    for answer in [
        Answer::Pong(1),
        Answer::RequestPages {
            block: Some(b"pc.ram"),
            start: 4096,
            length: 4096,
        },
        Answer::ReceivedBitmap {
            block: b"pc.ram",
            bitmap: &[0xff; 16],
        },
        Answer::SwitchoverAck,
        Answer::Shut(0),
    ] {
        answer.put(&mut bytes);
    }
    bytes
}

fn connection() -> Vec<u8> {
    let mut bytes = Vec::new();
    Preamble::OURS.put(&mut bytes);
    let mut batch = BatchWriter::new(4096);
    batch.page(0, 1, &[3; 4096], &mut bytes);
    batch.zero(0, 2, &mut bytes);
    batch.flush(&mut bytes);
    put_control(&Message::Ready(Digest { pages: 2, sum: 9 }), &mut bytes);
    put_device(&[1, 2, 3], &mut bytes);
    put_packed(1, Form::Recalled, 4096, &[1, 2, 3], &mut bytes);
    bytes
}

fn monitor() -> Vec<u8> {
    [
        r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}}}}"#,
        r#"{"event": "MIGRATION", "data": {"status": "active"}, "timestamp": {"seconds": 1, "microseconds": 2}}"#,
        r#"{"return": {"status": "active", "ram": {"remaining": 7, "page-size": 4096}}, "id": 3}"#,
        r#"{"error": {"class": "GenericError", "desc": "no"}, "id": 4}"#,
        "",
    ]
    .join("\r\n")
    .into_bytes()
}

fn chunks() -> Vec<u8> {
    let chunk = |at: u64| [&chunk_header(at, 4)[..], b"data"].concat();
    [chunk(4), chunk(0), chunk(12), chunk(8)].concat()
}
