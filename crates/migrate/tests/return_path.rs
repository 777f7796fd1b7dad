//! The source half of a QEMU that has a return path: it hears what the destination's own QEMU would
//! have told it, and nothing before its time.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::{Duration, Instant};

use migrate::{Destination, DestinationAction, Fault, Outputs, Source, SourceAction, SourcePhase};
use qemu_stream::return_path::Message as Rp;
use qemu_stream::{BlockId, Event, RamBlock, command};
use wire::{Accept, Capabilities, Decoder, Frame, Hello, Message, Started};

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
        Half::with(Capabilities::OF_A_MANAGED_VM)
    }

    /// One whose destination is of a release that does not know of `switchover-ack`.
    fn with_an_older_peer() -> Self {
        Half::with(Capabilities::OF_A_MANAGED_VM.without(Capabilities::SWITCHOVER_ACK))
    }

    fn with(uses: Capabilities) -> Self {
        let mut source = Source::new([5; 16], 7);
        source.serve_return_path();
        let mut half = Half {
            source,
            blocks: vec![RamBlock::plain("ram", 4 * PAGE as u64)],
            out: Vec::new(),
        };
        half.hears(Message::Accept(Accept {
            software: "test".to_owned(),
            uses,
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

    /// A part of the RAM section with so many pages.
    fn qemu_writes_a_part(&mut self, pages: u64) {
        let section_id = SECTION;
        self.qemu_writes(&Event::RamPart { section_id }).unwrap();
        for index in 0..pages {
            self.qemu_writes(&Event::Page {
                block: BlockId(0),
                offset: index * PAGE as u64,
                continued: false,
                data: &[3; PAGE],
            })
            .unwrap();
        }
        self.qemu_writes(&Event::RamEos { section_id }).unwrap();
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

/// Memory has begun.
fn under_way(mut half: Half) -> Half {
    half.qemu_opens_its_path();
    half.qemu_names_its_blocks().unwrap();
    let section_id = SECTION;
    half.qemu_writes(&Event::RamEos { section_id }).unwrap();
    half
}

#[test]
fn the_destinations_agreement_is_passed_on_once_and_in_time() {
    let mut half = under_way(Half::new());
    assert!(half.source.hears_of_agreement());
    assert!(half.qemu_hears().is_empty(), "it is not made up");
    half.hears(Message::SwitchoverAck).unwrap();
    half.hears(Message::SwitchoverAck).unwrap();
    assert_eq!(half.qemu_hears(), message(Rp::SwitchoverAck));
    half.hears(Message::SwitchoverAck).unwrap();
    assert!(half.qemu_hears().is_empty(), "once");

    // Nothing is said behind the last word.
    let mut half = under_way(Half::new());
    half.qemu_writes_the_rest();
    let digest = half.source.digest();
    half.hears(Message::Ready(digest)).unwrap();
    half.source.next_action().unwrap();
    half.source.commit_recorded(&mut half.out);
    let started = Started {
        running: false,
        resume_after_us: 0,
    };
    half.hears(Message::Committed(started)).unwrap();
    half.hears(Message::SwitchoverAck).unwrap();
    assert_eq!(half.qemu_hears(), message(Rp::Shut(0)));
}

#[test]
fn an_agreement_that_was_not_negotiated_is_refused() {
    let mut half = under_way(Half::with_an_older_peer());
    assert!(!half.source.hears_of_agreement());
    let fault = half.hears(Message::SwitchoverAck).unwrap_err();
    assert!(matches!(fault, Fault::OutOfOrder { .. }), "{fault}");
    // A source whose QEMU has no return path does not offer to hear it, whatever a destination says.
    let mut source = Source::new([5; 16], 7);
    let mut out = Vec::new();
    source.greet("test", "{}".into(), &mut out);
    assert!(!offers(&out).has(Capabilities::SWITCHOVER_ACK));
    let accept = Accept {
        software: "test".to_owned(),
        uses: Capabilities::OURS,
        vm_facts: "{}".to_owned(),
    };
    let accept = Frame::Control(Message::Accept(accept));
    source.frame(accept, &mut out).unwrap();
    assert!(!source.hears_of_agreement());
    let ack = Frame::Control(Message::SwitchoverAck);
    assert!(source.frame(ack, &mut out).is_err());
    let mut source = Source::new([5; 16], 7);
    source.serve_return_path();
    let mut out = Vec::new();
    source.greet("test", "{}".into(), &mut out);
    assert!(offers(&out).has(Capabilities::SWITCHOVER_ACK));
}

/// The messages in what a half has put.
fn messages(mut bytes: &[u8]) -> Vec<Message> {
    let mut decoder = Decoder::new();
    let mut messages = Vec::new();
    while let Some((used, frame)) = decoder.next(bytes).unwrap() {
        if let Frame::Control(message) = frame {
            messages.push(message);
        }
        bytes = &bytes[used..];
    }
    messages
}

fn offers(bytes: &[u8]) -> Capabilities {
    match messages(bytes).first() {
        Some(Message::Hello(hello)) => hello.offers,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_destination_passes_its_qemus_agreement_on_to_who_would_hear_it() {
    let older = Capabilities::OF_A_MANAGED_VM.without(Capabilities::SWITCHOVER_ACK);
    for (offers, expected) in [
        (Capabilities::OURS, vec![Message::SwitchoverAck]),
        (older, Vec::new()),
    ] {
        let mut destination = Destination::with(Capabilities::OF_A_MANAGED_VM);
        let (mut peer, mut qemu) = (Vec::new(), Vec::new());
        destination.connected(&mut peer);
        let mut outputs = Outputs {
            peer: &mut peer,
            qemu: &mut qemu,
        };
        let hello = Hello {
            session: [5; 16],
            seed: 7,
            software: "test".to_owned(),
            offers,
            requires: Capabilities::REQUIRED,
            vm_facts: "{}".to_owned(),
        };
        let hello = Frame::Control(Message::Hello(hello));
        destination.frame(&hello, &mut outputs).unwrap();
        assert!(matches!(
            destination.next_action(),
            Some(DestinationAction::Admit(_))
        ));
        destination.accept("test", "{}".to_owned(), 1 << 20, outputs.peer);
        let head = Frame::Control(Message::Head(Vec::new()));
        destination.frame(&head, &mut outputs).unwrap();
        let before = outputs.peer.len();
        destination
            .return_path(&Rp::SwitchoverAck, &mut outputs)
            .unwrap();
        let mut said = Vec::new();
        wire::Preamble::OURS.put(&mut said);
        said.extend_from_slice(&peer[before..]);
        assert_eq!(messages(&said), expected);
    }
}

/// Lets `seconds` go by, in turns of a tenth; `part` is what QEMU writes in each: with so many pages, or
/// nothing.
fn seconds_pass(
    half: &mut Half,
    now: &mut Instant,
    seconds: u64,
    may_complete: bool,
    part: impl Fn(u64) -> Option<u64>,
) -> Result<(), Fault> {
    for turn in 0..seconds * 10 {
        if let Some(pages) = part(turn) {
            half.qemu_writes_a_part(pages);
        }
        *now += Duration::from_millis(100);
        half.source.watch_switchover(*now, may_complete)?;
    }
    Ok(())
}

#[test]
fn a_qemu_that_does_not_switch_over_is_told_of_after_ten_seconds() {
    for (mut half, agreed, hint) in [
        (Half::new(), false, "at both QEMUs"),
        (Half::new(), true, "query-migrate"),
        (Half::with_an_older_peer(), false, "same release"),
    ] {
        half = under_way(half);
        if agreed {
            half.hears(Message::SwitchoverAck).unwrap();
        }
        let mut now = Instant::now();
        half.source.watch_switchover(now, true).unwrap();
        // A guest that is not quite idle.
        let part = |turn| Some(u64::from(turn % 3 == 0));
        seconds_pass(&mut half, &mut now, 9, true, part).unwrap();
        let fault = seconds_pass(&mut half, &mut now, 2, true, part).unwrap_err();
        let told = fault.to_string();
        let expected = "QEMU does not switch over although everything has been sent: ";
        assert!(told.starts_with(expected) && told.contains(hint), "{told}");
    }
}

#[test]
fn what_is_slow_or_waits_is_no_fault() {
    let mut half = under_way(Half::new());
    let mut now = Instant::now();
    half.source.watch_switchover(now, true).unwrap();
    // A guest that writes faster than its pages travel, and an odd part without a page.
    let busy = |turn| Some(u64::from(turn % 20 != 0) * 3);
    seconds_pass(&mut half, &mut now, 60, true, busy).unwrap();
    // Memory is held that is to be sent before.
    seconds_pass(&mut half, &mut now, 60, false, |_| Some(0)).unwrap();
    // An operator is waited for, or the link: nothing comes.
    seconds_pass(&mut half, &mut now, 9, true, |_| Some(0)).unwrap();
    seconds_pass(&mut half, &mut now, 600, true, |_| None).unwrap();
    // What has piled up comes at once, and is no more than a moment.
    half.qemu_writes_a_part(0);
    now += Duration::from_secs(3600);
    let mut half = under_way(Half::new());
    half.source.watch_switchover(now, true).unwrap();
    for _ in 0..100_000 {
        half.qemu_writes_a_part(0);
    }
    now += Duration::from_secs(3600);
    half.source.watch_switchover(now, true).unwrap();
    // Once the VM stands nothing is watched any more.
    seconds_pass(&mut half, &mut now, 8, true, |_| Some(0)).unwrap();
    half.qemu_writes_the_rest();
    now += Duration::from_secs(60);
    half.source.watch_switchover(now, true).unwrap();
}
