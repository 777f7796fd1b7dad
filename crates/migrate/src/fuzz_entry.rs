//! What the fuzz targets and the property tests run: whatever the other half may be, or QEMU at the
//! destination, nothing here panics, and no VM runs before a commit.

use qemu_stream::return_path::{Message as Rp, ReturnPathParser};
use wire::{Decoder, Frame, Message, Preamble, Started, put_control};

use crate::{
    Destination, DestinationAction, DestinationPhase, NoGuestMemory, Outputs, Source, SourceAction,
    SourcePhase,
};

/// Guest memory that a source may describe here.
const MEMORY: u64 = 1 << 20;
/// The values by which a destination half knows that QEMU has loaded its devices.
const FENCES: [u32; 2] = [0x756e_6d72, 0x756e_6d73];
const RAN: Started = Started {
    running: true,
    resume_after_us: 1,
};

/// A destination half whose source says `data`, and whose QEMU says the part of it that its first byte
/// tells, in sixteenths.
pub fn destination(data: &[u8]) {
    let Some((share, data)) = data.split_first() else {
        return;
    };
    let (mut answers, frames) = data.split_at(data.len() * usize::from(share % 16) / 16);
    let mut half = Destination::new();
    let mut decoder = Decoder::new();
    let mut parser = ReturnPathParser::new();
    let (mut peer, mut qemu) = (Vec::new(), Vec::new());
    let (mut at, mut committed) = (0, false);
    while let Ok(Some((used, frame))) = decoder.next(&frames[at..]) {
        at += used;
        let decides = matches!(
            frame,
            Frame::Control(Message::Commit | Message::Verdict { commit: true, .. })
        );
        committed |= decides && half.phase() == DestinationPhase::Ready;
        let out = &mut Outputs {
            peer: &mut peer,
            qemu: &mut qemu,
        };
        if half.frame(&frame, out).is_err() {
            return;
        }
        half.flush(out.qemu);
        // QEMU loads whatever it is; or says something else.
        let loaded = match half.phase() {
            DestinationPhase::Loading => Some(FENCES[0]),
            DestinationPhase::Starting => Some(FENCES[1]),
            _ => None,
        };
        let said = match parser.next(answers) {
            Ok(Some((used, message))) => {
                answers = &answers[used..];
                Some(message)
            }
            _ => loaded.map(Rp::Pong),
        };
        if let Some(said) = said
            && half.return_path(&said, out).is_err()
        {
            return;
        }
        while let Some(action) = half.next_action() {
            match action {
                DestinationAction::Admit(_) => {
                    half.accept("fuzz", "{}".to_owned(), MEMORY, &mut peer);
                }
                DestinationAction::Started | DestinationAction::Starting
                    if half.phase() == DestinationPhase::Starting =>
                {
                    half.started(RAN, &mut peer);
                }
                DestinationAction::Arrived => half.arrived(wire::Followed::default(), &mut peer),
                _ => {}
            }
        }
        assert!(committed || half.phase() < DestinationPhase::Starting);
        // What it has said is gone.
        peer.clear();
        qemu.clear();
    }
}

/// A source half whose destination says `data`: it does not come to a commit, for QEMU has said nothing
/// yet.
pub fn source(data: &[u8]) {
    let mut half = Source::new([5; 16], 7);
    let mut decoder = Decoder::new();
    let (mut at, mut out) = (0, Vec::new());
    half.greet("fuzz", "{}".to_owned(), &mut out);
    while let Ok(Some((used, frame))) = decoder.next(&data[at..]) {
        at += used;
        if half.frame(frame, &mut out).is_err() {
            return;
        }
        while let Some(action) = half.next_action() {
            assert!(!matches!(action, SourceAction::Decide), "nothing was sent");
        }
        assert!(half.pump(usize::MAX, &mut NoGuestMemory, &mut out).is_ok());
        assert!(half.phase() < SourcePhase::Deciding);
        out.clear();
    }
}

/// What a whole migration of a small VM says to a destination half.
pub fn seed() -> Vec<u8> {
    let mut bytes = vec![0];
    Preamble::OURS.put(&mut bytes);
    for message in [
        Message::Hello(wire::Hello {
            session: [5; 16],
            seed: 7,
            software: "seed".to_owned(),
            offers: wire::Capabilities::OURS,
            requires: wire::Capabilities::REQUIRED,
            vm_facts: "{}".to_owned(),
        }),
        Message::MayFollow,
        Message::Head(b"head".to_vec()),
        Message::RamSetup(wire::RamSetup {
            section_id: 2,
            instance_id: 0,
            version_id: 4,
            page_size: 4096,
            blocks: vec![wire::Block {
                name: "ram".to_owned(),
                used_length: 8 * 4096,
                page_size: None,
                region_addr: None,
            }],
        }),
        Message::Follows(wire::PageRuns {
            block: 0,
            runs: vec![wire::PageRun { first: 2, count: 1 }],
        }),
        Message::RamEnd,
        Message::DeviceEnd {
            bytes: 0,
            digest: wire::Digest::default(),
        },
        Message::Commit,
    ] {
        put_control(&message, &mut bytes);
    }
    let mut batch = wire::BatchWriter::new(4096);
    batch.zero(0, 2, &mut bytes);
    batch.flush(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_seed_comes_to_a_vm_that_runs() {
        let bytes = seed();
        destination(&bytes);
        // Cut short anywhere, or with a byte changed, it does no harm.
        for at in 1..bytes.len() {
            destination(&bytes[..at]);
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            destination(&changed);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
            destination(&bytes);
            source(&bytes);
        }
    }
}
