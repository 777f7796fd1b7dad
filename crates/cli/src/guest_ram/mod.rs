//! The VM's memory, read from outside the QEMU that runs it: what is held need not be copied, and a
//! VM that stands can be audited.
//!
//! That it is the right memory is not taken for granted: pages that QEMU sends are compared with what
//! is read in their places, and only then is it believed.

mod block;

use std::collections::HashMap;

use hypervisor::Vm;
use migrate::GuestMemory;
use qemu_stream::{BlockId, Event, RamBlock};

pub(crate) use block::Block;

/// Pages that are compared before the memory is believed.
const SAMPLES: u32 = 64;
/// So many of them have to be equal: a guest that runs may have written some meanwhile.
const EQUAL: u32 = 48;

/// QEMU's RAM blocks, as they can be read.
#[derive(Debug)]
pub(crate) struct GuestRam {
    blocks: Vec<Block>,
    /// Whether there are others, which were not found.
    misses: bool,
    /// By the numbers of the stream; nothing where QEMU does not tell where the block is.
    numbers: Vec<Option<usize>>,
    compared: u32,
    equal: u32,
    /// Kept for its memory.
    page: Vec<u8>,
}

/// Whether the memory that is read is the VM's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Unknown,
    Same,
    /// It is not, and why that is known.
    Other(String),
}

impl GuestRam {
    /// Finds out where the guest's memory is, and whether it can be read.
    pub(crate) fn open(vm: &mut Vm, pid: Option<u32>) -> Result<Self, String> {
        let pid = pid
            .or_else(|| vm.process_id())
            .ok_or("QEMU's process is not known: name it with --qemu-pid")?;
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(|error| {
            format!(
                "/proc/{pid}/maps cannot be read ({error}): this needs QEMU's own user, or root, on the same host"
            )
        })?;
        let ram = vm.host_ram().map_err(|error| error.to_string())?;
        let found = ram.iter().filter_map(|ram| Block::find(pid, &maps, ram));
        let blocks: Vec<Block> = found.collect();
        if blocks.is_empty() {
            return Err(format!(
                "none of QEMU's RAM blocks was found in process {pid}: is that this QEMU? --qemu-pid names another"
            ));
        }
        for block in &blocks {
            block.read(0, &mut [0]).map_err(|error| {
                format!(
                    "memory of process {pid} cannot be read ({error}): this needs the right to trace it"
                )
            })?;
        }
        Ok(GuestRam {
            misses: blocks.len() < ram.len(),
            blocks,
            numbers: Vec::new(),
            compared: 0,
            equal: 0,
            page: Vec::new(),
        })
    }

    /// Whether that is still to be found out.
    pub(crate) fn is_unknown(&self) -> bool {
        self.compared < SAMPLES
    }

    /// QEMU has sent something: is that what is read in its place?
    pub(crate) fn watch(&mut self, event: &Event<'_>, blocks: &[RamBlock]) -> Verdict {
        match *event {
            Event::RamBlocks => match self.lay_out(blocks) {
                Ok(()) => Verdict::Unknown,
                Err(why) => Verdict::Other(why),
            },
            Event::Page {
                block,
                offset,
                data,
                ..
            } => self.witness(block, offset, data),
            _ => Verdict::Unknown,
        }
    }

    /// QEMU has named the blocks of its stream: they have to be the same.
    pub(crate) fn lay_out(&mut self, stream: &[RamBlock]) -> Result<(), String> {
        let by_name: HashMap<&str, usize> = self
            .blocks
            .iter()
            .enumerate()
            .map(|(number, block)| (block.name.as_str(), number))
            .collect();
        let mut numbers = Vec::new();
        for block in stream {
            let found = by_name.get(block.name.as_str()).copied();
            let length = found.map(|number| self.blocks[number].length);
            if length.is_some_and(|length| length != block.used_length) {
                return Err(format!(
                    "RAM block {} has {} bytes in the stream and {} in QEMU's memory",
                    block.name,
                    block.used_length,
                    length.unwrap_or(0)
                ));
            }
            numbers.push(found);
        }
        self.numbers = numbers;
        Ok(())
    }

    /// The block of this number of the stream, if it was found.
    pub(crate) fn block(&self, number: BlockId) -> Option<&Block> {
        let found = self.numbers.get(usize::from(number.0)).copied().flatten();
        found.and_then(|found| self.blocks.get(found))
    }

    /// Whether no block is missing: any page may be held.
    pub(crate) fn is_complete(&self) -> bool {
        !self.misses && self.numbers.iter().all(Option::is_some)
    }

    /// Whether any of it is read from a file that QEMU shares.
    pub(crate) fn is_shared(&self) -> bool {
        self.blocks.iter().any(|block| block.is_shared)
    }

    fn witness(&mut self, number: BlockId, offset: u64, content: &[u8]) -> Verdict {
        let mut page = std::mem::take(&mut self.page);
        page.resize(content.len(), 0);
        if let Some(block) = self.block(number) {
            let is_read = block.read(offset, &mut page).is_ok();
            self.compared += 1;
            self.equal += u32::from(is_read && page == content);
        }
        self.page = page;
        match self.compared {
            ..SAMPLES => Verdict::Unknown,
            _ if self.equal >= EQUAL => Verdict::Same,
            _ => Verdict::Other("it is not what QEMU sends".into()),
        }
    }

    /// Whether it may be believed, with whatever has been seen.
    pub(crate) fn is_proven(&self) -> bool {
        self.compared > 0 && self.equal * SAMPLES >= self.compared * EQUAL
    }
}

impl GuestMemory for GuestRam {
    fn read(&mut self, block: BlockId, first: u64, pages: &mut [u8]) -> Result<(), String> {
        let found = self.block(block).ok_or("QEMU does not tell where it is")?;
        let offset = first * PAGE as u64;
        found.read(offset, pages).map_err(|error| error.to_string())
    }
}

/// Bytes of a guest page.
pub(crate) const PAGE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn ram_of(content: &[u8]) -> GuestRam {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let ram = hypervisor::HostRam {
            block: "pc.ram".into(),
            length: content.len() as u64,
            page_size: 4096,
            address: Some(content.as_ptr() as u64),
        };
        GuestRam {
            misses: false,
            blocks: vec![Block::find(std::process::id(), &maps, &ram).unwrap()],
            numbers: vec![Some(0)],
            compared: 0,
            equal: 0,
            page: Vec::new(),
        }
    }

    fn verdict(ram: &mut GuestRam, sent: impl Fn(u32) -> u8) -> Verdict {
        for sample in 1..SAMPLES {
            let verdict = ram.witness(BlockId(0), 0, &[sent(sample); PAGE]);
            assert_eq!(verdict, Verdict::Unknown);
        }
        ram.witness(BlockId(0), 0, &[sent(0); PAGE])
    }

    #[test]
    fn memory_that_is_what_qemu_sends_is_believed() {
        let content = vec![5u8; 2 * PAGE];
        let mut ram = ram_of(&content);
        assert_eq!(verdict(&mut ram, |_| 5), Verdict::Same);
        assert!(ram.is_proven());
        // A guest that runs writes a little.
        let mut ram = ram_of(&content);
        assert_eq!(
            verdict(&mut ram, |n| 5 + u8::from(n % 8 == 0)),
            Verdict::Same
        );
        let mut page = [0; PAGE];
        ram.read(BlockId(0), 1, &mut page).unwrap();
        assert_eq!(page, [5; PAGE]);
        assert!(ram.is_complete());
        assert!(ram.read(BlockId(1), 0, &mut page).is_err());
        ram.numbers.push(None);
        assert!(!ram.is_complete());
        assert!(ram.read(BlockId(1), 0, &mut page).is_err());
    }

    #[test]
    fn other_memory_is_not() {
        let content = vec![5u8; 2 * PAGE];
        let mut ram = ram_of(&content);
        let verdict = verdict(&mut ram, |n| 5 + u8::from(n % 2 == 0));
        assert!(matches!(verdict, Verdict::Other(_)), "{verdict:?}");
        assert!(!ram.is_proven());
        assert!(!ram_of(&content).is_proven());
    }
}
