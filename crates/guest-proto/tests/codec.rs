//! Frames, resynchronisation, page sets and the host's bounds.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;

use guest_proto::{
    ANSWER_FRAMES_MAX, Answer, Decoder, FRAME_MAX, Failure, Host, PageSet, PageSetBuilder,
    PageSetError, PauseLimit, ProtocolError, Refusal, Request, Rule, Run, Summary, ToAgent, ToHost,
    encode, fuzz_entry, shortened,
};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

fn hello(session: u64) -> ToAgent {
    ToAgent {
        session,
        id: 1,
        request: Request::Hello { version: 2 },
    }
}

fn frame<T: serde::Serialize>(message: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode(message, &mut out).unwrap();
    out
}

fn answer(session: u64, id: u32, last: bool, answer: Answer) -> Vec<u8> {
    frame(&ToHost {
        session,
        id,
        last,
        answer,
    })
}

/// The bytes are the protocol: this test changes when VERSION does.
#[test]
fn a_hello_looks_as_it_always_did() {
    assert_eq!(
        frame(&hello(5)),
        [0, 3, 5, 1, 6, 2, 0x35, 0x24, 0x56, 0xf9, 0],
    );
}

#[test]
fn rules_look_as_they_always_did() {
    let bytes = |text: &str| postcard::to_stdvec(&text.parse::<Rule>().unwrap()).unwrap();
    assert_eq!(
        bytes("may-pause name:a up-to 1s"),
        [1, 1, 3, 1, b'a', 1, 0xe8, 7]
    );
    assert_eq!(
        bytes("pause-limit pid:7 up-to 1h"),
        [0, 4, 7, 1, 0x80, 0xdd, 0xdb, 1]
    );
    assert_eq!(bytes("always-live facing:clients"), [1, 0, 5, 0]);
    assert_eq!(bytes("sink unit:a"), [1, 2, 0, 1, b'a', 0]);
}

/// Whatever comes from the guest, nothing is to stand for longer than that.
#[test]
fn a_limit_from_the_wire_is_bounded() {
    let bytes = postcard::to_stdvec(&u32::MAX).unwrap();
    let limit: PauseLimit = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(limit.duration(), PauseLimit::MAX);
}

#[test]
fn a_frame_is_understood_after_one_that_broke_off() {
    let whole = frame(&hello(7));
    for cut in 0..whole.len() {
        let mut decoder = Decoder::new();
        decoder.push(&whole[..cut]);
        assert_eq!(decoder.take::<ToAgent>(), None);
        decoder.push(&whole);
        assert_eq!(decoder.take::<ToAgent>(), Some(hello(7)), "cut at {cut}");
    }
}

#[test]
fn a_frame_without_end_is_skipped_and_not_kept() {
    let mut decoder = Decoder::new();
    for _ in 0..100 {
        decoder.push(&vec![1; FRAME_MAX]);
        assert_eq!(decoder.take::<ToAgent>(), None);
    }
    decoder.push(&frame(&hello(7)));
    assert_eq!(decoder.take::<ToAgent>(), Some(hello(7)));
    assert_eq!(decoder.skipped(), 1);
}

#[test]
fn a_message_that_is_too_large_is_refused() {
    let text = "x".repeat(FRAME_MAX);
    assert!(encode(&text, &mut Vec::new()).is_err());
}

#[test]
fn answers_of_the_past_are_skipped() {
    let mut host = Host::new(1);
    let mut out = Vec::new();
    host.ask(Request::Report, &mut out).unwrap();
    host.ask(Request::Disarm, &mut out).unwrap();
    host.push(&answer(1, 1, true, Answer::Summary(Summary::default())));
    host.push(&answer(9, 2, true, Answer::Disarmed));
    assert_eq!(host.answer(), Ok(None));
    host.push(&answer(1, 2, true, Answer::Disarmed));
    assert_eq!(host.answer(), Ok(Some((Answer::Disarmed, true))));
    // And what comes after the last.
    host.push(&answer(1, 2, true, Answer::Disarmed));
    assert_eq!(host.answer(), Ok(None));
}

#[test]
fn an_endless_answer_comes_to_an_end() {
    let mut host = Host::new(1);
    host.ask(Request::Report, &mut Vec::new()).unwrap();
    let part = answer(1, 1, false, Answer::Processes(Vec::new()));
    let mut parts = 0;
    let error = loop {
        host.push(&part);
        match host.answer() {
            Ok(taken) => parts += u32::from(taken.is_some()),
            Err(error) => break error,
        }
        assert!(parts <= ANSWER_FRAMES_MAX);
    };
    assert_eq!(error, ProtocolError::Endless);
}

#[test]
fn nonsense_is_borne_for_a_while_only() {
    let mut host = Host::new(1);
    host.ask(Request::Report, &mut Vec::new()).unwrap();
    let failed = (0..100_000).any(|_| {
        host.push(b"\0login: \0");
        host.answer() == Err(ProtocolError::Nonsense)
    });
    assert!(failed);
}

#[test]
fn a_failure_is_told() {
    let failure = Failure {
        refusal: Refusal::OutOfTurn,
        message: "no window".into(),
    };
    let mut host = Host::new(1);
    host.ask(Request::Report, &mut Vec::new()).unwrap();
    host.push(&answer(1, 1, true, Answer::Failed(failure.clone())));
    assert_eq!(host.answer(), Err(ProtocolError::Failed(failure)));
}

#[test]
fn texts_are_cut_between_characters() {
    assert_eq!(shortened("aé", 2), "a");
    assert_eq!(shortened("aé", 3), "aé");
}

fn page_set_from_wire(runs: &[(u64, u64)]) -> PageSet {
    postcard::from_bytes(&postcard::to_stdvec(runs).unwrap()).unwrap()
}

#[test]
fn sets_that_are_none_are_refused() {
    let frames = |runs: &[(u64, u64)]| page_set_from_wire(runs).frames(100);
    assert_eq!(frames(&[(0, 3), (2, 4)]), Ok(7));
    assert_eq!(frames(&[(0, 0)]), Err(PageSetError::Degenerate));
    assert_eq!(frames(&[(0, 3), (0, 4)]), Err(PageSetError::Degenerate));
    let out = Err(PageSetError::OutOfRange { limit: 100 });
    assert_eq!(frames(&[(99, 2)]), out);
    assert_eq!(frames(&[(u64::MAX, u64::MAX)]), out);
    assert_eq!(frames(&[(1, u64::MAX), (u64::MAX, u64::MAX)]), out);
}

proptest! {
    #[test]
    fn garbage_between_frames_does_no_harm(
        garbage in vec(any::<u8>(), 0..300), step in 1..50usize
    ) {
        let mut stream = garbage;
        stream.extend(frame(&hello(3)));
        let mut decoder = Decoder::new();
        let mut seen = Vec::new();
        for piece in stream.chunks(step) {
            decoder.push(piece);
            while let Some(message) = decoder.take::<ToAgent>() {
                seen.push(message);
            }
        }
        prop_assert_eq!(seen.last(), Some(&hello(3)));
    }

    #[test]
    fn any_bytes_from_a_guest_are_borne(data in vec(any::<u8>(), 0..2000)) {
        fuzz_entry::answers(&data);
        fuzz_entry::requests(&data);
    }

    #[test]
    fn a_set_holds_what_was_put_in(frames in btree_set(0..5000u64, 0..400), runs in 1..20usize) {
        let set = PageSet::of(frames.iter().copied().rev().collect());
        let mut back = BTreeSet::new();
        for part in set.split(runs) {
            prop_assert!(part.runs() <= runs);
            for run in part.iter(5000) {
                let run = run.unwrap();
                back.extend(run.first..run.first + run.count);
            }
        }
        prop_assert_eq!(set.frames(5000).unwrap(), u64::try_from(frames.len()).unwrap());
        prop_assert_eq!(back, frames);
    }
}

/// A builder with that much room, fed with the runs.
fn built(room: usize, runs: &[(u64, u64)]) -> (PageSet, u64) {
    let mut builder = PageSetBuilder::new(room);
    for (first, count) in runs {
        builder.push_run(Run {
            first: *first,
            count: *count,
        });
    }
    let dropped = builder.dropped();
    (builder.build(), dropped)
}

fn frames_of(runs: &[(u64, u64)]) -> Vec<u64> {
    let frames = runs.iter().flat_map(|(first, count)| *first..first + count);
    frames.collect()
}

proptest! {
    #[test]
    fn a_builder_makes_the_same_set(runs in vec((0u64..500, 0u64..9), 0..80)) {
        let (set, dropped) = built(1000, &runs);
        prop_assert_eq!(dropped, 0);
        prop_assert_eq!(&set, &PageSet::of(frames_of(&runs)));
        let mut one_by_one = PageSetBuilder::new(1000);
        let mut other = PageSetBuilder::new(1000);
        for (index, frame) in frames_of(&runs).into_iter().rev().enumerate() {
            if index % 3 == 0 { other.push(frame) } else { one_by_one.push(frame) }
        }
        one_by_one.absorb(other);
        prop_assert_eq!(one_by_one.build(), set);
    }

    /// What there is no room for is missing, and counted; nothing is made up.
    #[test]
    fn a_full_builder_drops(runs in vec((0u64..100_000, 1u64..9), 0..200)) {
        let (set, dropped) = built(16, &runs);
        let all: BTreeSet<u64> = frames_of(&runs).into_iter().collect();
        prop_assert!(set.runs() <= 16);
        let mut kept = 0;
        for run in set.iter(u64::MAX) {
            let run = run.unwrap();
            prop_assert!((run.first..run.first + run.count).all(|frame| all.contains(&frame)));
            kept += run.count;
        }
        prop_assert!(kept + dropped >= all.len() as u64);
    }
}

#[test]
fn a_run_beyond_the_last_number_is_dropped() {
    let (set, dropped) = built(16, &[(u64::MAX - 1, 5), (3, 1)]);
    assert_eq!(set, PageSet::of(vec![3]));
    assert_eq!(dropped, 5);
}
