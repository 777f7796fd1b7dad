//! The destination half while memory follows, told by a source that keeps no rule: what QEMU would
//! die of never reaches it.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use migrate::{Destination, DestinationAction, DestinationPhase, Fault, Outputs, PageTable};
use qemu_stream::return_path::{self, ReturnPathParser};
use qemu_stream::{BlockId, Emitter, RamBlock};
use wire::{
    BatchWriter, Block, Capabilities, Decoder, Digest, Hello, Message, PageRun, PageRuns, Preamble,
    RamSetup, Started, put_control, put_device,
};

const PAGE: usize = 4096;
const SEED: u64 = 7;
const SECTION: u32 = 2;
/// Pages of the only block.
const PAGES: u64 = 8;
const LENGTH: u64 = PAGES * PAGE as u64;

/// A destination half, and what has come out of it.
struct Peer {
    half: Destination,
    decoder: Decoder,
    qemu: Vec<u8>,
}

impl Peer {
    /// One whose source has sent page 1, and lets 2 and 3 follow; the others were never sent.
    fn with_two_that_follow() -> Self {
        let mut peer = Peer {
            half: Destination::new(),
            decoder: Decoder::new(),
            qemu: Vec::new(),
        };
        let mut preamble = Vec::new();
        Preamble::OURS.put(&mut preamble);
        peer.takes(&preamble).unwrap();
        peer.hears(&Message::Hello(Hello {
            session: [5; 16],
            seed: SEED,
            software: "test".to_owned(),
            offers: Capabilities::OURS,
            requires: Capabilities::REQUIRED,
            vm_facts: "{}".to_owned(),
        }))
        .unwrap();
        assert!(matches!(
            peer.half.next_action(),
            Some(DestinationAction::Admit(_))
        ));
        peer.half
            .accept("test", "{}".to_owned(), 1 << 30, &mut Vec::new());
        peer.hears(&Message::MayFollow).unwrap();
        peer.hears(&Message::Head(Vec::new())).unwrap();
        peer.hears(&Message::RamSetup(RamSetup {
            section_id: SECTION,
            instance_id: 0,
            version_id: 4,
            page_size: 4096,
            blocks: vec![Block {
                name: "ram".to_owned(),
                used_length: LENGTH,
                page_size: None,
                region_addr: None,
            }],
        }))
        .unwrap();
        peer.takes(&page(1)).unwrap();
        peer.hears(&Message::Follows(PageRuns {
            block: 0,
            runs: vec![run(2, 2)],
        }))
        .unwrap();
        peer
    }

    /// The same, once its VM has been told to run.
    fn running() -> Self {
        let mut peer = Self::with_two_that_follow();
        peer.hears(&Message::RamEnd).unwrap();
        let mut devices = Vec::new();
        put_device(b"devices", &mut devices);
        peer.takes(&devices).unwrap();
        let digest = digest_of(&[1]);
        peer.hears(&Message::DeviceEnd { bytes: 7, digest })
            .unwrap();
        peer.answers_the_fence();
        peer.hears(&Message::Commit).unwrap();
        assert_eq!(peer.half.phase(), DestinationPhase::Starting);
        peer.qemu.clear();
        peer
    }

    /// QEMU has loaded everything.
    fn answers_the_fence(&mut self) {
        let fence = self.qemu.last_chunk::<4>().copied().unwrap();
        let mut answer = Vec::new();
        return_path::Message::Pong(u32::from_be_bytes(fence)).put(&mut answer);
        self.qemu_says(&answer).unwrap();
        assert_eq!(self.half.phase(), DestinationPhase::Ready);
    }

    fn qemu_says(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let parsed = ReturnPathParser::new().next(bytes).unwrap();
        let (_, message) = parsed.unwrap();
        let peer = &mut Vec::new();
        let qemu = &mut self.qemu;
        self.half.return_path(&message, &mut Outputs { peer, qemu })
    }

    fn hears(&mut self, message: &Message) -> Result<(), Fault> {
        let mut bytes = Vec::new();
        put_control(message, &mut bytes);
        self.takes(&bytes)
    }

    fn takes(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let (used, frame) = self.decoder.next(bytes).unwrap().unwrap();
        assert_eq!(used, bytes.len());
        let peer = &mut Vec::new();
        let qemu = &mut self.qemu;
        self.half.frame(&frame, &mut Outputs { peer, qemu })
    }

    fn qemu_was_told(&self, what: &[u8]) -> bool {
        self.qemu.windows(what.len()).any(|part| part == what)
    }
}

fn run(first: u32, count: u32) -> PageRun {
    PageRun { first, count }
}

fn content() -> [u8; PAGE] {
    [9; PAGE]
}

fn page(index: u32) -> Vec<u8> {
    let (mut frames, mut out) = (BatchWriter::new(PAGE), Vec::new());
    frames.page(0, index, &content(), &mut out);
    frames.flush(&mut out);
    out
}

fn zero(index: u32) -> Vec<u8> {
    let (mut frames, mut out) = (BatchWriter::new(PAGE), Vec::new());
    frames.zero(0, index, &mut out);
    frames.flush(&mut out);
    out
}

/// Of memory in which these pages have come.
fn digest_of(pages: &[u64]) -> Digest {
    let mut table = PageTable::new(SEED, PAGE, [LENGTH], u64::MAX).unwrap();
    for index in pages {
        table.put(BlockId(0), *index, &content()).unwrap();
    }
    table.digest()
}

/// The command that takes these pages from QEMU.
fn discard(pages: &[std::ops::Range<u64>]) -> Vec<u8> {
    let mut emitter = Emitter::new();
    emitter.set_blocks(&[RamBlock::plain("ram", LENGTH)]);
    let bytes = pages
        .iter()
        .map(|run| run.start * PAGE as u64..run.end * PAGE as u64);
    let mut out = Vec::new();
    emitter.postcopy_discard(BlockId(0), bytes, &mut out);
    out
}

fn is_refused(result: &Result<(), Fault>) -> bool {
    matches!(result, Err(Fault::OutOfOrder { .. }))
}

#[test]
fn what_follows_and_what_was_never_sent_is_taken_from_qemu() {
    let mut peer = Peer::with_two_that_follow();
    let follows = discard(std::slice::from_ref(&(2..4)));
    assert!(peer.qemu_was_told(&follows));
    // QEMU may have zeros around a page that has come, and would not ask for what lies there.
    let never_sent = discard(&[0..1, 4..8]);
    assert!(!peer.qemu_was_told(&never_sent));
    peer.hears(&Message::RamEnd).unwrap();
    assert!(peer.qemu_was_told(&never_sent));
}

#[test]
fn a_page_that_follows_comes_once() {
    for again in [page(2), zero(2)] {
        let mut peer = Peer::running();
        peer.takes(&page(2)).unwrap();
        assert!(peer.qemu_was_told(&content()));
        assert!(is_refused(&peer.takes(&again)));
    }
}

#[test]
fn a_page_that_does_not_follow_is_refused_once_the_vm_may_run() {
    for other in [page(1), zero(1), page(5), zero(5)] {
        let mut peer = Peer::running();
        assert!(is_refused(&peer.takes(&other)));
        assert!(!peer.qemu_was_told(&content()));
    }
}

#[test]
fn a_page_that_follows_does_not_come_before_the_vm_may_run() {
    let mut peer = Peer::with_two_that_follow();
    assert!(is_refused(&peer.takes(&page(2))));
}

#[test]
fn the_end_is_refused_while_a_page_is_missing() {
    let mut peer = Peer::running();
    peer.takes(&page(2)).unwrap();
    assert!(is_refused(&peer.hears(&Message::AllSent(digest_of(&[])))));
}

#[test]
fn what_has_followed_is_compared_to_what_was_sent() {
    let all = digest_of(&[1, 2, 3]);
    let before = digest_of(&[1]);
    let follows = Digest {
        pages: all.pages - before.pages,
        sum: all.sum.wrapping_sub(before.sum),
    };
    let differs = Digest {
        sum: follows.sum ^ 1,
        ..follows
    };
    for (theirs, equal) in [(follows, true), (differs, false)] {
        let mut peer = Peer::running();
        while peer.half.next_action().is_some() {}
        peer.half.started(
            Started {
                running: true,
                resume_after_us: 1,
            },
            &mut Vec::new(),
        );
        peer.takes(&page(2)).unwrap();
        peer.takes(&page(3)).unwrap();
        assert!(peer.half.needs_the_source());
        peer.hears(&Message::AllSent(theirs)).unwrap();
        let mut end = Vec::new();
        return_path::Message::Shut(0).put(&mut end);
        peer.qemu_says(&end).unwrap();
        assert_eq!(peer.half.next_action(), Some(DestinationAction::Arrived));
        assert_eq!(peer.half.followed_well(), Some(equal));
    }
}
