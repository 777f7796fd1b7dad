//! The head of a stream: magic, version, machine type and what else changes the format.

use super::{Parser, State, Step};
use crate::event::raw;
use crate::reader::Reader;
use crate::{Event, ParseError};

/// The longest machine type name, in bytes.
const MACHINE_MAX: u32 = 255;
/// The most capabilities that a stream may name.
const CAPABILITIES_MAX: u32 = 64;

impl Parser {
    pub(super) fn header<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        let mut reader = Reader::new(input);
        match reader.be32() {
            None => return Ok(None),
            Some(raw::MAGIC) => {}
            Some(other) => return Err(foreign(other)),
        }
        let Some(version) = reader.be32() else {
            return Ok(None);
        };
        if version != raw::VERSION {
            return Err(ParseError::Version(version));
        }
        self.state = State::Configuration;
        Ok(Some((reader.used(), Event::FileHeader)))
    }

    pub(super) fn configuration<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        let mut reader = Reader::new(input);
        let Some(kind) = reader.u8() else {
            return Ok(None);
        };
        if kind != raw::CONFIGURATION {
            return Err(self.unsupported(
                "no configuration section",
                "machine types before 2.4 are not supported",
            ));
        }
        let Some(length) = reader.be32() else {
            return Ok(None);
        };
        if length == 0 || length > MACHINE_MAX {
            return Err(self.corrupt(format!("a machine type name of {length} bytes")));
        }
        let Some(name) = reader.bytes(length as usize) else {
            return Ok(None);
        };
        let machine = std::str::from_utf8(name)
            .map_err(|_| self.corrupt("a machine type name that is not text"))?;
        self.state = State::Subsections;
        Ok(Some((reader.used(), Event::Configuration { machine })))
    }

    pub(super) fn subsection<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        match input.first() {
            None => return Ok(None),
            Some(&raw::SUBSECTION) => {}
            Some(_) => {
                self.state = State::Sections;
                return self.section(input);
            }
        }
        let mut reader = Reader::new(&input[1..]);
        let (Some(name), Some(version)) = (reader.str8(), reader.be32()) else {
            return Ok(None);
        };
        if version != 1 {
            return Err(self.corrupt(format!("a configuration subsection of version {version}")));
        }
        let event = match name {
            b"configuration/target-page-bits" => {
                let Some(bits) = reader.be32() else {
                    return Ok(None);
                };
                if !(10..=16).contains(&bits) {
                    return Err(self.corrupt(format!("guest pages of 2^{bits} bytes")));
                }
                self.page_size = 1 << bits;
                self.flag_mask = (1 << bits) - 1;
                Event::TargetPageBits(bits)
            }
            b"configuration/capabilities" => {
                let from = 1 + reader.used();
                let Some(count) = reader.be32() else {
                    return Ok(None);
                };
                if count > CAPABILITIES_MAX {
                    return Err(self.corrupt(format!("{count} capabilities")));
                }
                let mut ignore_shared = false;
                for _ in 0..count {
                    match reader.str8() {
                        None => return Ok(None),
                        Some(b"x-ignore-shared") => ignore_shared = true,
                        Some(b"mapped-ram") => {
                            return Err(self.unsupported(
                                "the capability mapped-ram",
                                "switch the capability `mapped-ram` off",
                            ));
                        }
                        Some(_) => {}
                    }
                }
                self.ignore_shared = ignore_shared;
                Event::Capabilities(&input[from..1 + reader.used()])
            }
            b"configuration/uuid" => match reader.bytes(16).and_then(|b| b.try_into().ok()) {
                None => return Ok(None),
                Some(uuid) => Event::Uuid(uuid),
            },
            other => {
                return Err(self.unsupported(
                    format!(
                        "the configuration subsection {}",
                        String::from_utf8_lossy(other)
                    ),
                    "this release does not know it",
                ));
            }
        };
        Ok(Some((1 + reader.used(), event)))
    }
}

/// What a stream that does not begin with QEMU's magic may be.
fn foreign(magic: u32) -> ParseError {
    /// A TLS record: handshake, major version 3.
    const TLS: u32 = 0x1603;
    match magic {
        raw::MULTIFD_MAGIC => ParseError::Multifd,
        _ if magic >> 16 == TLS => ParseError::Tls,
        _ => ParseError::NotAStream,
    }
}
