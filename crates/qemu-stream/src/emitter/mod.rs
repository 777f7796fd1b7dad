//! Writing a stream.

mod postcopy;

use crate::event::{command, raw};
use crate::{BlockId, Event, RamBlock};

/// Writes events as bytes.
///
/// [`emit`](Emitter::emit) reproduces exactly what a [`Parser`](crate::Parser) read;
/// [`page`](Emitter::page) and the like write a stream of one's own.
#[derive(Debug)]
pub struct Emitter {
    names: Vec<String>,
    /// The block list as it goes on the wire.
    block_list: Vec<u8>,
    last_block: Option<BlockId>,
}

impl Default for Emitter {
    fn default() -> Self {
        Self::new()
    }
}

impl Emitter {
    /// The end of a stream whose description is left out: the EOF byte and a VMDESCRIPTION of no
    /// length. QEMU reads the description to its end before it starts the VM, and needs none of
    /// it; it must not be missing, though: QEMU would start the VM and report a failure.
    pub const END_WITHOUT_DESCRIPTION: [u8; 6] = [raw::EOF, raw::VMDESCRIPTION, 0, 0, 0, 0];

    /// An emitter at the start of a stream.
    pub fn new() -> Self {
        Emitter {
            names: Vec::new(),
            block_list: Vec::new(),
            last_block: None,
        }
    }

    /// Makes the RAM blocks known, before [`Event::RamBlocks`] is emitted.
    ///
    /// # Panics
    /// If a name is longer than 255 bytes: check lists that come from a peer. A parser's are
    /// never.
    pub fn set_blocks(&mut self, blocks: &[RamBlock]) {
        self.names = blocks.iter().map(|block| block.name.clone()).collect();
        self.block_list.clear();
        let total: u64 = blocks
            .iter()
            .map(|block| block.used_length)
            .fold(0, u64::wrapping_add);
        put64(total | raw::FLAG_MEM_SIZE, &mut self.block_list);
        for block in blocks {
            put_str8(block.name.as_bytes(), &mut self.block_list);
            put64(block.used_length, &mut self.block_list);
            for field in [block.page_size, block.region_addr].into_iter().flatten() {
                put64(field, &mut self.block_list);
            }
        }
    }

    /// The block of this name.
    pub fn block(&self, name: &[u8]) -> Option<BlockId> {
        let at = self.names.iter().position(|one| one.as_bytes() == name)?;
        u16::try_from(at).ok().map(BlockId)
    }

    /// Appends one event. A page record leaves the block's name out if the event says so, unless
    /// the last record was of another block: events may be left out or put in between.
    ///
    /// # Panics
    /// If a text, payload or difference is too long for its length field; from a parser none is.
    pub fn emit(&mut self, event: &Event<'_>, out: &mut Vec<u8>) {
        match *event {
            Event::FileHeader => {
                put32(raw::MAGIC, out);
                put32(raw::VERSION, out);
            }
            Event::Configuration { machine } => {
                out.push(raw::CONFIGURATION);
                put_length32(machine.len(), out);
                out.extend_from_slice(machine.as_bytes());
            }
            Event::TargetPageBits(bits) => {
                put_subsection("configuration/target-page-bits", out);
                put32(bits, out);
            }
            Event::Capabilities(list) => {
                put_subsection("configuration/capabilities", out);
                out.extend_from_slice(list);
            }
            Event::Uuid(uuid) => {
                put_subsection("configuration/uuid", out);
                out.extend_from_slice(&uuid);
            }
            Event::Command { id, payload } => self.command(id, payload, out),
            Event::RamStart {
                section_id,
                instance_id,
                version_id,
            } => {
                out.push(raw::START);
                put32(section_id, out);
                put_str8(b"ram", out);
                put32(instance_id, out);
                put32(version_id, out);
            }
            Event::RamBlocks => out.extend_from_slice(&self.block_list),
            Event::RamPart { section_id } => self.begin_part(section_id, out),
            Event::RamEnd { section_id } => {
                out.push(raw::END);
                put32(section_id, out);
            }
            Event::Page {
                block,
                offset,
                continued,
                data,
            } => {
                self.record(raw::FLAG_PAGE, block, offset, continued, out);
                out.extend_from_slice(data);
            }
            Event::Zero {
                block,
                offset,
                continued,
                fill,
            } => {
                self.record(raw::FLAG_ZERO, block, offset, continued, out);
                out.push(fill);
            }
            Event::Xbzrle {
                block,
                offset,
                continued,
                delta,
            } => {
                self.record(raw::FLAG_XBZRLE, block, offset, continued, out);
                out.push(1);
                put_length16(delta.len(), out);
                out.extend_from_slice(delta);
            }
            Event::MultifdFlush => put64(raw::FLAG_MULTIFD_FLUSH, out),
            Event::RamEos { section_id } => self.end_section(section_id, out),
            Event::EarlyFull { raw, .. } | Event::Device(raw) => out.extend_from_slice(raw),
            Event::End { vmdesc } => {
                out.push(raw::EOF);
                if let Some(text) = vmdesc {
                    out.push(raw::VMDESCRIPTION);
                    put_length32(text.len(), out);
                    out.extend_from_slice(text);
                }
            }
        }
    }

    /// Appends a whole START of the `ram` section with the given blocks, which later records
    /// refer to.
    ///
    /// # Panics
    /// As [`set_blocks`](Emitter::set_blocks).
    pub fn ram_start(
        &mut self,
        section_id: u32,
        instance_id: u32,
        version_id: u32,
        blocks: &[RamBlock],
        out: &mut Vec<u8>,
    ) {
        self.set_blocks(blocks);
        let start = Event::RamStart {
            section_id,
            instance_id,
            version_id,
        };
        self.emit(&start, out);
        self.emit(&Event::RamBlocks, out);
        self.end_section(section_id, out);
    }

    /// Begins a PART of the `ram` section; [`end_section`](Emitter::end_section) ends it.
    pub fn begin_part(&mut self, section_id: u32, out: &mut Vec<u8>) {
        out.push(raw::PART);
        put32(section_id, out);
    }

    /// Ends a START, PART or END of the `ram` section.
    pub fn end_section(&mut self, section_id: u32, out: &mut Vec<u8>) {
        put64(raw::FLAG_EOS, out);
        out.push(raw::FOOTER);
        put32(section_id, out);
    }

    /// Appends a page, leaving the block's name out where it may.
    #[inline]
    pub fn page(&mut self, block: BlockId, offset: u64, data: &[u8], out: &mut Vec<u8>) {
        self.record(raw::FLAG_PAGE, block, offset, true, out);
        out.extend_from_slice(data);
    }

    /// Appends a page of zeros, leaving the block's name out where it may.
    #[inline]
    pub fn zero(&mut self, block: BlockId, offset: u64, out: &mut Vec<u8>) {
        self.record(raw::FLAG_ZERO, block, offset, true, out);
        out.push(0);
    }

    /// Appends a command.
    ///
    /// # Panics
    /// If the payload is longer than 65,535 bytes.
    pub fn command(&mut self, id: u16, payload: &[u8], out: &mut Vec<u8>) {
        out.push(raw::COMMAND);
        out.extend_from_slice(&id.to_be_bytes());
        put_length16(payload.len(), out);
        out.extend_from_slice(payload);
    }

    /// Appends the command that makes a destination QEMU open its return path.
    pub fn open_return_path(&mut self, out: &mut Vec<u8>) {
        self.command(command::OPEN_RETURN_PATH, &[], out);
    }

    /// Appends the command that makes a destination QEMU answer with `value` once it has loaded
    /// everything before it.
    pub fn ping(&mut self, value: u32, out: &mut Vec<u8>) {
        self.command(command::PING, &value.to_be_bytes(), out);
    }

    #[inline]
    fn record(
        &mut self,
        kind: u64,
        block: BlockId,
        offset: u64,
        may_continue: bool,
        out: &mut Vec<u8>,
    ) {
        if may_continue && self.last_block == Some(block) {
            put64(offset | kind | raw::FLAG_CONTINUE, out);
        } else {
            put64(offset | kind, out);
            // A block that was never announced has no name; QEMU refuses the record.
            let name = self.names.get(usize::from(block.0));
            put_str8(name.map_or(b"", |name| name.as_bytes()), out);
            self.last_block = Some(block);
        }
    }
}

fn put_subsection(name: &str, out: &mut Vec<u8>) {
    out.push(raw::SUBSECTION);
    put_str8(name.as_bytes(), out);
    put32(1, out);
}

#[inline]
fn put64(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put32(value: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// # Panics
/// If the length does not fit its field: events come from a parser or from bounded lists.
fn put_length32(length: usize, out: &mut Vec<u8>) {
    put32(u32::try_from(length).expect("a length of 32 bits"), out);
}

fn put_length16(length: usize, out: &mut Vec<u8>) {
    let length = u16::try_from(length).expect("a length of 16 bits");
    out.extend_from_slice(&length.to_be_bytes());
}

fn put_str8(text: &[u8], out: &mut Vec<u8>) {
    out.push(u8::try_from(text.len()).expect("a name of 8 bits"));
    out.extend_from_slice(text);
}
