//! What the destination has: one hash per guest page, and a digest over all of them.

use qemu_stream::BlockId;
use twox_hash::XxHash3_128;
use wire::Digest;

use crate::layout::Layout;

/// Memory that a table takes for each guest page, in bytes.
pub const BYTES_PER_PAGE: usize = size_of::<u128>();

/// Marks a page whose content never travelled. A content whose hash is this value is stored as
/// another one, on both sides alike.
const ABSENT: u128 = 0;

/// The content hash of every page that travelled.
///
/// The source half uses it to drop pages whose content the destination already has, both halves
/// to prove to each other that they agree ([`PageTable::digest`]). The hash is of the bytes that
/// were *sent*: a page torn by a running guest is as good as any other.
///
/// The digest is a sum of one term per page, so a changed page costs two hashes and asking for
/// it costs nothing: it is needed while the VM is stopped.
pub struct PageTable {
    seed: u64,
    page_size: usize,
    zero: u128,
    layout: Layout,
    /// Allocated zeroed, hence lazily by the operating system: a page that never travels costs
    /// no memory.
    hashes: Vec<u128>,
    digest: Digest,
}

/// What [`PageTable::put`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The page has that content already.
    Same,
    /// The page is new, or its content is.
    Changed,
}

/// Why a table cannot be made, or a page is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// More memory than the caller allows.
    #[error(
        "the stream describes {described} bytes of guest memory, more than the {limit} that this VM can have"
    )]
    TooMuchMemory {
        /// Sum of the blocks' lengths in bytes.
        described: u64,
        /// The bound in bytes.
        limit: u64,
    },
    /// A block that was not announced, or a page beyond its end.
    #[error("page {index} of RAM block {block} does not exist")]
    NoSuchPage {
        /// Number of the block.
        block: u16,
        /// Page index in it.
        index: u64,
    },
}

impl PageTable {
    /// A table for blocks of the given lengths in bytes, which may describe at most `limit` bytes
    /// together.
    pub fn new(
        seed: u64,
        page_size: usize,
        block_lengths: impl IntoIterator<Item = u64>,
        limit: u64,
    ) -> Result<Self, TableError> {
        let layout = Layout::new(page_size, block_lengths, limit)?;
        let mut table = PageTable {
            seed,
            page_size,
            zero: 0,
            hashes: vec![ABSENT; layout.pages()],
            layout,
            digest: Digest::default(),
        };
        table.zero = table.hash(&vec![0; page_size]);
        Ok(table)
    }

    /// Page size in bytes.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Pages that the table has room for.
    pub fn capacity(&self) -> usize {
        self.hashes.len()
    }

    /// Which page stands where.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The digest of all pages that travelled.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Records that the destination gets `content` for a page.
    #[inline]
    pub fn put(
        &mut self,
        block: BlockId,
        index: u64,
        content: &[u8],
    ) -> Result<Change, TableError> {
        debug_assert_eq!(content.len(), self.page_size);
        let slot = self.layout.slot(block, index)?;
        Ok(self.put_at(slot, content))
    }

    /// Records that the destination gets a page of zeros.
    #[inline]
    pub fn put_zero(&mut self, block: BlockId, index: u64) -> Result<Change, TableError> {
        let slot = self.layout.slot(block, index)?;
        Ok(self.put_zero_at(slot))
    }

    /// As [`put`](PageTable::put), for a slot of the layout.
    #[inline]
    pub(crate) fn put_at(&mut self, slot: usize, content: &[u8]) -> Change {
        let hash = self.hash(content);
        self.put_hash(slot, hash)
    }

    /// As [`put_zero`](PageTable::put_zero), for a slot of the layout.
    #[inline]
    pub(crate) fn put_zero_at(&mut self, slot: usize) -> Change {
        self.put_hash(slot, self.zero)
    }

    /// Whether the destination has this content, or nothing but zeros to be had.
    pub(crate) fn has(&self, slot: usize, content: &[u8]) -> bool {
        match self.hashes[slot] {
            ABSENT => content.iter().all(|byte| *byte == 0),
            hash => hash == self.hash(content),
        }
    }

    /// Whether the destination has a page of zeros.
    pub(crate) fn has_zeros(&self, slot: usize) -> bool {
        matches!(self.hashes[slot], hash if hash == ABSENT || hash == self.zero)
    }

    /// The destination has nothing of this page any more.
    pub(crate) fn forget(&mut self, slot: usize) {
        let old = std::mem::replace(&mut self.hashes[slot], ABSENT);
        if old != ABSENT {
            self.digest.pages -= 1;
            self.digest.sum = self.digest.sum.wrapping_sub(self.term(slot, old));
        }
    }

    /// Whether anything was ever sent of this page.
    pub(crate) fn is_absent(&self, slot: usize) -> bool {
        self.hashes[slot] == ABSENT
    }

    /// The digest of the pages that have come since it was `before`, none of which was there then.
    pub(crate) fn digest_since(&self, before: Digest) -> Digest {
        Digest {
            pages: self.digest.pages.wrapping_sub(before.pages),
            sum: self.digest.sum.wrapping_sub(before.sum),
        }
    }

    #[inline]
    fn put_hash(&mut self, slot: usize, hash: u128) -> Change {
        let old = self.hashes[slot];
        if old == hash {
            return Change::Same;
        }
        if old == ABSENT {
            self.digest.pages += 1;
        } else {
            self.digest.sum = self.digest.sum.wrapping_sub(self.term(slot, old));
        }
        self.digest.sum = self.digest.sum.wrapping_add(self.term(slot, hash));
        self.hashes[slot] = hash;
        Change::Changed
    }

    #[inline]
    fn hash(&self, content: &[u8]) -> u128 {
        let hash = XxHash3_128::oneshot_with_seed(self.seed, content);
        if hash == ABSENT { 1 } else { hash }
    }

    /// One page's share of the digest: depends on where the page is, so that two pages that
    /// changed places do not cancel out.
    #[inline]
    fn term(&self, slot: usize, hash: u128) -> u128 {
        let mut key = [0; 24];
        key[..8].copy_from_slice(&(slot as u64).to_le_bytes());
        key[8..].copy_from_slice(&hash.to_le_bytes());
        XxHash3_128::oneshot_with_seed(self.seed, &key)
    }
}

impl std::fmt::Debug for PageTable {
    /// Without the hashes: there may be millions.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageTable")
            .field("capacity", &self.capacity())
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: usize = 32;
    const A: BlockId = BlockId(0);
    const B: BlockId = BlockId(1);

    fn table() -> PageTable {
        PageTable::new(7, PAGE, [10 * PAGE as u64, 4 * PAGE as u64], u64::MAX).unwrap()
    }

    #[test]
    fn a_known_content_is_recognised() {
        let mut table = table();
        assert_eq!(table.put(A, 3, &[1; PAGE]), Ok(Change::Changed));
        assert_eq!(table.put(A, 3, &[1; PAGE]), Ok(Change::Same));
        assert_eq!(table.put(A, 3, &[2; PAGE]), Ok(Change::Changed));
        assert_eq!(table.put(A, 3, &[1; PAGE]), Ok(Change::Changed));
    }

    #[test]
    fn a_zero_page_is_the_same_however_it_is_told() {
        let mut table = table();
        assert_eq!(table.put_zero(B, 0), Ok(Change::Changed));
        assert_eq!(table.put(B, 0, &[0; PAGE]), Ok(Change::Same));
    }

    #[test]
    fn pages_beyond_a_block_are_refused() {
        let mut table = table();
        let error = |block, index| TableError::NoSuchPage { block, index };
        assert_eq!(table.put_zero(A, 10), Err(error(0, 10)));
        assert_eq!(table.put_zero(B, u64::MAX), Err(error(1, u64::MAX)));
        assert_eq!(table.put_zero(BlockId(2), 0), Err(error(2, 0)));
        assert_eq!(table.digest(), Digest::default());
    }

    #[test]
    fn memory_beyond_the_limit_is_refused_unallocated() {
        let error = PageTable::new(0, 4096, [1 << 40, u64::MAX], 1 << 41).unwrap_err();
        assert_eq!(
            error,
            TableError::TooMuchMemory {
                described: u64::MAX,
                limit: 1 << 41
            }
        );
    }

    #[test]
    fn a_forgotten_page_never_was() {
        let (mut one, mut other) = (table(), table());
        one.put(A, 0, &[1; PAGE]).unwrap();
        let before = one.digest();
        one.put(A, 1, &[2; PAGE]).unwrap();
        other.put(A, 1, &[2; PAGE]).unwrap();
        assert_eq!(one.digest_since(before), other.digest());
        one.forget(1);
        one.forget(1);
        assert_eq!(one.digest(), before);
        assert!(one.is_absent(1));
        one.forget(0);
        assert_eq!(one.digest(), Digest::default());
    }

    #[test]
    fn pages_that_changed_places_change_the_digest() {
        let (mut one, mut other) = (table(), table());
        one.put(A, 0, &[1; PAGE]).unwrap();
        one.put(A, 1, &[2; PAGE]).unwrap();
        other.put(A, 0, &[2; PAGE]).unwrap();
        other.put(A, 1, &[1; PAGE]).unwrap();
        assert_ne!(one.digest(), other.digest());
    }

    proptest! {
        /// The digest tells the contents, not the way there.
        #[test]
        fn the_digest_depends_on_the_last_contents_only(
            puts in prop::collection::vec((0u16..2, 0u64..4, 0u8..5), 0..100)
        ) {
            let mut walked = table();
            let mut last = std::collections::BTreeMap::new();
            for (block, index, fill) in puts {
                walked.put(BlockId(block), index, &[fill; PAGE]).unwrap();
                last.insert((block, index), fill);
            }
            let mut direct = table();
            for ((block, index), fill) in &last {
                direct.put(BlockId(*block), *index, &[*fill; PAGE]).unwrap();
            }
            prop_assert_eq!(walked.digest(), direct.digest());
            // And a single differing page shows.
            if let Some(((block, index), fill)) = last.first_key_value() {
                direct.put(BlockId(*block), *index, &[fill + 1; PAGE]).unwrap();
                prop_assert_ne!(walked.digest(), direct.digest());
            }
        }
    }
}
