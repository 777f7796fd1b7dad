//! What the destination has, beside what the guest's memory holds.
//!
//! The page table holds a hash of what was sent of each page. Once the VM has stopped and QEMU has
//! sent its last page, guest memory must be exactly that: where it is not, QEMU has forgotten that
//! the page was written. (That what was sent has arrived is another question, which the digest
//! answers.)
//!
//! ```text
//! Wanted ──all memory is sent──► UnderWay ──audited()──► Over ──► RamEnd, devices
//!                      SourceAction::Audit │ expected(), repair()
//! ```

use std::ops::Range;

use qemu_stream::BlockId;
use roaring::RoaringBitmap;

use super::Source;
use crate::{PageTable, TableError};

/// Where the audit stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Audit {
    /// There is none.
    #[default]
    Off,
    Wanted,
    /// The outside compares; nothing more is read from QEMU meanwhile.
    UnderWay,
    Over,
}

/// What the guest's memory should hold.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    table: &'a PageTable,
    left: &'a RoaringBitmap,
}

impl Expected<'_> {
    /// Compares whole pages of a block, of which the first has this index; adds the indices of
    /// those that the destination does not have. Yields how many were compared: pages that the
    /// guest declared free are not.
    pub fn compare(
        &self,
        block: BlockId,
        first: u64,
        content: &[u8],
        differing: &mut Vec<u64>,
    ) -> Result<u64, TableError> {
        let pages = content.chunks_exact(self.table.page_size());
        let mut compared = 0;
        for (index, page) in (first..).zip(pages) {
            let slot = self.table.layout().slot(block, index)?;
            if self.is_left(slot) {
                continue;
            }
            compared += 1;
            if !self.table.has(slot, page) {
                differing.push(index);
            }
        }
        Ok(compared)
    }

    /// As [`compare`](Expected::compare), for pages that are known to be zeros.
    pub fn compare_zeros(
        &self,
        block: BlockId,
        pages: Range<u64>,
        differing: &mut Vec<u64>,
    ) -> Result<u64, TableError> {
        let mut compared = 0;
        for index in pages {
            let slot = self.table.layout().slot(block, index)?;
            if self.is_left(slot) {
                continue;
            }
            compared += 1;
            if !self.table.has_zeros(slot) {
                differing.push(index);
            }
        }
        Ok(compared)
    }

    fn is_left(&self, slot: usize) -> bool {
        u32::try_from(slot).is_ok_and(|slot| self.left.contains(slot))
    }
}

impl Source {
    /// All memory is to be audited before the devices follow: [`SourceAction::Audit`] says when.
    ///
    /// [`SourceAction::Audit`]: super::SourceAction::Audit
    pub fn want_audit(&mut self) {
        self.audit = Audit::Wanted;
    }

    /// Whether it is under way: nothing is to be put but repairs.
    pub fn is_auditing(&self) -> bool {
        self.audit == Audit::UnderWay
    }

    /// What the guest's memory should hold; nothing before QEMU has named its RAM blocks.
    pub fn expected(&self) -> Option<Expected<'_>> {
        self.memory.as_ref().map(|memory| Expected {
            table: &memory.table,
            left: &memory.left,
        })
    }

    /// The destination gets what a page holds.
    ///
    /// # Panics
    /// If no audit is under way.
    pub fn repair(
        &mut self,
        block: BlockId,
        index: u64,
        content: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), TableError> {
        assert_eq!(self.audit, Audit::UnderWay, "a repair without an audit");
        match &mut self.memory {
            Some(memory) => memory.repair(block, index, content, &mut self.stats, out),
            None => Ok(()),
        }
    }

    /// The audit is over.
    pub fn audited(&mut self, out: &mut Vec<u8>) {
        if self.audit == Audit::UnderWay {
            self.audit = Audit::Over;
            self.end_ram_if_drained(out);
        }
    }
}
