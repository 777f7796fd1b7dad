//! The parser: which part of the stream comes next.

mod config;
mod device;
mod ram;
mod sections;

use crate::{BlockId, Event, ParseError, RamBlock};

/// The longest VMDESCRIPTION that is taken for one, in bytes.
pub const MAX_VMDESC: usize = 16 << 20;

/// Input that the parser may need at once before it makes progress, in bytes: a description with
/// its header. Everything else needs less than 2 MiB.
pub const MAX_LOOKAHEAD: usize = MAX_VMDESC + 16;

/// Guest page size where the stream does not name one (always on x86).
const DEFAULT_PAGE_SIZE: usize = 4096;

/// What a parser call yields: the bytes that the event took and the event, or nothing while the
/// input is too short.
type Step<'a> = Result<Option<(usize, Event<'a>)>, ParseError>;

/// An incremental parser of one stream.
///
/// Call [`next`](Parser::next) with all bytes that have not been consumed yet until it asks for
/// more, then append what has arrived and go on; call [`finish`](Parser::finish) when the stream
/// is closed. How the bytes were cut into pieces makes no difference to the events, but for where
/// the raw bytes of [`Event::Device`] and [`Event::EarlyFull`] are cut.
#[derive(Debug)]
pub struct Parser {
    state: State,
    offset: u64,
    page_size: usize,
    /// Low bits of a record's word that hold flags.
    flag_mask: u64,
    blocks: Vec<RamBlock>,
    /// The block that a record without a name belongs to; persists across sections.
    last_block: Option<BlockId>,
    ram_section: Option<u32>,
    /// `x-ignore-shared`: the block list names addresses.
    ignore_shared: bool,
    description: device::Candidate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Configuration,
    /// Subsections of the configuration may follow.
    Subsections,
    /// Between two sections, before the end of the `ram` section.
    Sections,
    /// Within the `ram` section.
    Records(Section),
    /// Within a device section before the first page.
    Early {
        section_id: u32,
    },
    /// Between the end of the `ram` section and the device part.
    AfterRam,
    Device,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    Start,
    Part,
    End,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// A parser at the start of a stream.
    pub fn new() -> Self {
        Parser {
            state: State::Header,
            offset: 0,
            page_size: DEFAULT_PAGE_SIZE,
            flag_mask: DEFAULT_PAGE_SIZE as u64 - 1,
            blocks: Vec::new(),
            last_block: None,
            ram_section: None,
            ignore_shared: false,
            description: device::Candidate::default(),
        }
    }

    /// Parses one event off the front of `input` and tells how many bytes it took; `None` asks
    /// for more input, which never needs to exceed [`MAX_LOOKAHEAD`] bytes.
    #[inline]
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        let step = match self.state {
            State::Records(section) => self.record(section, input),
            _ => self.outside_ram(input),
        }?;
        if let Some((used, _)) = step {
            self.offset += used as u64;
        }
        Ok(step)
    }

    fn outside_ram<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        match self.state {
            State::Header => self.header(input),
            State::Configuration => self.configuration(input),
            State::Subsections => self.subsection(input),
            State::Sections => self.section(input),
            State::Early { section_id } => self.early(section_id, input),
            State::AfterRam => self.after_ram(input),
            State::Device => self.device(input),
            State::Records(section) => self.record(section, input),
            State::Done if input.is_empty() => Ok(None),
            State::Done => Err(ParseError::TrailingData {
                offset: self.offset,
            }),
        }
    }

    /// The stream has been closed with `rest` not consumed. Yields the end of a stream whose
    /// machine suppresses the description, which only the closing can tell; nothing if the end
    /// was seen before. A stream that broke off after a zero byte of the device part looks the
    /// same: ask QEMU whether it has completed.
    pub fn finish<'a>(&mut self, rest: &'a [u8]) -> Result<Option<Event<'a>>, ParseError> {
        let part = match self.state {
            State::Done if rest.is_empty() => return Ok(None),
            State::Done => {
                return Err(ParseError::TrailingData {
                    offset: self.offset,
                });
            }
            State::Device => match rest {
                [0] => {
                    self.state = State::Done;
                    return Ok(Some(Event::End { vmdesc: None }));
                }
                [0, 6, 0, 0, 0, 0] => {
                    self.state = State::Done;
                    return Ok(Some(Event::End {
                        vmdesc: Some(&rest[6..]),
                    }));
                }
                _ => "the device state",
            },
            State::Header => "the header",
            State::Configuration | State::Subsections => "the configuration",
            State::Sections | State::Records(_) => "the memory",
            State::Early { .. } | State::AfterRam => "the device state",
        };
        Err(ParseError::Truncated {
            offset: self.offset + rest.len() as u64,
            part,
        })
    }

    /// Bytes consumed so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The RAM blocks; empty before [`Event::RamBlocks`].
    pub fn blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    /// Guest page size in bytes.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    fn corrupt(&self, what: impl Into<String>) -> ParseError {
        ParseError::Corrupt {
            offset: self.offset,
            what: what.into(),
        }
    }

    fn unsupported(&self, feature: impl Into<String>, remedy: &'static str) -> ParseError {
        ParseError::Unsupported {
            offset: self.offset,
            feature: feature.into(),
            remedy,
        }
    }
}
