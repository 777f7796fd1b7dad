//! Streams made to measure, for tests, simulations and fuzzers of this and other crates.

use crate::{BlockId, Emitter, Event, ParseError, Parser, RamBlock};

/// Builds a valid stream step by step.
#[derive(Debug)]
pub struct StreamBuilder {
    emitter: Emitter,
    bytes: Vec<u8>,
    section_id: u32,
}

impl StreamBuilder {
    /// A stream with header and configuration.
    pub fn new(machine: &str) -> Self {
        let mut builder = StreamBuilder {
            emitter: Emitter::new(),
            bytes: Vec::new(),
            section_id: 2,
        };
        builder.event(&Event::FileHeader);
        builder.event(&Event::Configuration { machine });
        builder
    }

    /// A plain RAM block.
    pub fn block(name: &str, used_length: u64) -> RamBlock {
        RamBlock::plain(name, used_length)
    }

    /// Any event.
    pub fn event(&mut self, event: &Event<'_>) -> &mut Self {
        self.emitter.emit(event, &mut self.bytes);
        self
    }

    /// Raw bytes.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// The START of the memory.
    pub fn ram_start(&mut self, blocks: &[RamBlock]) -> &mut Self {
        self.emitter
            .ram_start(self.section_id, 0, 4, blocks, &mut self.bytes);
        self
    }

    /// A PART with what `fill` puts into it.
    pub fn part(&mut self, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let section_id = self.section_id;
        self.event(&Event::RamPart { section_id });
        fill(self);
        self.event(&Event::RamEos { section_id })
    }

    /// The END of the memory with what `fill` puts into it.
    pub fn end(&mut self, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let section_id = self.section_id;
        self.event(&Event::RamEnd { section_id });
        fill(self);
        self.event(&Event::RamEos { section_id })
    }

    /// A page, within a PART or the END.
    pub fn page(&mut self, block: u16, offset: u64, data: &[u8]) -> &mut Self {
        self.emitter
            .page(BlockId(block), offset, data, &mut self.bytes);
        self
    }

    /// A page of zeros, within a PART or the END.
    pub fn zero(&mut self, block: u16, offset: u64) -> &mut Self {
        self.emitter.zero(BlockId(block), offset, &mut self.bytes);
        self
    }

    /// A device section with the given body, as QEMU writes it.
    pub fn device(&mut self, section_id: u32, name: &str, body: &[u8]) -> &mut Self {
        let mut section = vec![4];
        section.extend(section_id.to_be_bytes());
        section.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        section.extend_from_slice(name.as_bytes());
        section.extend([0, 0, 0, 0, 0, 0, 0, 1]);
        section.extend_from_slice(body);
        section.push(0x7e);
        section.extend(section_id.to_be_bytes());
        self.raw(&section)
    }

    /// The end with a description such as QEMU writes.
    pub fn finish(&mut self) -> Vec<u8> {
        let vmdesc = br#"{"configuration": {}, "page_size": 4096, "devices": []}"#;
        self.event(&Event::End {
            vmdesc: Some(vmdesc),
        });
        self.take()
    }

    /// What has been written so far.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

/// Parses `data`, offering `step` more bytes whenever the parser asks, and hands every event with
/// the parser to `each`. Yields the number of bytes consumed, and checks that the parser never
/// asks for more than it promises.
pub fn parse_in_steps(
    data: &[u8],
    step: usize,
    mut each: impl FnMut(&Event<'_>, &Parser),
) -> (usize, Result<(), ParseError>) {
    let mut parser = Parser::new();
    let (mut from, mut to) = (0, 0);
    let mut closed = false;
    loop {
        match parser.next(&data[from..to]) {
            Ok(Some((used, event))) => {
                assert!(
                    used <= to - from && (used > 0 || matches!(event, Event::End { .. })),
                    "an event that takes {used} of {} bytes",
                    to - from
                );
                each(&event, &parser);
                from += used;
            }
            Ok(None) if to < data.len() => {
                assert!(to - from <= crate::MAX_LOOKAHEAD);
                to = (to + step.max(1)).min(data.len());
            }
            Ok(None) if !closed => {
                parser.close();
                closed = true;
            }
            Ok(None) => {
                return match parser.finish(&data[from..]) {
                    Ok(Some(end)) => {
                        each(&end, &parser);
                        (data.len(), Ok(()))
                    }
                    Ok(None) => (from, Ok(())),
                    Err(error) => (from, Err(error)),
                };
            }
            Err(error) => return (from, Err(error)),
        }
    }
}
