//! Post-copy, played to a destination QEMU: the source QEMU knows nothing of it.
//!
//! ```text
//! ADVISE        before the RAM blocks
//! RAM_DISCARD   every page that is to follow, whether or not anything was sent for it
//! PACKAGED      LISTEN, devices, PING, RUN: the destination loads it in one piece and runs
//! PART …        every page that was discarded, exactly once
//! END, EOF      without a description
//! ```

use std::ops::Range;

use super::{Emitter, put_length32, put_str8, put32, put64};
use crate::event::{command, raw};
use crate::{BlockId, Event};

/// Ranges in one command. QEMU itself puts twelve, and takes as many as fit.
const RANGES_MAX: usize = 2000;

impl Emitter {
    /// Appends the command that announces post-copy for memory of pages of this size on both
    /// hosts. It discards what the destination has in its memory, ROMs included.
    pub fn postcopy_advise(&mut self, page_size: u64, out: &mut Vec<u8>) {
        let mut payload = Vec::with_capacity(16);
        put64(page_size, &mut payload);
        put64(page_size, &mut payload);
        self.command(command::POSTCOPY_ADVISE, &payload, out);
    }

    /// Appends the commands that take these ranges of a block, in bytes, from the destination.
    pub fn postcopy_discard(
        &mut self,
        block: BlockId,
        ranges: impl IntoIterator<Item = Range<u64>>,
        out: &mut Vec<u8>,
    ) {
        let name = self.names.get(usize::from(block.0));
        let mut head = vec![0];
        put_str8(name.map_or(b"", |name| name.as_bytes()), &mut head);
        head.push(0);
        let mut payload = head.clone();
        for range in ranges {
            put64(range.start, &mut payload);
            put64(range.end - range.start, &mut payload);
            if payload.len() >= head.len() + RANGES_MAX * 16 {
                self.command(command::POSTCOPY_RAM_DISCARD, &payload, out);
                payload.truncate(head.len());
            }
        }
        if payload.len() > head.len() {
            self.command(command::POSTCOPY_RAM_DISCARD, &payload, out);
        }
    }

    /// Appends what makes the destination load the devices, answer with `value`, and run. Pages
    /// that follow name their blocks again.
    ///
    /// # Panics
    /// If the devices take 4 GiB or more.
    pub fn postcopy_run(&mut self, devices: &[u8], value: u32, out: &mut Vec<u8>) {
        let mut package = Vec::with_capacity(devices.len() + 32);
        self.command(command::POSTCOPY_LISTEN, &[], &mut package);
        package.extend_from_slice(devices);
        self.ping(value, &mut package);
        self.command(command::POSTCOPY_RUN, &[], &mut package);
        let mut length = Vec::with_capacity(4);
        put_length32(package.len(), &mut length);
        self.command(command::PACKAGED, &length, out);
        out.extend_from_slice(&package);
        self.last_block = None;
    }

    /// Appends the beginning of another stream, after one has broken off: the destination is to say
    /// what it has of each block, and to go on.
    pub fn postcopy_recover(&mut self, out: &mut Vec<u8>) {
        for name in self.names.clone() {
            let mut payload = Vec::with_capacity(name.len() + 1);
            put_str8(name.as_bytes(), &mut payload);
            self.command(command::RECV_BITMAP, &payload, out);
        }
        self.command(command::POSTCOPY_RESUME, &[], out);
        self.last_block = None;
    }

    /// Appends the end of the memory and of the stream.
    pub fn postcopy_end(&mut self, section_id: u32, out: &mut Vec<u8>) {
        out.push(raw::END);
        put32(section_id, out);
        self.end_section(section_id, out);
        self.emit(&Event::End { vmdesc: None }, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RamBlock;

    fn emitter() -> Emitter {
        let mut emitter = Emitter::new();
        emitter.set_blocks(&[RamBlock::plain("ram", 0x10_0000)]);
        emitter
    }

    #[test]
    fn advise_names_both_page_sizes() {
        let mut out = Vec::new();
        emitter().postcopy_advise(4096, &mut out);
        let size = 4096u64.to_be_bytes();
        assert_eq!(out, [&[8, 0, 3, 0, 16][..], &size, &size].concat());
    }

    #[test]
    fn many_ranges_take_several_commands() {
        let mut out = Vec::new();
        let ranges = (0..2001u64).map(|page| 2 * page * 4096..(2 * page + 1) * 4096);
        emitter().postcopy_discard(BlockId(0), ranges, &mut out);
        let head = [0, 3, b'r', b'a', b'm', 0];
        let (first, second) = (head.len() + 32_000, head.len() + 16);
        assert_eq!(out.len(), 5 + first + 5 + second);
        assert_eq!(out[..3], [8, 0, 6]);
        assert_eq!(usize::from(out[3]) << 8 | usize::from(out[4]), first);
        assert_eq!(out[5..11], head);
        assert_eq!(out[5 + first..5 + first + 5], [8, 0, 6, 0, 22]);
        let mut none = Vec::new();
        emitter().postcopy_discard(BlockId(0), [], &mut none);
        assert!(none.is_empty());
    }

    #[test]
    fn the_package_is_as_long_as_it_says() {
        let mut emitter = emitter();
        let mut out = Vec::new();
        emitter.page(BlockId(0), 0, &[1; 8], &mut out);
        out.clear();
        emitter.postcopy_run(b"devices", 7, &mut out);
        let package = [
            &[8, 0, 4, 0, 0][..],
            b"devices",
            &[8, 0, 2, 0, 4, 0, 0, 0, 7],
            &[8, 0, 5, 0, 0],
        ]
        .concat();
        let length = u8::try_from(package.len()).unwrap();
        assert_eq!(
            out,
            [&[8, 0, 7, 0, 4, 0, 0, 0, length][..], &package].concat()
        );
        // The block is named again.
        out.clear();
        emitter.page(BlockId(0), 4096, &[1; 8], &mut out);
        assert_eq!(out[8..12], [3, b'r', b'a', b'm']);
        out.clear();
        emitter.postcopy_recover(&mut out);
        let ask = [8, 0, 10, 0, 4, 3, b'r', b'a', b'm'];
        assert_eq!(out, [&ask[..], &[8, 0, 9, 0, 0]].concat());
        out.clear();
        emitter.postcopy_end(2, &mut out);
        assert_eq!(out.len(), 5 + 13 + 1);
        assert_eq!(out.last(), Some(&0));
    }
}
