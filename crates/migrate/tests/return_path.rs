//! The source half of a QEMU that has a return path: it hears what the destination's own QEMU would
//! have told it, and nothing before its time.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use migrate::{Fault, Source, SourceAction, SourcePhase};
use qemu_stream::return_path::Message as Rp;
use qemu_stream::{BlockId, Event, RamBlock, command};
use wire::{Accept, Capabilities, Frame, Message, Started};

const PAGE: usize = 4096;
const SECTION: u32 = 2;

/// A source half, and the blocks that its QEMU names.
struct Half {
    source: Source,
    blocks: Vec<RamBlock>,
    /// What the destination is told.
    out: Vec<u8>,
}

impl Half {
    /// One whose destination takes part.
    fn new() -> Self {
        let mut source = Source::new([5; 16], 7);
        source.serve_return_path();
        let mut half = Half {
            source,
            blocks: vec![RamBlock::plain("ram", 4 * PAGE as u64)],
            out: Vec::new(),
        };
        half.hears(Message::Accept(Accept {
            software: "test".to_owned(),
            uses: Capabilities::OF_A_MANAGED_VM,
            vm_facts: "{}".to_owned(),
        }))
        .unwrap();
        assert!(matches!(
            half.source.next_action(),
            Some(SourceAction::Start(_))
        ));
        half
    }

    fn hears(&mut self, message: Message) -> Result<(), Fault> {
        self.source.frame(Frame::Control(message), &mut self.out)
    }

    fn qemu_writes(&mut self, event: &Event<'_>) -> Result<(), Fault> {
        self.source.event(event, &self.blocks, PAGE, &mut self.out)
    }

    fn qemu_opens_its_path(&mut self) {
        let open = Event::Command {
            id: command::OPEN_RETURN_PATH,
            payload: &[],
        };
        self.qemu_writes(&open).unwrap();
    }

    fn qemu_names_its_blocks(&mut self) -> Result<(), Fault> {
        self.qemu_writes(&Event::RamStart {
            section_id: SECTION,
            instance_id: 0,
            version_id: 4,
        })?;
        self.qemu_writes(&Event::RamBlocks)
    }

    /// All memory and device state, to the end mark.
    fn qemu_writes_the_rest(&mut self) {
        let section_id = SECTION;
        for event in [
            Event::RamEos { section_id },
            Event::RamPart { section_id },
            Event::Page {
                block: BlockId(0),
                offset: 0,
                continued: false,
                data: &[3; PAGE],
            },
            Event::RamEos { section_id },
            Event::RamEnd { section_id },
            Event::RamEos { section_id },
            Event::Device(b"devices"),
            Event::End { vmdesc: None },
        ] {
            self.qemu_writes(&event).unwrap();
        }
    }

    fn qemu_hears(&mut self) -> Vec<u8> {
        let mut told = Vec::new();
        self.source.take_for_qemu(&mut told);
        told
    }
}

fn message(message: Rp<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.put(&mut bytes);
    bytes
}

#[test]
fn qemu_hears_that_all_is_loaded_when_it_is_and_not_before() {
    let mut half = Half::new();
    half.qemu_opens_its_path();
    let ping = Event::Command {
        id: command::PING,
        payload: &[0, 0, 0, 1],
    };
    half.qemu_writes(&ping).unwrap();
    assert_eq!(half.qemu_hears(), message(Rp::Pong(1)));
    half.qemu_names_its_blocks().unwrap();
    half.qemu_writes_the_rest();
    assert_eq!(half.source.next_action(), None);
    let digest = half.source.digest();
    half.hears(Message::Ready(digest)).unwrap();
    // QEMU has not completed: it waits for its word.
    assert_eq!(half.source.next_action(), Some(SourceAction::Decide));
    half.source.commit_recorded(&mut half.out);
    assert!(half.qemu_hears().is_empty(), "nothing is loaded yet");
    let started = Started {
        running: false,
        resume_after_us: 0,
    };
    half.hears(Message::Committed(started)).unwrap();
    assert_eq!(half.qemu_hears(), message(Rp::Shut(0)));
    assert!(half.qemu_hears().is_empty(), "once");
    assert_eq!(half.source.phase(), SourcePhase::Finished);
}

#[test]
fn another_digest_never_comes_to_a_word_for_qemu() {
    let mut half = Half::new();
    half.qemu_opens_its_path();
    half.qemu_names_its_blocks().unwrap();
    half.qemu_writes_the_rest();
    let mut digest = half.source.digest();
    digest.pages += 1;
    let fault = half.hears(Message::Ready(digest)).unwrap_err();
    assert!(matches!(fault, Fault::DigestMismatch { .. }), "{fault}");
    assert_eq!(half.source.next_action(), None);
    assert!(half.qemu_hears().is_empty());
}

#[test]
fn a_qemu_that_would_not_wait_is_refused_before_its_memory() {
    let mut half = Half::new();
    let fault = half.qemu_names_its_blocks().unwrap_err();
    assert!(fault.to_string().contains("return-path"), "{fault}");
}

#[test]
fn post_copy_of_qemus_own_is_refused() {
    let mut half = Half::new();
    half.qemu_opens_its_path();
    let advise = Event::Command {
        id: command::POSTCOPY_ADVISE,
        payload: &[0; 16],
    };
    let fault = half.qemu_writes(&advise).unwrap_err();
    assert!(fault.to_string().contains("postcopy-ram"), "{fault}");
    // A ping of another length is none.
    let odd = Event::Command {
        id: command::PING,
        payload: &[1],
    };
    assert!(half.qemu_writes(&odd).is_err());
}
