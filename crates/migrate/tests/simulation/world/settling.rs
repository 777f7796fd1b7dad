//! Who gives up, and what is said anew on another connection.

use migrate::{Destination, DestinationPhase, Source, put_verdict};
use qemu_stream::return_path::{self, ReturnPathParser};
use wire::{AbortCode, Decoder, Frame, Message};

use super::{SESSION, World};
use crate::outlet::Outlet;
use crate::qemu::{PAGE, blocks};

impl World {
    /// The destination has given up before it heard of the commit: the source VM runs on.
    pub(super) fn taken_back(&mut self) {
        assert!(self.destination_gave_up && !self.destination_qemu.runs);
        self.recorded = false;
        self.source_gave_up = true;
        self.connected = false;
    }

    /// Before the commit is recorded: the source VM runs on.
    pub(super) fn source_gives_up(&mut self) {
        assert!(!self.recorded, "a recorded commit cannot be taken back");
        self.source
            .abort(AbortCode::Other, "test", &mut self.there.bytes);
        self.source_gave_up = true;
        if !self.connected && self.destination.phase().may_be_committed() {
            self.reconnect(false);
        }
        self.connected = false;
    }

    pub(super) fn destination_gives_up(&mut self) {
        assert!(!self.destination_qemu.runs, "a running VM is not given up");
        self.destination
            .abort(AbortCode::Other, "test", &mut self.back.bytes);
        self.destination_gave_up = true;
    }

    /// What the destination says to the dead source half's guardian.
    pub(super) fn guardian_reads(&mut self) {
        let mut at = 0;
        while let Some((used, frame)) = self.source_decoder.next(&self.source_input[at..]).unwrap()
        {
            at += used;
            self.finished |= matches!(frame, Frame::Control(Message::Committed(_)));
        }
        self.source_input.drain(..at);
    }

    /// The source, or its guardian, tells the decision on a new connection.
    pub(super) fn reconnect(&mut self, commit: bool) {
        if self.destination_gave_up {
            return;
        }
        self.seen.insert(if commit {
            "settled by verdict"
        } else {
            "revoked by verdict"
        });
        self.reconnected = true;
        self.there = self.network.pipe();
        self.back = self.network.pipe();
        self.source_input.clear();
        self.destination_input.clear();
        self.source_decoder = Decoder::new();
        self.destination_decoder = Decoder::new();
        let follows = commit && self.source.follows();
        if let Some(follow) = self.follow.as_mut().filter(|_| follows) {
            // What the peer keeps of earlier pages is not known any more.
            self.outlet = Outlet::plain();
            if follow.random.one_in(2) {
                self.seen.insert("source half replaced");
                let replaced = Source::in_place_of(SESSION, follow.seed, PAGE, &blocks());
                self.source = replaced.unwrap();
            }
            if follow.random.one_in(2) {
                self.replace_destination();
            }
        }
        self.destination.connected(&mut self.back.bytes);
        match commit {
            true if !follows && self.network.random.one_in(3) => {
                self.seen.insert("settled by the guardian");
                self.guardian_tells = true;
                put_verdict(SESSION, true, &mut self.there.bytes);
            }
            true => self.source.ask_outcome(&mut self.there.bytes),
            false => put_verdict(SESSION, false, &mut self.there.bytes),
        }
        self.connected = true;
    }

    /// The destination half has died: another asks QEMU what it has.
    pub(super) fn replace_destination(&mut self) {
        let Some(remains) = self.destination.remains() else {
            return;
        };
        if self.destination.phase() != DestinationPhase::Started {
            return;
        }
        self.seen.insert("destination half replaced");
        self.destination = Destination::in_place_of(SESSION, &remains, true).unwrap();
        self.return_path.clear();
        if !self.destination_qemu.recovers() {
            self.destination.has_all();
            return;
        }
        let mut question = Vec::new();
        self.destination.ask_what_has_come(&mut question);
        self.destination_qemu.load(&question);
        let answers = std::mem::take(&mut self.destination_qemu.answers);
        let (mut parser, mut at) = (ReturnPathParser::new(), 0);
        while let Some((used, message)) = parser.next(&answers[at..]).unwrap() {
            at += used;
            match message {
                return_path::Message::ReceivedBitmap { block, bitmap } => {
                    self.destination.has_come(block, bitmap).unwrap();
                }
                return_path::Message::ResumeAck(_) => break,
                other => panic!("{other:?}"),
            }
        }
        self.destination_qemu.answers = answers[at..].to_vec();
    }
}
