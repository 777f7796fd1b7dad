//! Where QEMU keeps the guest's memory in its own.

use crate::memory_map::hexadecimal;
use crate::{Error, RamPiece, Vm};

/// One of QEMU's RAM blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRam {
    /// Name of the block, as the stream has it.
    pub block: String,
    /// Bytes of it that are in use.
    pub length: u64,
    /// Bytes of a page that this host gives it; 4096 unless it is made of huge pages.
    pub page_size: u64,
    /// Where it begins in QEMU's address space; absent where QEMU does not tell.
    pub address: Option<u64>,
}

impl Vm {
    /// QEMU's RAM blocks. QEMU tells of them to people only (`info ramblock`), from 8.0 on with
    /// their addresses; before, the address of what a processor can see is asked for.
    pub fn host_ram(&mut self) -> Result<Vec<HostRam>, Error> {
        let mut blocks = parse(&self.ask_for_people("info ramblock")?);
        if blocks.iter().any(|block| block.address.is_none()) {
            let pieces = self.memory_map()?;
            for block in blocks.iter_mut().filter(|block| block.address.is_none()) {
                if let Some(piece) = pieces.iter().find(|piece| is_of(piece, &block.block)) {
                    let command = format!("gpa2hva {:#x}", piece.address);
                    let there = host_address(&self.ask_for_people(&command)?);
                    block.address = there.and_then(|at| at.checked_sub(piece.offset));
                }
            }
        }
        Ok(blocks)
    }
}

/// Blocks of devices have the device's path before the name of the memory region.
fn is_of(piece: &RamPiece, block: &str) -> bool {
    let rest = block.strip_suffix(piece.block.as_str());
    rest.is_some_and(|before| before.is_empty() || before.ends_with('/'))
}

/// `Block Name  PSize  Offset  Used  Total  [HVA  RO]`, of which the page size is two words.
fn parse(text: &str) -> Vec<HostRam> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, size, unit, _, used, _, rest @ ..] = words.as_slice() else {
            return None;
        };
        let number = |word: &str| hexadecimal(word.strip_prefix("0x")?);
        let shift = match *unit {
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            _ => 0,
        };
        Some(HostRam {
            block: (*name).to_owned(),
            length: number(used)?,
            page_size: size.parse::<u64>().ok()? << shift,
            address: rest.first().and_then(|word| number(word)),
        })
    };
    text.lines().filter_map(line).collect()
}

/// `Host virtual address for 0x100000000 (pc.ram) is 0x7f1234567000`
fn host_address(text: &str) -> Option<u64> {
    let (_, address) = text.trim().rsplit_once(" is 0x")?;
    hexadecimal(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram(block: &str, length: u64, address: Option<u64>) -> HostRam {
        HostRam {
            block: block.to_owned(),
            length,
            page_size: 4096,
            address,
        }
    }

    #[test]
    fn blocks_with_their_addresses() {
        let text = "\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                  pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000 0x00007fd2a7e00000  rw
    /rom@etc/acpi/tables    4 KiB  0x0000000010080000 0x0000000000020000 0x0000000000200000 0x00007fd2a5200000  ro
";
        assert_eq!(
            parse(text),
            [
                ram("pc.ram", 0x1000_0000, Some(0x7fd2_a7e0_0000)),
                ram("/rom@etc/acpi/tables", 0x2_0000, Some(0x7fd2_a520_0000)),
            ]
        );
    }

    #[test]
    fn blocks_of_huge_pages() {
        let text = "mem    2 MiB  0x0000000000000000 0x0000000010000000 0x0000000010000000 0x00007fd2a7e00000  rw";
        assert_eq!(parse(text)[0].page_size, 2 << 20);
    }

    #[test]
    fn blocks_of_an_older_qemu() {
        let text = "\
              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000
";
        assert_eq!(parse(text), [ram("pc.ram", 0x1000_0000, None)]);
        assert!(parse("unknown command: 'info ramblock'").is_empty());
    }

    #[test]
    fn the_address_of_a_guest_page() {
        let text = "Host virtual address for 0x100000000 (pc.ram) is 0x7f1234567000\r\n";
        assert_eq!(host_address(text), Some(0x7f12_3456_7000));
        assert_eq!(host_address("No memory is mapped at address 0x1"), None);
    }

    #[test]
    fn a_region_names_its_block() {
        let piece = |block: &str| RamPiece {
            address: 0,
            length: 0,
            block: block.to_owned(),
            offset: 0,
        };
        assert!(is_of(&piece("vga.vram"), "0000:00:02.0/vga.vram"));
        assert!(is_of(&piece("pc.ram"), "pc.ram"));
        assert!(!is_of(&piece("c.ram"), "pc.ram"));
    }
}
