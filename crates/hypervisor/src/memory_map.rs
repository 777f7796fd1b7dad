//! Where the guest's page frames are in QEMU's RAM blocks.

use crate::{Error, Vm};

/// Guest memory that lies in one piece of a RAM block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamPiece {
    /// Guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub length: u64,
    /// Name of the memory region, which is that of the RAM block for the guest's main memory.
    pub block: String,
    /// Where in the block, in bytes.
    pub offset: u64,
}

impl Vm {
    /// The guest's memory, as its processors see it. QEMU tells it to people only (`info mtree`):
    /// what cannot be read is left out.
    pub fn memory_map(&mut self) -> Result<Vec<RamPiece>, Error> {
        Ok(pieces(&self.ask_for_people("info mtree -f")?))
    }
}

/// The pieces of the flat view that belongs to the address space `memory`.
fn pieces(text: &str) -> Vec<RamPiece> {
    let views = text.split("FlatView").skip(1);
    let of_memory = |view: &&str| {
        view.lines()
            .any(|line| line.trim_start().starts_with("AS \"memory\""))
    };
    let lines = views.filter(of_memory).take(1).flat_map(str::lines);
    lines.filter_map(piece).collect()
}

/// `0000000100000000-000000017fffffff (prio 0, ram): pc.ram @0000000080000000`
fn piece(line: &str) -> Option<RamPiece> {
    let (range, rest) = line.trim().split_once(" (prio ")?;
    let (first, last) = range.split_once('-')?;
    let (kind, name) = rest.split_once("): ")?;
    let kind = kind.split_once(", ")?.1;
    if !matches!(kind, "ram" | "rom") {
        return None;
    }
    // QEMU adds remarks such as ` KVM` behind the offset.
    let (block, offset) = match name.split_once(" @") {
        Some((block, rest)) => (block, hexadecimal(rest.split(' ').next()?)?),
        None => (name.strip_suffix(" KVM").unwrap_or(name), 0),
    };
    let (address, last) = (hexadecimal(first)?, hexadecimal(last)?);
    Some(RamPiece {
        address,
        length: last.checked_sub(address)?.checked_add(1)?,
        block: block.to_owned(),
        offset,
    })
}

pub(crate) fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
FlatView #0
 AS \"I/O\", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan

FlatView #1
 AS \"memory\", root: system
 AS \"cpu-memory-0\", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000c0fff (prio 0, rom): pc.ram @00000000000c0000 KVM
  0000000000100000-000000007fffffff (prio 0, ram): pc.ram @0000000000100000
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  0000000100000000-000000017fffffff (prio 0, ram): pc.ram @0000000080000000

FlatView #2
 AS \"cpu-smm-0\", root: mem-container-smram
 Root memory region: mem-container-smram
  0000000000000000-00000000000bffff (prio 0, ram): pc.ram
";

    #[test]
    fn the_memory_of_the_processors() {
        let piece = |address, length, block: &str, offset| RamPiece {
            address,
            length,
            block: block.to_owned(),
            offset,
        };
        assert_eq!(
            pieces(TEXT),
            [
                piece(0, 0xa0000, "pc.ram", 0),
                piece(0xc0000, 0x1000, "pc.ram", 0xc0000),
                piece(0x10_0000, 0x7ff0_0000, "pc.ram", 0x10_0000),
                piece(0xfffc_0000, 0x4_0000, "pc.bios", 0),
                piece(0x1_0000_0000, 0x8000_0000, "pc.ram", 0x8000_0000),
            ]
        );
    }

    #[test]
    fn what_is_no_map_is_none() {
        assert!(pieces("unknown command: 'info mtree -f'").is_empty());
        assert!(piece("  00-ff (prio 0, ram) pc.ram").is_none());
        assert!(piece("  ff-00 (prio 0, ram): pc.ram").is_none());
    }
}
