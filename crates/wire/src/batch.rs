//! Batches of pages: written in place into the output, read without copying.

use serde::{Deserialize, Serialize};

use crate::decode::{Kind, frame_header, patch_length};
use crate::{BATCH_BYTES, WireError};

/// Bytes before each page's content.
const PAGE_ENTRY: usize = 4;
/// Bytes of one run of zero pages.
const ZERO_ENTRY: usize = 8;
/// Bytes that name the block at the front of a batch.
const BLOCK_FIELD: usize = 2;
/// Runs of zero pages after which a batch is closed.
const ZERO_RUNS_MAX: usize = 4096;
/// Zero pages that one frame may describe. The receiver turns each into a record for QEMU, so
/// this bounds what a frame of a few bytes can cost it.
pub const ZERO_PAGES_MAX: u32 = 1 << 16;

/// A run of consecutive pages of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// First page index.
    pub first: u32,
    /// Number of pages, at least 1.
    pub count: u32,
}

/// Gathers pages and zero pages into frames.
///
/// A batch of pages and one of zero pages are open side by side, so that memory in which the two
/// alternate does not cost a frame header a page. That reorders pages within a stretch of
/// ascending addresses, where no page can occur twice; any step back, and any change of block,
/// closes both first. So the newest content of a page always comes last.
#[derive(Debug)]
pub struct BatchWriter {
    page_size: usize,
    pages: Option<OpenPages>,
    zeros: Vec<PageRun>,
    zero_pages: u32,
    /// The last page put, whatever its kind: decides whether the addresses still ascend.
    last: Option<(u16, u32)>,
}

#[derive(Debug)]
struct OpenPages {
    /// Where in the output the frame begins.
    frame_at: usize,
}

impl BatchWriter {
    /// A writer for pages of `page_size` bytes.
    pub fn new(page_size: usize) -> Self {
        BatchWriter {
            page_size,
            pages: None,
            zeros: Vec::new(),
            zero_pages: 0,
            last: None,
        }
    }

    /// Puts a page's content.
    ///
    /// # Panics
    /// If `content` is not one page long.
    #[inline]
    pub fn page(&mut self, block: u16, index: u32, content: &[u8], out: &mut Vec<u8>) {
        assert_eq!(content.len(), self.page_size);
        self.advance(block, index, out);
        let open = self.pages.get_or_insert_with(|| {
            let frame_at = frame_header(Kind::Pages, out);
            out.extend_from_slice(&block.to_be_bytes());
            OpenPages { frame_at }
        });
        let frame_at = open.frame_at;
        out.extend_from_slice(&index.to_be_bytes());
        out.extend_from_slice(content);
        if out.len() - frame_at >= BATCH_BYTES {
            self.close_pages(out);
        }
    }

    /// Puts a page that consists of zeros.
    pub fn zero(&mut self, block: u16, index: u32, out: &mut Vec<u8>) {
        self.advance(block, index, out);
        match self.zeros.last_mut() {
            Some(run) if run.first.checked_add(run.count) == Some(index) => run.count += 1,
            _ => self.zeros.push(PageRun {
                first: index,
                count: 1,
            }),
        }
        self.zero_pages += 1;
        if self.zero_pages == ZERO_PAGES_MAX || self.zeros.len() == ZERO_RUNS_MAX {
            self.close_zeros(block, out);
        }
    }

    /// Closes the open batches. Must be called before anything else is put into the same output,
    /// and before the output is sent.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        self.close_pages(out);
        if let Some((block, _)) = self.last.take() {
            self.close_zeros(block, out);
        }
    }

    #[inline]
    fn advance(&mut self, block: u16, index: u32, out: &mut Vec<u8>) {
        if let Some((last_block, last_index)) = self.last
            && (last_block != block || index <= last_index)
        {
            self.flush(out);
        }
        self.last = Some((block, index));
    }

    fn close_pages(&mut self, out: &mut [u8]) {
        if let Some(open) = self.pages.take() {
            patch_length(open.frame_at, out);
        }
    }

    fn close_zeros(&mut self, block: u16, out: &mut Vec<u8>) {
        if self.zeros.is_empty() {
            return;
        }
        // A batch of pages may be open in the output: a frame cannot begin inside another.
        self.close_pages(out);
        let frame_at = frame_header(Kind::Zeros, out);
        out.extend_from_slice(&block.to_be_bytes());
        for run in self.zeros.drain(..) {
            out.extend_from_slice(&run.first.to_be_bytes());
            out.extend_from_slice(&run.count.to_be_bytes());
        }
        patch_length(frame_at, out);
        self.zero_pages = 0;
    }
}

/// A batch of pages as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagesFrame<'a> {
    /// The block that the pages belong to.
    pub block: u16,
    entries: &'a [u8],
}

impl<'a> PagesFrame<'a> {
    /// The batch that is a pages frame's payload.
    pub fn parse(payload: &'a [u8]) -> Result<Self, WireError> {
        let (block, entries) = split_block(payload)?;
        Ok(PagesFrame { block, entries })
    }

    /// The pages, as (index, content of `page_size` bytes).
    pub fn iter(
        self,
        page_size: usize,
    ) -> Result<impl Iterator<Item = (u32, &'a [u8])>, WireError> {
        let entry = PAGE_ENTRY + page_size;
        if !self.entries.len().is_multiple_of(entry) {
            return Err(WireError::BadBatch);
        }
        Ok(self.entries.chunks_exact(entry).map(|entry| {
            let (index, content) = entry.split_at(PAGE_ENTRY);
            (be32(index), content)
        }))
    }
}

/// A batch of runs of zero pages as received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZerosFrame<'a> {
    /// The block that the pages belong to.
    pub block: u16,
    entries: &'a [u8],
}

impl<'a> ZerosFrame<'a> {
    pub(crate) fn parse(payload: &'a [u8]) -> Result<Self, WireError> {
        let (block, entries) = split_block(payload)?;
        if !entries.len().is_multiple_of(ZERO_ENTRY) {
            return Err(WireError::BadBatch);
        }
        let frame = ZerosFrame { block, entries };
        let mut pages = 0u32;
        for run in frame.iter() {
            pages = pages.saturating_add(run.count);
            if run.count == 0 || pages > ZERO_PAGES_MAX {
                return Err(WireError::BadBatch);
            }
        }
        Ok(frame)
    }

    /// The runs, [`ZERO_PAGES_MAX`] pages together at most. Their bounds are the peer's word: check them against the block.
    pub fn iter(self) -> impl Iterator<Item = PageRun> + 'a {
        self.entries.chunks_exact(ZERO_ENTRY).map(|entry| PageRun {
            first: be32(&entry[..4]),
            count: be32(&entry[4..]),
        })
    }
}

fn split_block(payload: &[u8]) -> Result<(u16, &[u8]), WireError> {
    let (block, entries) = payload
        .split_at_checked(BLOCK_FIELD)
        .ok_or(WireError::BadBatch)?;
    if entries.is_empty() {
        return Err(WireError::BadBatch);
    }
    Ok((u16::from_be_bytes([block[0], block[1]]), entries))
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
