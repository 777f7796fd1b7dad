//! What is refused, where, and what the error tells to do about it.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "small test data, and a panic is how a test fails"
)]

use qemu_stream::test_support::{StreamBuilder, parse_in_steps};
use qemu_stream::{BlockId, Emitter, Event, ParseError, RamBlock};

fn blocks() -> Vec<RamBlock> {
    vec![StreamBuilder::block("pc.ram", 64 << 12)]
}

fn started() -> StreamBuilder {
    let mut builder = StreamBuilder::new("pc-q35-10.0");
    builder.ram_start(&blocks());
    builder
}

/// A configuration subsection.
fn subsection(name: &str, version: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![5, name.len() as u8];
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend(version.to_be_bytes());
    bytes.extend_from_slice(body);
    StreamBuilder::new("pc").raw(&bytes).take()
}

/// The START of the memory with the given words and bytes after its header.
fn ram_list(total: u64, list: &[u8]) -> Vec<u8> {
    StreamBuilder::new("pc")
        .event(&Event::RamStart {
            section_id: 2,
            instance_id: 0,
            version_id: 4,
        })
        .raw(&(total | 4).to_be_bytes())
        .raw(list)
        .raw(&0x10u64.to_be_bytes())
        .take()
}

fn entry(name: &str, length: u64) -> Vec<u8> {
    let mut bytes = vec![name.len() as u8];
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// Each error says what is wrong; where it is does not depend on how the bytes arrive.
fn refused(cases: Vec<(&str, Vec<u8>, &str)>) -> Vec<ParseError> {
    let mut errors = Vec::new();
    for (case, bytes, says) in cases {
        let error = parse_in_steps(&bytes, bytes.len(), |_, _| {})
            .1
            .unwrap_err();
        assert!(
            !matches!(error, ParseError::Truncated { .. }),
            "{case}: {error}"
        );
        assert!(error.to_string().contains(says), "{case}: {error}");
        for step in [1, 2, 5] {
            let stepped = parse_in_steps(&bytes, step, |_, _| {}).1;
            assert_eq!(stepped, Err(error.clone()), "{case}, pieces of {step}");
        }
        errors.push(error);
    }
    errors
}

#[test]
fn configurations() {
    let page_bits =
        |bits: u32| subsection("configuration/target-page-bits", 1, &bits.to_be_bytes());
    let machine = |length: u32, name: &[u8]| {
        let mut bytes = b"QEVM\0\0\0\x03\x07".to_vec();
        bytes.extend(length.to_be_bytes());
        bytes.extend_from_slice(name);
        bytes
    };
    refused(vec![
        ("small pages", page_bits(9), "2^9 bytes"),
        ("large pages", page_bits(17), "2^17 bytes"),
        (
            "unknown subsection",
            subsection("configuration/new", 1, &[]),
            "configuration/new",
        ),
        (
            "version of a subsection",
            subsection("configuration/uuid", 2, &[0; 16]),
            "version 2",
        ),
        (
            "many capabilities",
            subsection("configuration/capabilities", 1, &[0, 0, 1, 0]),
            "256 capabilities",
        ),
        ("no machine", machine(0, b""), "0 bytes"),
        ("long machine", machine(1 << 20, b""), "1048576 bytes"),
        ("machine not text", machine(2, &[0xff, 0xfe]), "not text"),
    ]);
}

#[test]
fn block_lists() {
    let many: Vec<u8> = (0..=4096)
        .flat_map(|i| entry(&i.to_string(), 4096))
        .collect();
    refused(vec![
        ("none", ram_list(0, &[]), "empty list"),
        ("no name", ram_list(4096, &entry("", 4096)), "readable name"),
        (
            "name not text",
            ram_list(4096, &[1, 0xff, 0, 0, 0, 0, 0, 0, 0x10, 0]),
            "readable name",
        ),
        ("no length", ram_list(4096, &entry("a", 0)), "a of 0x0"),
        (
            "lengths beyond the sum",
            ram_list(4096, &entry("a", 8192)),
            "a of 0x2000",
        ),
        (
            "lengths beyond 64 bits",
            ram_list(
                u64::MAX << 12,
                &[entry("a", u64::MAX << 13), entry("b", u64::MAX << 12)].concat(),
            ),
            "a RAM block b",
        ),
        ("too many", ram_list(4097 << 12, &many), "RAM block 4096"),
        (
            "no list at all",
            StreamBuilder::new("pc")
                .event(&Event::RamStart {
                    section_id: 2,
                    instance_id: 0,
                    version_id: 4,
                })
                .event(&Event::RamEos { section_id: 2 })
                .take(),
            "without a list",
        ),
    ]);
}

#[test]
fn records() {
    let in_a_part = |bytes: &[u8]| {
        started()
            .part(|s| {
                s.raw(bytes);
            })
            .take()
    };
    let delta = |encoding: u8, length: u16| {
        let mut bytes = 0x40u64.to_be_bytes().to_vec();
        bytes.extend_from_slice(b"\x06pc.ram");
        bytes.push(encoding);
        bytes.extend(length.to_be_bytes());
        bytes.resize(bytes.len() + 8192, 0);
        in_a_part(&bytes)
    };
    let word = |word: u64| in_a_part(&word.to_be_bytes());
    let mut no_footer = started().event(&Event::RamPart { section_id: 2 }).take();
    no_footer.extend(0x10u64.to_be_bytes());
    no_footer.push(2);
    refused(vec![
        ("unknown encoding", delta(2, 8), "malformed XBZRLE"),
        ("long difference", delta(1, 4097), "malformed XBZRLE"),
        ("obsolete flag", word(0x001), "memory record 0x1"),
        ("no flag", word(0x1000), "memory record 0x1000"),
        ("two kinds", word(0x00a), "memory record 0xa"),
        ("end with an offset", word(0x1010), "memory record 0x1010"),
        ("no footer", no_footer, "before 2.4"),
    ]);
}

#[test]
fn sections() {
    let start_again = started()
        .event(&Event::RamStart {
            section_id: 2,
            instance_id: 0,
            version_id: 4,
        })
        .take();
    let other_version = StreamBuilder::new("pc")
        .event(&Event::RamStart {
            section_id: 2,
            instance_id: 0,
            version_id: 3,
        })
        .take();
    let part_first = StreamBuilder::new("pc")
        .event(&Event::RamPart { section_id: 2 })
        .take();
    let errors = refused(vec![
        ("second START", start_again, "second start"),
        ("memory version", other_version, "version 3"),
        ("PART before START", part_first, "section 2"),
        (
            "device between PARTs",
            started().part(|_| {}).device(9, "odd", &[1]).take(),
            "the section odd",
        ),
        (
            "vfio before the pages",
            started().device(9, "0000:00:02.0/vfio", &[]).take(),
            "unplug",
        ),
        (
            "another END",
            started().end(|_| {}).raw(&[3, 0, 0, 0, 9]).take(),
            "`dirty-bitmaps`",
        ),
        (
            "PART after the end",
            started().end(|_| {}).raw(&[2]).take(),
            "after the memory",
        ),
    ]);
    assert!(matches!(&errors[3], ParseError::Unsupported { .. }));
}

/// Every command of post-copy and COLO is refused by the capability that sends it.
#[test]
fn commands() {
    let command = |id| started().event(&Event::Command { id, payload: &[] }).take();
    for id in [3, 4, 5, 6, 7, 9, 10] {
        refused(vec![("post-copy", command(id), "`postcopy-ram`")]);
    }
    refused(vec![
        ("COLO", command(8), "`x-colo`"),
        ("none", command(0), "unknown command 0"),
        ("unknown", command(12), "unknown command 12"),
    ]);
}

#[test]
fn errors_tell_the_offset_of_the_event() {
    let good = started().take().len() as u64;
    let bytes = started().raw(&[0x55]).take();
    let error = parse_in_steps(&bytes, 9, |_, _| {}).1.unwrap_err();
    assert!(matches!(error, ParseError::Corrupt { offset, .. } if offset == good));
}

/// A relay may leave records out: the block of those that stay must not change.
#[test]
fn a_left_out_name_is_put_back_where_the_record_before_was_of_another_block() {
    let list = [
        StreamBuilder::block("a", 1 << 16),
        StreamBuilder::block("b", 1 << 16),
    ];
    let mut emitter = Emitter::new();
    emitter.set_blocks(&list);
    let zero = |block, continued| Event::Zero {
        block: BlockId(block),
        offset: 0,
        continued,
        fill: 0,
    };
    let mut out = Vec::new();
    emitter.emit(&zero(0, false), &mut out);
    out.clear();
    emitter.emit(&zero(1, true), &mut out);
    assert_eq!(out, [0, 0, 0, 0, 0, 0, 0, 2, 1, b'b', 0]);
    out.clear();
    emitter.emit(&zero(1, true), &mut out);
    assert_eq!(out, [0, 0, 0, 0, 0, 0, 0, 0x22, 0]);
}
