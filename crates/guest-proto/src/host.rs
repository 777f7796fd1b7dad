//! The host's side of the conversation.

use std::collections::VecDeque;

use thiserror::Error;

use crate::frame::{Decoder, TooLarge, encode};
use crate::message::{Answer, Failure, Request, ToAgent, ToHost};

/// Frames that one request may be answered with: enough for every process and page of a large
/// guest, and a bound on what a hostile one costs.
pub const ANSWER_FRAMES_MAX: u32 = 16 * 1024;
/// Id of what was not asked for.
pub const UNASKED: u32 = 0;
/// News that may wait to be taken.
const NEWS_MAX: usize = 4096;
/// Frames that make no sense, or answer nothing, before the agent is given up.
const NONSENSE_MAX: u64 = 1024;

/// Asks one thing at a time and takes the answer; answers to others are skipped.
#[derive(Debug)]
pub struct Host {
    session: u64,
    last_id: u32,
    decoder: Decoder,
    /// Frames that may still come to the request on its way.
    left: u32,
    unasked: u64,
    news: VecDeque<Answer>,
}

/// What an agent, or something in its place, did wrong.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProtocolError {
    /// Endless.
    #[error("the agent's answer has no end: more than {ANSWER_FRAMES_MAX} messages")]
    Endless,
    /// Not the protocol.
    #[error("what comes from the guest is not the agent's protocol")]
    Nonsense,
    /// The agent could not do it.
    #[error("the agent in the guest says: {}", .0.message)]
    Failed(Failure),
}

impl Host {
    /// A conversation of this number, which must differ from those before on the same port.
    pub fn new(session: u64) -> Self {
        Host {
            session,
            last_id: 0,
            decoder: Decoder::new(),
            left: 0,
            unasked: 0,
            news: VecDeque::new(),
        }
    }

    /// Asks; what is still to come to the request before is skipped.
    pub fn ask(&mut self, request: Request, out: &mut Vec<u8>) -> Result<(), TooLarge> {
        self.last_id = self.last_id.wrapping_add(1).max(1);
        self.left = ANSWER_FRAMES_MAX;
        let message = ToAgent {
            session: self.session,
            id: self.last_id,
            request,
        };
        encode(&message, out)
    }

    /// What the agent told without being asked, and nobody has taken yet.
    pub fn news(&mut self) -> Option<Answer> {
        self.news.pop_front()
    }

    /// Takes bytes from the port.
    pub fn push(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The next part of the answer, and whether it is the last; nothing if more bytes are needed.
    pub fn answer(&mut self) -> Result<Option<(Answer, bool)>, ProtocolError> {
        loop {
            let message = self.decoder.take::<ToHost>();
            if self.decoder.skipped() + self.unasked > NONSENSE_MAX {
                return Err(ProtocolError::Nonsense);
            }
            let Some(message) = message else {
                return Ok(None);
            };
            if (message.session, message.id) == (self.session, UNASKED)
                && matches!(message.answer, Answer::News { .. })
            {
                if self.news.len() >= NEWS_MAX {
                    return Err(ProtocolError::Endless);
                }
                self.news.push_back(message.answer);
                continue;
            }
            if (message.session, message.id) != (self.session, self.last_id) || self.left == 0 {
                self.unasked += 1;
                continue;
            }
            if let Answer::Failed(failure) = message.answer {
                self.left = 0;
                return Err(ProtocolError::Failed(failure));
            }
            self.left -= 1;
            if message.last {
                self.left = 0;
            } else if self.left == 0 {
                return Err(ProtocolError::Endless);
            }
            return Ok(Some((message.answer, message.last)));
        }
    }
}
