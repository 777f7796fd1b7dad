//! The parser: which part of the stream comes next.

mod config;
mod device;
mod ram;
mod sections;

use crate::{BlockId, Emitter, Event, ParseError, RamBlock};

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
/// more, then append what has arrived and go on. When the stream is closed, call
/// [`close`](Parser::close), then `next` again until it asks for more, then
/// [`finish`](Parser::finish). How the bytes were cut into pieces makes no difference to the events, but for where
/// the raw bytes of [`Event::Device`] and [`Event::EarlyFull`] are cut.
#[derive(Debug)]
pub struct Parser {
    state: State,
    offset: u64,
    page_size: usize,
    /// Low bits of a record's word that hold flags.
    flag_mask: u64,
    blocks: Vec<RamBlock>,
    list: ram::List,
    /// The block that a record without a name belongs to; persists across sections.
    last_block: Option<BlockId>,
    ram_section: Option<u32>,
    /// `x-ignore-shared`: the block list names addresses.
    ignore_shared: bool,
    /// A PART has been seen: no device section may stand before the end of the memory any more.
    parts: bool,
    description: device::Candidate,
    /// Nothing comes after the input.
    closed: bool,
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
            list: ram::List::default(),
            last_block: None,
            ram_section: None,
            ignore_shared: false,
            parts: false,
            description: device::Candidate::default(),
            closed: false,
        }
    }

    /// Parses one event off the front of `input` and tells how many bytes it took; `None` asks
    /// for more input, which never needs to exceed [`MAX_LOOKAHEAD`] bytes.
    ///
    /// # Errors
    /// Whatever is wrong with the stream; it cannot be read on after that.
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

    /// Tells the parser that the stream has been closed: nothing will be appended to the input
    /// that it is offered from now on.
    ///
    /// Device state may hold bytes that look like the beginning of a description longer than all
    /// that is left. They are held back, and the true end behind them, for as long as more may
    /// come; after this call [`next`](Parser::next) hands both out.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// The stream has been closed with `rest` not consumed. Yields the end of a stream whose
    /// machine suppresses the description, which only the closing can tell; nothing if the end
    /// was seen before. A stream that broke off after a zero byte of the device part looks the
    /// same: ask QEMU whether it has completed.
    ///
    /// # Errors
    /// [`ParseError::Truncated`] if the stream does not end here, and
    /// [`ParseError::TrailingData`] if it has ended before.
    pub fn finish<'a>(&mut self, rest: &'a [u8]) -> Result<Option<Event<'a>>, ParseError> {
        let part = match self.state {
            State::Done if rest.is_empty() => return Ok(None),
            State::Done => {
                return Err(ParseError::TrailingData {
                    offset: self.offset,
                });
            }
            State::Device if device::ends_without_text(rest) => {
                self.state = State::Done;
                self.offset += rest.len() as u64;
                let vmdesc = rest.get(Emitter::END_WITHOUT_DESCRIPTION.len()..);
                return Ok(Some(Event::End { vmdesc }));
            }
            State::Header => "the header",
            State::Configuration | State::Subsections => "the configuration",
            State::Sections | State::Records(_) => "the memory",
            State::Early { .. } | State::AfterRam | State::Device => "the device state",
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
