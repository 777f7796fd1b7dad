//! Between the sections: commands, section headers, and device sections before the first page.

use super::{Parser, Section, State, Step};
use crate::Event;
use crate::event::raw;
use crate::reader::Reader;

impl Parser {
    pub(super) fn section<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        let Some(kind) = input.first() else {
            return Ok(None);
        };
        match *kind {
            raw::COMMAND => self.command(input),
            raw::START => self.start(input),
            raw::FULL => self.early_start(input),
            raw::PART | raw::END => {
                let mut reader = Reader::new(&input[1..]);
                let Some(section_id) = reader.be32() else {
                    return Ok(None);
                };
                if self.ram_section != Some(section_id) || self.blocks.is_empty() {
                    return Err(self.corrupt(format!(
                        "a continuation of section {section_id}, which is not that of the memory"
                    )));
                }
                let (section, event) = if *kind == raw::PART {
                    self.parts = true;
                    (Section::Part, Event::RamPart { section_id })
                } else {
                    (Section::End, Event::RamEnd { section_id })
                };
                self.state = State::Records(section);
                Ok(Some((5, event)))
            }
            raw::EOF => Err(self.corrupt("an end before the memory was complete")),
            other => Err(self.corrupt(format!("a section of unknown type {other:#04x}"))),
        }
    }

    /// After the memory only commands may stand before the device part.
    pub(super) fn after_ram<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        match input.first() {
            None => Ok(None),
            Some(&raw::COMMAND) => self.command(input),
            Some(&(raw::FULL | raw::EOF)) => {
                self.state = State::Device;
                self.device(input)
            }
            Some(&raw::END) => Err(self.unsupported(
                "another iterative section beside the memory's",
                "switch the capabilities `block` and `dirty-bitmaps` off, and unplug devices that migrate by themselves (vfio)",
            )),
            Some(other) => Err(self.corrupt(format!("a section of type {other:#04x} after the memory"))),
        }
    }

    fn command<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        let mut reader = Reader::new(&input[1..]);
        let (Some(id), Some(length)) = (reader.be16(), reader.be16()) else {
            return Ok(None);
        };
        let (feature, remedy) = match id {
            1 | 2 | 11 => {
                let Some(payload) = reader.bytes(length.into()) else {
                    return Ok(None);
                };
                return Ok(Some((1 + reader.used(), Event::Command { id, payload })));
            }
            3..=7 | 9 | 10 => (
                "post-copy",
                "switch the capabilities `postcopy-ram` and `dirty-bitmaps` off",
            ),
            8 => ("COLO", "switch the capability `x-colo` off"),
            _ => return Err(self.corrupt(format!("an unknown command {id}"))),
        };
        Err(self.unsupported(feature, remedy))
    }

    fn start<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        let mut reader = Reader::new(&input[1..]);
        let (Some(section_id), Some(name), Some(instance_id), Some(version_id)) =
            (reader.be32(), reader.str8(), reader.be32(), reader.be32())
        else {
            return Ok(None);
        };
        if name != b"ram" {
            return Err(self.foreign_section(name));
        }
        if self.ram_section.is_some() {
            return Err(self.corrupt("a second start of the memory"));
        }
        if version_id != 4 {
            return Err(self.corrupt(format!("memory in format version {version_id}")));
        }
        self.ram_section = Some(section_id);
        self.state = State::Records(Section::Start);
        Ok(Some((
            1 + reader.used(),
            Event::RamStart {
                section_id,
                instance_id,
                version_id,
            },
        )))
    }

    fn foreign_section(&self, name: &[u8]) -> crate::ParseError {
        let shown = format!("the section {}", String::from_utf8_lossy(name));
        match name {
            b"dirty-bitmap" => self.unsupported(shown, "switch the capability `dirty-bitmaps` off"),
            b"block" => self.unsupported(
                shown,
                "switch the capability `block` off: disks are not moved",
            ),
            _ if name.ends_with(b"/vfio") => {
                self.unsupported(shown, "unplug the passed-through device first")
            }
            _ => self.unsupported(shown, "this device cannot be moved by unmoor"),
        }
    }

    fn early_start<'a>(&mut self, input: &'a [u8]) -> Step<'a> {
        let mut reader = Reader::new(&input[1..]);
        let (Some(section_id), Some(name), Some(_), Some(_)) =
            (reader.be32(), reader.str8(), reader.be32(), reader.be32())
        else {
            return Ok(None);
        };
        // QEMU writes them with the START of the memory and after its END, never in between.
        if self.parts || name.ends_with(b"/vfio") {
            return Err(self.foreign_section(name));
        }
        self.state = State::Early { section_id };
        let used = 1 + reader.used();
        Ok(Some((
            used,
            Event::EarlyFull {
                raw: &input[..used],
                last: false,
            },
        )))
    }

    /// The body of a device section has no length: its end is the footer with the section's own
    /// number, followed by the beginning of something that may come next.
    pub(super) fn early<'a>(&mut self, section_id: u32, input: &'a [u8]) -> Step<'a> {
        const FOOTER: usize = 5;
        let mut footer = [raw::FOOTER, 0, 0, 0, 0];
        footer[1..].copy_from_slice(&section_id.to_be_bytes());
        let next = [raw::START, raw::PART, raw::END, raw::FULL, raw::COMMAND];
        let end = input
            .windows(FOOTER + 1)
            .position(|window| window[..FOOTER] == footer && next.contains(&window[FOOTER]));
        if let Some(end) = end {
            self.state = State::Sections;
            let used = end + FOOTER;
            let raw = &input[..used];
            return Ok(Some((used, Event::EarlyFull { raw, last: true })));
        }
        // The footer may have begun in the last bytes.
        let sure = input.len().saturating_sub(FOOTER);
        if sure == 0 {
            return Ok(None);
        }
        let raw = &input[..sure];
        Ok(Some((sure, Event::EarlyFull { raw, last: false })))
    }
}
