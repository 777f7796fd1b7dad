//! The records of the `ram` section: the hot path.

use super::{Parser, Section, State, Step};
use crate::event::raw;
use crate::reader::Reader;
use crate::{BlockId, Event, ParseError, RamBlock};

/// The most RAM blocks that a stream may name. QEMU has a handful.
const BLOCKS_MAX: usize = 4096;
/// The largest host page, in bytes: tells a page size from a record in the block list.
const HOST_PAGE_MAX: u64 = 1 << 40;

/// The part of a block list that has been read, and is still at the front of the input.
#[derive(Debug, Default)]
pub(super) struct List {
    blocks: Vec<RamBlock>,
    /// Sum of their lengths in bytes.
    total: u64,
    /// Bytes that their entries take.
    read: usize,
}

impl Parser {
    #[inline]
    pub(super) fn record<'a>(&mut self, section: Section, input: &'a [u8]) -> Step<'a> {
        let mut reader = Reader::new(input);
        let Some(word) = reader.be64() else {
            return Ok(None);
        };
        let flags = word & self.flag_mask;
        let offset = word & !self.flag_mask;
        let continued = flags & raw::FLAG_CONTINUE != 0;
        let kind = flags & !raw::FLAG_CONTINUE;
        if kind != raw::FLAG_PAGE && kind != raw::FLAG_ZERO {
            return self.rare_record(section, word, input);
        }
        let Some(block) = self.block(continued, &mut reader)? else {
            return Ok(None);
        };
        let event = if kind == raw::FLAG_PAGE {
            let Some(data) = reader.bytes(self.page_size) else {
                return Ok(None);
            };
            Event::Page {
                block,
                offset,
                continued,
                data,
            }
        } else {
            let Some(fill) = reader.u8() else {
                return Ok(None);
            };
            Event::Zero {
                block,
                offset,
                continued,
                fill,
            }
        };
        self.check_page(block, offset)?;
        self.last_block = Some(block);
        Ok(Some((reader.used(), event)))
    }

    fn rare_record<'a>(&mut self, section: Section, word: u64, input: &'a [u8]) -> Step<'a> {
        let mut reader = Reader::new(input);
        let _ = reader.be64();
        let flags = word & self.flag_mask;
        let offset = word & !self.flag_mask;
        let continued = flags & raw::FLAG_CONTINUE != 0;
        match flags & !raw::FLAG_CONTINUE {
            raw::FLAG_XBZRLE => {
                let Some(block) = self.block(continued, &mut reader)? else {
                    return Ok(None);
                };
                let (Some(encoding), Some(length)) = (reader.u8(), reader.be16()) else {
                    return Ok(None);
                };
                if encoding != 1 || usize::from(length) > self.page_size {
                    return Err(self.corrupt("a malformed XBZRLE record"));
                }
                let Some(delta) = reader.bytes(length.into()) else {
                    return Ok(None);
                };
                self.check_page(block, offset)?;
                self.last_block = Some(block);
                let event = Event::Xbzrle {
                    block,
                    offset,
                    continued,
                    delta,
                };
                Ok(Some((reader.used(), event)))
            }
            raw::FLAG_EOS if word == raw::FLAG_EOS => self.end_of_section(section, &mut reader),
            raw::FLAG_MEM_SIZE
                if !continued && section == Section::Start && self.blocks.is_empty() =>
            {
                self.block_list(offset, &mut reader)
            }
            raw::FLAG_MULTIFD_FLUSH if word == raw::FLAG_MULTIFD_FLUSH => {
                Ok(Some((reader.used(), Event::MultifdFlush)))
            }
            raw::FLAG_COMPRESS => {
                Err(self.unsupported("compressed pages", "switch the capability `compress` off"))
            }
            raw::FLAG_HOOK => Err(self.unsupported("RDMA", "migrate over a socket")),
            _ => Err(self.corrupt(format!("a memory record {word:#x}"))),
        }
    }

    #[inline]
    fn block(
        &self,
        continued: bool,
        reader: &mut Reader<'_>,
    ) -> Result<Option<BlockId>, ParseError> {
        if continued {
            return match self.last_block {
                Some(block) => Ok(Some(block)),
                None => Err(self.corrupt("a page of no block")),
            };
        }
        let Some(name) = reader.str8() else {
            return Ok(None);
        };
        self.block_named(name).map(Some)
    }

    fn block_named(&self, name: &[u8]) -> Result<BlockId, ParseError> {
        self.blocks
            .iter()
            .position(|block| block.name.as_bytes() == name)
            .and_then(|position| u16::try_from(position).ok())
            .map(BlockId)
            .ok_or_else(|| {
                self.corrupt(format!(
                    "a page of the unknown RAM block {}",
                    String::from_utf8_lossy(name)
                ))
            })
    }

    #[inline]
    fn check_page(&self, block: BlockId, offset: u64) -> Result<(), ParseError> {
        let block = &self.blocks[usize::from(block.0)];
        // Offsets are page aligned by construction, block lengths need not be.
        if offset < block.used_length {
            Ok(())
        } else {
            Err(self.corrupt(format!(
                "a page at {offset:#x} of the RAM block {}, which is {:#x} bytes long",
                block.name, block.used_length
            )))
        }
    }

    fn end_of_section<'a>(&mut self, section: Section, reader: &mut Reader<'a>) -> Step<'a> {
        let Some(kind) = reader.u8() else {
            return Ok(None);
        };
        if kind != raw::FOOTER {
            return Err(self.unsupported(
                "sections without footers",
                "machine types before 2.4 are not supported",
            ));
        }
        let Some(section_id) = reader.be32() else {
            return Ok(None);
        };
        if Some(section_id) != self.ram_section {
            return Err(self.corrupt(format!(
                "a footer of section {section_id} after the memory's"
            )));
        }
        if section == Section::Start && self.blocks.is_empty() {
            return Err(self.corrupt("memory without a list of RAM blocks"));
        }
        self.state = match section {
            Section::Start | Section::Part => State::Sections,
            Section::End => State::AfterRam,
        };
        Ok(Some((reader.used(), Event::RamEos { section_id })))
    }

    /// A list is long, and its bytes may trickle in: entries that have been read are kept.
    fn block_list<'a>(&mut self, announced: u64, reader: &mut Reader<'a>) -> Step<'a> {
        let from = reader.used();
        reader.skip(self.list.read);
        while self.list.total < announced {
            let Some(block) = self.list_entry(reader)? else {
                return Ok(None);
            };
            self.list.total = self
                .list
                .total
                .checked_add(block.used_length)
                .filter(|total| *total <= announced && block.used_length > 0)
                .ok_or_else(|| {
                    self.corrupt(format!(
                        "a RAM block {} of {:#x} bytes",
                        block.name, block.used_length
                    ))
                })?;
            self.list.blocks.push(block);
            self.list.read = reader.used() - from;
        }
        if self.list.blocks.is_empty() {
            return Err(self.corrupt("an empty list of RAM blocks"));
        }
        self.blocks = std::mem::take(&mut self.list).blocks;
        Ok(Some((reader.used(), Event::RamBlocks)))
    }

    fn list_entry(&self, reader: &mut Reader<'_>) -> Result<Option<RamBlock>, ParseError> {
        let (Some(name), Some(used_length)) = (reader.str8(), reader.be64()) else {
            return Ok(None);
        };
        let (mut page_size, mut region_addr) = (None, None);
        if self.ignore_shared {
            // Excludes post-copy, and with it the page size.
            region_addr = reader.be64();
            if region_addr.is_none() {
                return Ok(None);
            }
        } else {
            // A name's length, or a record's flags, would make it something else.
            let Some(next) = reader.peek_be64() else {
                return Ok(None);
            };
            if next.is_power_of_two() && (4096..HOST_PAGE_MAX).contains(&next) {
                page_size = reader.be64();
            }
        }
        let name = match std::str::from_utf8(name) {
            Ok(name) if !name.is_empty() => name.to_owned(),
            _ => return Err(self.corrupt("a RAM block without a readable name")),
        };
        let blocks = &self.list.blocks;
        if blocks.len() == BLOCKS_MAX || blocks.iter().any(|block| block.name == name) {
            return Err(self.corrupt(format!("a second or superfluous RAM block {name}")));
        }
        Ok(Some(RamBlock {
            name,
            used_length,
            page_size,
            region_addr,
        }))
    }
}
