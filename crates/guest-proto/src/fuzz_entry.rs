//! What the fuzz target and the property tests run: a guest may say anything at all.

use crate::message::{Answer, Request};
use crate::{FRAME_MAX, Host, PageSet, ToAgent, ToHost, encode};

/// Guest memory in page frames, as the host would check sets against.
const FRAMES: u64 = 1 << 20;

/// Lets `data` come from the guest whole and in small pieces; both must be understood alike.
pub fn answers(data: &[u8]) {
    let whole = run(data, data.len().max(1));
    for step in [1, 7, 4097] {
        assert_eq!(
            whole,
            run(data, step),
            "pieces of {step} are understood differently"
        );
    }
}

fn run(data: &[u8], step: usize) -> Vec<String> {
    // The session and request that the seeds answer.
    let mut host = Host::new(1);
    let mut out = Vec::new();
    let mut seen = Vec::new();
    if host.ask(Request::Report, &mut out).is_err() {
        return seen;
    }
    for piece in data.chunks(step) {
        host.push(piece);
        loop {
            match host.answer() {
                Ok(Some((Answer::Pages(pages), last))) => {
                    seen.push(format!("{last} {:?}", describe(&pages)));
                }
                Ok(Some((answer, last))) => seen.push(format!("{last} {answer:?}")),
                Ok(None) => break,
                Err(error) => {
                    seen.push(error.to_string());
                    return seen;
                }
            }
        }
    }
    seen
}

fn describe(pages: &PageSet) -> String {
    format!("{:?}", pages.frames(FRAMES))
}

/// Lets `data` come to the agent from the host's side.
pub fn requests(data: &[u8]) {
    let mut decoder = crate::Decoder::new();
    for piece in data.chunks(61) {
        decoder.push(piece);
        while decoder.take::<ToAgent>().is_some() {}
    }
}

/// Frames that make sense, to begin from.
pub fn seeds() -> Vec<Vec<u8>> {
    let summary = Answer::Summary(crate::Summary::default());
    let pages = Answer::Pages(PageSet::of((0..2000).map(|at| at * at).collect()));
    [(summary, true), (pages, false), (Answer::Disarmed, true)]
        .into_iter()
        .map(|(answer, last)| {
            let message = ToHost {
                session: 1,
                id: 1,
                last,
                answer,
            };
            let mut frame = Vec::with_capacity(FRAME_MAX);
            let _ = encode(&message, &mut frame);
            frame
        })
        .collect()
}
