//! Whole streams: every record, every error, any chunking.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "small test data, and a panic is how a test fails"
)]

use proptest::prelude::*;
use qemu_stream::test_support::{StreamBuilder, parse_in_steps};
use qemu_stream::{BlockId, Emitter, Event, ParseError, Parser, RamBlock, fuzz_entry};

const PAGE: usize = 4096;

fn blocks() -> Vec<RamBlock> {
    vec![
        StreamBuilder::block("pc.ram", 64 << 12),
        StreamBuilder::block("pc.bios", 4 << 12),
    ]
}

fn small() -> StreamBuilder {
    let mut builder = StreamBuilder::new("pc-q35-10.0");
    builder.ram_start(&blocks());
    builder
}

fn error_of(bytes: &[u8]) -> ParseError {
    parse_in_steps(bytes, 100, |_, _| {}).1.unwrap_err()
}

/// The debug forms of all events, to compare and to search.
fn events_of(bytes: &[u8]) -> Vec<String> {
    let mut events = Vec::new();
    let (_, result) = parse_in_steps(bytes, bytes.len(), |event, _| {
        events.push(match event {
            Event::Page {
                block,
                offset,
                data,
                continued,
            } => {
                format!("page {} {offset:x} {continued} {}", block.0, data[0])
            }
            other => format!("{other:?}"),
        });
    });
    result.unwrap();
    events
}

#[test]
fn a_whole_stream() {
    let bytes = small()
        .part(|s| {
            s.page(0, 0, &[7; PAGE])
                .zero(0, 0x1000)
                .page(1, 0x3000, &[8; PAGE]);
        })
        .part(|_| {})
        .event(&Event::Command {
            id: 11,
            payload: &[],
        })
        .end(|s| {
            s.page(1, 0, &[9; PAGE]);
        })
        .device(4, "timer", &[1, 2, 3])
        .finish();
    let events = events_of(&bytes);
    assert_eq!(
        &events[..6],
        [
            "FileHeader",
            "Configuration { machine: \"pc-q35-10.0\" }",
            "RamStart { section_id: 2, instance_id: 0, version_id: 4 }",
            "RamBlocks",
            "RamEos { section_id: 2 }",
            "RamPart { section_id: 2 }",
        ]
    );
    assert_eq!(
        &events[6..16],
        [
            "page 0 0 false 7",
            "Zero { block: BlockId(0), offset: 4096, continued: true, fill: 0 }",
            "page 1 3000 false 8",
            "RamEos { section_id: 2 }",
            "RamPart { section_id: 2 }",
            "RamEos { section_id: 2 }",
            "Command { id: 11, payload: [] }",
            "RamEnd { section_id: 2 }",
            "page 1 0 true 9",
            "RamEos { section_id: 2 }",
        ]
    );
    assert!(events[16].starts_with("Device(["));
    assert!(events.last().unwrap().starts_with("End { vmdesc: Some"));
    fuzz_entry::stream(&bytes);
}

#[test]
fn the_name_that_a_record_leaves_out_persists_across_sections() {
    let bytes = small()
        .part(|s| {
            s.page(1, 0, &[1; PAGE]);
        })
        .part(|s| {
            s.page(1, 0x1000, &[2; PAGE]);
        })
        .take();
    let mut seen = Vec::new();
    let (_, result) = parse_in_steps(&bytes, 1, |event, _| {
        if let Event::Page {
            block, continued, ..
        } = event
        {
            seen.push((*block, *continued));
        }
    });
    // The stream breaks off after the part.
    assert!(matches!(result, Err(ParseError::Truncated { .. })));
    assert_eq!(seen, [(BlockId(1), false), (BlockId(1), true)]);
}

#[test]
fn configuration_subsections() {
    let mut capabilities = 1u32.to_be_bytes().to_vec();
    capabilities.push(15);
    capabilities.extend_from_slice(b"x-ignore-shared");
    let mut block = StreamBuilder::block("mem", 0x40000);
    block.region_addr = Some(0x1_0000_0000);
    let mut builder = StreamBuilder::new("virt-10.0");
    let bytes = builder
        .event(&Event::TargetPageBits(16))
        .event(&Event::Capabilities(&capabilities))
        .event(&Event::Uuid([3; 16]))
        .ram_start(&[block])
        .part(|s| {
            s.page(0, 0x30000, &[5; 65536]);
        })
        .take();
    let mut blocks = Vec::new();
    let mut page = 0;
    let (used, _) = parse_in_steps(&bytes, 7, |event, parser| {
        blocks = parser.blocks().to_vec();
        if let Event::Page { data, .. } = event {
            page = data.len();
        }
    });
    assert_eq!(used, bytes.len());
    assert_eq!(blocks[0].region_addr, Some(0x1_0000_0000));
    assert_eq!(page, 65536);
    fuzz_entry::stream(&bytes);
}

#[test]
fn a_huge_page_size_in_the_block_list_is_told_from_the_next_record() {
    let mut huge = StreamBuilder::block("mem", 4 << 20);
    huge.page_size = Some(2 << 20);
    let list = [
        StreamBuilder::block("first", 0x1000),
        huge,
        StreamBuilder::block("last", 0x2000),
    ];
    let bytes = StreamBuilder::new("pc-q35-7.2").ram_start(&list).take();
    let mut seen = Vec::new();
    let (used, _) = parse_in_steps(&bytes, 1, |_, parser| seen = parser.blocks().to_vec());
    assert_eq!(used, bytes.len());
    assert_eq!(seen, list);
}

#[test]
fn xbzrle_and_flush_records_round_trip() {
    let bytes = small()
        .part(|s| {
            s.event(&Event::Xbzrle {
                block: BlockId(0),
                offset: 0x2000,
                continued: false,
                delta: &[1, 2, 3],
            })
            .event(&Event::MultifdFlush);
        })
        .end(|_| {})
        .finish();
    assert!(events_of(&bytes).iter().any(|e| e.starts_with("Xbzrle")));
    fuzz_entry::stream(&bytes);
}

#[test]
fn a_device_section_before_the_first_page() {
    let mut body = vec![0x7e, 0, 0, 0, 9, 0xff, 0x7e];
    body.extend([0; 40]);
    let bytes = StreamBuilder::new("pc-q35-8.1")
        .ram_start(&blocks())
        .device(9, "0000:00:01.0/virtio-mem-device-early", &body)
        .part(|s| {
            s.zero(0, 0);
        })
        .end(|_| {})
        .finish();
    for step in [1, 5, 6, 1000] {
        let mut early = Vec::new();
        let mut pages = 0;
        let (_, result) = parse_in_steps(&bytes, step, |event, _| match event {
            Event::EarlyFull { raw, .. } => early.extend_from_slice(raw),
            Event::Zero { .. } => pages += 1,
            _ => {}
        });
        result.unwrap();
        assert!(early.ends_with(&[0x7e, 0, 0, 0, 9]));
        assert_eq!((early.len(), pages), (14 + 36 + body.len() + 5, 1));
    }
    fuzz_entry::stream(&bytes);
}

#[test]
fn a_suppressed_description_ends_with_the_stream() {
    for end in [&[0][..], &Emitter::END_WITHOUT_DESCRIPTION] {
        let bytes = small()
            .end(|_| {})
            .device(5, "rtc", &[0, 6, 0, 0])
            .raw(end)
            .take();
        let mut parser = Parser::new();
        let mut at = 0;
        while let Some((used, event)) = parser.next(&bytes[at..]).unwrap() {
            assert!(!matches!(event, Event::End { .. }));
            at += used;
        }
        assert_eq!(&bytes[at..], end);
        assert!(matches!(
            parser.finish(&bytes[at..]),
            Ok(Some(Event::End { .. }))
        ));
        assert_eq!(parser.finish(&[]), Ok(None));
    }
}

#[test]
fn what_only_looks_like_a_description_is_device_state() {
    let mut body = Vec::new();
    // Of a plausible length, but not a description of devices.
    body.extend([0, 6, 0, 0, 0, 9]);
    body.extend_from_slice(b"{\"a\": 12}");
    // Not text.
    body.extend([0, 6, 0, 0, 0, 4, b'{', 0xff, 0xfe, b'}']);
    // Far too long.
    body.extend([0, 6, 0xff, 0, 0, 0, b'{']);
    // Nested beginnings.
    body.extend([0, 0, 6, 0, 6, 0, 0, 0, 0, 0]);
    let bytes = small().end(|_| {}).device(5, "rtc", &body).finish();
    for step in [1, 2, 7, 4096] {
        let mut device = Vec::new();
        let mut description = Vec::new();
        let (_, result) = parse_in_steps(&bytes, step, |event, _| match event {
            Event::Device(raw) => device.extend_from_slice(raw),
            Event::End { vmdesc } => description.extend_from_slice(vmdesc.unwrap()),
            _ => {}
        });
        result.unwrap();
        assert!(device.windows(body.len()).any(|window| window == body));
        assert!(description.ends_with(b"\"devices\": []}"));
    }
}

#[test]
fn a_stream_that_goes_on_after_its_end_is_refused() {
    let mut bytes = small().end(|_| {}).finish();
    let length = bytes.len() as u64;
    bytes.push(0);
    assert_eq!(
        error_of(&bytes),
        ParseError::TrailingData { offset: length }
    );
}

#[test]
fn a_broken_off_stream_says_where() {
    let bytes = small()
        .part(|s| {
            s.page(0, 0, &[7; PAGE]);
        })
        .end(|_| {})
        .device(4, "timer", &[1, 2, 3])
        .finish();
    let device_at = bytes
        .windows(5)
        .position(|window| window == b"timer")
        .unwrap()
        - 6;
    for cut in 0..bytes.len() {
        if cut > device_at && bytes[cut - 1] == 0 {
            // Cut after a zero byte of the device part, it ends like a stream whose machine
            // suppresses the description: only QEMU's own word tells the two apart.
            continue;
        }
        let error = error_of(&bytes[..cut]);
        assert!(
            matches!(error, ParseError::Truncated { offset, .. } if offset == cut as u64),
            "cut at {cut}: {error:?}"
        );
    }
}

#[test]
fn foreign_beginnings_are_told_apart() {
    assert_eq!(error_of(b"GET / HTTP/1.1"), ParseError::NotAStream);
    assert_eq!(error_of(&[0x16, 3, 1, 2, 0]), ParseError::Tls);
    assert_eq!(error_of(&[0x11, 0x22, 0x33, 0x44]), ParseError::Multifd);
    assert_eq!(error_of(b"QEVM\0\0\0\x02"), ParseError::Version(2));
}

/// Errors name what to switch off.
#[test]
fn unsupported_features_name_their_capability() {
    let record = |word: u64| {
        small()
            .part(|s| {
                s.raw(&word.to_be_bytes());
            })
            .take()
    };
    let command = |id| small().event(&Event::Command { id, payload: &[] }).take();
    let start = |name: &str| {
        let mut section = vec![1, 0, 0, 0, 3, name.len() as u8];
        section.extend_from_slice(name.as_bytes());
        section.extend([0; 8]);
        small().raw(&section).take()
    };
    let mapped = {
        let mut list = 1u32.to_be_bytes().to_vec();
        list.push(10);
        list.extend_from_slice(b"mapped-ram");
        StreamBuilder::new("pc")
            .event(&Event::Capabilities(&list))
            .take()
    };
    for (bytes, names) in [
        (record(0x100), "`compress`"),
        (record(0x80), "RDMA"),
        (command(3), "`postcopy-ram`"),
        (command(7), "`postcopy-ram`"),
        (command(8), "`x-colo`"),
        (start("dirty-bitmap"), "`dirty-bitmaps`"),
        (start("block"), "`block`"),
        (start("0000:00:02.0/vfio"), "unplug"),
        (start("slirp"), "slirp"),
        (mapped, "`mapped-ram`"),
        (b"QEVM\0\0\0\x03\x01".to_vec(), "before 2.4"),
    ] {
        let error = error_of(&bytes);
        assert!(matches!(error, ParseError::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains(names), "{error}");
    }
}

#[test]
fn corrupt_streams_are_refused() {
    let page_beyond_the_block = small()
        .part(|s| {
            s.page(1, 4 << 12, &[0; PAGE]);
        })
        .take();
    let unknown_block = small()
        .part(|s| {
            s.raw(&8u64.to_be_bytes()).raw(b"\x03foo").raw(&[0; PAGE]);
        })
        .take();
    let no_block = small()
        .part(|s| {
            s.raw(&0x28u64.to_be_bytes()).raw(&[0; PAGE]);
        })
        .take();
    let second_list = small()
        .part(|s| {
            s.raw(&0x1004u64.to_be_bytes());
        })
        .take();
    let other_footer = small()
        .event(&Event::RamPart { section_id: 2 })
        .event(&Event::RamEos { section_id: 3 })
        .take();
    let other_section = small().event(&Event::RamPart { section_id: 7 }).take();
    let early_end = small().raw(&[0]).take();
    let unknown_section = small().raw(&[0x55]).take();
    let unknown_command = small()
        .event(&Event::Command {
            id: 99,
            payload: &[],
        })
        .take();
    let same_name_twice = StreamBuilder::new("pc")
        .ram_start(&[
            StreamBuilder::block("a", 4096),
            StreamBuilder::block("a", 4096),
        ])
        .take();
    let sum_too_small = {
        let mut bytes = StreamBuilder::new("pc")
            .event(&Event::RamStart {
                section_id: 2,
                instance_id: 0,
                version_id: 4,
            })
            .take();
        bytes.extend(0x1004u64.to_be_bytes());
        bytes.extend(b"\x01a");
        bytes.extend(0x2000u64.to_be_bytes());
        bytes.extend([0; 8]);
        bytes
    };
    let continued_list = {
        // Found by fuzzing: only page records may leave a name out.
        let mut bytes = StreamBuilder::new("pc").ram_start(&blocks()).take();
        let word = 0x44004u64.to_be_bytes();
        let at = bytes.windows(8).position(|eight| eight == word).unwrap();
        bytes[at + 7] |= 0x20;
        bytes
    };
    for bytes in [
        continued_list,
        page_beyond_the_block,
        unknown_block,
        no_block,
        second_list,
        other_footer,
        other_section,
        early_end,
        unknown_section,
        unknown_command,
        same_name_twice,
        sum_too_small,
    ] {
        let error = error_of(&bytes);
        assert!(matches!(error, ParseError::Corrupt { .. }), "{error:?}");
    }
}

/// One step of a random stream.
#[derive(Debug, Clone)]
enum Put {
    Page(u16, u64, u8),
    Zero(u16, u64),
    Delta(u64, Vec<u8>),
    NewPart,
    Flush,
}

fn put() -> impl Strategy<Value = Put> {
    prop_oneof![
        4 => (0u16..2, 0u64..4, any::<u8>()).prop_map(|(b, i, f)| Put::Page(b, i << 12, f)),
        3 => (0u16..2, 0u64..4).prop_map(|(b, i)| Put::Zero(b, i << 12)),
        1 => (0u64..4, prop::collection::vec(any::<u8>(), 0..50)).prop_map(|(i, d)| Put::Delta(i << 12, d)),
        1 => Just(Put::NewPart),
        1 => Just(Put::Flush),
    ]
}

/// Device bytes that are full of what begins a description.
fn device() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(vec![0, 6]),
        Just(vec![0, 6, 0, 0, 0, 3, b'{']),
        Just(vec![0, 6, 0, 0, 0, 0]),
        Just(vec![0]),
        Just(b"{\"devices\"}".to_vec()),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
}

fn random_stream() -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(put(), 0..25), device()).prop_map(|(puts, device)| {
        let mut stream = small();
        let section_id = 2;
        stream.event(&Event::RamPart { section_id });
        for put in puts {
            match put {
                Put::Page(block, offset, fill) => stream.page(block, offset, &[fill; PAGE]),
                Put::Zero(block, offset) => stream.zero(block, offset),
                Put::Delta(offset, delta) => stream.event(&Event::Xbzrle {
                    block: BlockId(0),
                    offset,
                    continued: false,
                    delta: &delta,
                }),
                Put::NewPart => stream
                    .event(&Event::RamEos { section_id })
                    .event(&Event::RamPart { section_id }),
                Put::Flush => stream.event(&Event::MultifdFlush),
            };
        }
        stream.event(&Event::RamEos { section_id });
        stream.end(|_| {});
        stream.device(7, "dev", &device);
        stream.finish()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Chunked in any way, a stream parses alike; emitted again, it has the same bytes.
    #[test]
    fn chunking_and_emitting(bytes in random_stream()) {
        fuzz_entry::stream(&bytes);
    }

    /// Damaged anywhere, a stream gives an error or other events, never a panic.
    #[test]
    fn damage(
        bytes in random_stream(),
        at in any::<prop::sample::Index>(),
        with in any::<[u8; 3]>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = bytes;
        let at = at.index(bytes.len());
        for (byte, with) in bytes[at..].iter_mut().zip(with) {
            *byte = with;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        fuzz_entry::stream(&bytes);
    }

    #[test]
    fn garbage(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        fuzz_entry::stream(&bytes);
        fuzz_entry::return_path(&bytes);
        let mut bytes = bytes;
        let head = StreamBuilder::new("pc").ram_start(&blocks()).take();
        bytes.splice(..0, head);
        fuzz_entry::stream(&bytes);
    }

    #[test]
    fn return_path_garbage(
        messages in prop::collection::vec((0u8..9, prop::collection::vec(any::<u8>(), 0..20)), 0..10)
    ) {
        let mut bytes = Vec::new();
        for (kind, payload) in messages {
            bytes.extend([0, kind, 0, payload.len() as u8]);
            bytes.extend(payload);
        }
        fuzz_entry::return_path(&bytes);
    }
}
