//! What a stream consists of.

/// A RAM block, by its position in the stream's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u16);

/// One entry of the stream's list of RAM blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamBlock {
    /// QEMU's name for it, for example `pc.ram`.
    pub name: String,
    /// Length in bytes.
    pub used_length: u64,
    /// Host page size in bytes; named by a source with `postcopy-ram` for blocks of huge pages.
    pub page_size: Option<u64>,
    /// Address of the memory region; named by a source with `x-ignore-shared`.
    pub region_addr: Option<u64>,
}

impl RamBlock {
    /// Of pages of the usual size, at no address that matters.
    pub fn plain(name: impl Into<String>, used_length: u64) -> Self {
        RamBlock {
            name: name.into(),
            used_length,
            page_size: None,
            region_addr: None,
        }
    }
}

/// One step through a stream. Emitting every event of a stream reproduces its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// Magic and file version (3).
    FileHeader,
    /// The configuration section's machine type.
    Configuration {
        /// For example `pc-q35-10.0`.
        machine: &'a str,
    },
    /// Configuration subsection: the guest page size as a power of two.
    TargetPageBits(u32),
    /// Configuration subsection: capabilities that change the format, as counted `str8`s.
    Capabilities(&'a [u8]),
    /// Configuration subsection: the VM's UUID.
    Uuid([u8; 16]),
    /// A command between two sections.
    Command {
        /// QEMU's number for it.
        id: u16,
        /// Its payload.
        payload: &'a [u8],
    },
    /// The `ram` section's START header.
    RamStart {
        /// The number that this stream uses for the section.
        section_id: u32,
        /// QEMU's instance number.
        instance_id: u32,
        /// QEMU's version of the section.
        version_id: u32,
    },
    /// The list of RAM blocks; read it through [`Parser::blocks`](crate::Parser::blocks).
    RamBlocks,
    /// A PART of the `ram` section begins.
    RamPart {
        /// The section.
        section_id: u32,
    },
    /// The END of the `ram` section begins.
    RamEnd {
        /// The section.
        section_id: u32,
    },
    /// A page's content.
    Page {
        /// The block.
        block: BlockId,
        /// Offset in the block in bytes.
        offset: u64,
        /// Whether the record left the block's name out.
        continued: bool,
        /// The content, one guest page.
        data: &'a [u8],
    },
    /// A page filled with one byte.
    Zero {
        /// The block.
        block: BlockId,
        /// Offset in the block in bytes.
        offset: u64,
        /// Whether the record left the block's name out.
        continued: bool,
        /// The byte: always 0 from any QEMU in use.
        fill: u8,
    },
    /// A page as the difference to its previous content.
    Xbzrle {
        /// The block.
        block: BlockId,
        /// Offset in the block in bytes.
        offset: u64,
        /// Whether the record left the block's name out.
        continued: bool,
        /// The encoded difference.
        delta: &'a [u8],
    },
    /// A synchronisation mark for multifd channels; means nothing without them.
    MultifdFlush,
    /// The end mark and the footer of a START, PART or END of the `ram` section.
    RamEos {
        /// The section.
        section_id: u32,
    },
    /// A piece of a device section that stands before the first page, as raw bytes; the pieces of
    /// one section follow each other.
    EarlyFull {
        /// The bytes, header and footer included.
        raw: &'a [u8],
        /// Whether the section ends here.
        last: bool,
    },
    /// A piece of the opaque device part, as raw bytes, section headers included.
    Device(&'a [u8]),
    /// The end: the EOF byte, and the description if there is one.
    End {
        /// The JSON text; absent where the machine suppresses it.
        vmdesc: Option<&'a [u8]>,
    },
}

/// Commands by their number.
pub mod command {
    /// The destination is to open its return path.
    pub const OPEN_RETURN_PATH: u16 = 1;
    /// The destination is to answer with the value.
    pub const PING: u16 = 2;
    /// Post-copy may follow; names the sizes of pages.
    pub const POSTCOPY_ADVISE: u16 = 3;
    /// The destination is to serve page faults.
    pub const POSTCOPY_LISTEN: u16 = 4;
    /// The destination is to run the VM.
    pub const POSTCOPY_RUN: u16 = 5;
    /// What the destination has of some pages is not valid any more.
    pub const POSTCOPY_RAM_DISCARD: u16 = 6;
    /// A stream of a given length follows, to be read before it is acted upon.
    pub const PACKAGED: u16 = 7;
    /// The destination is to go on after its stream has broken off.
    pub const POSTCOPY_RESUME: u16 = 9;
    /// The destination is to say what it has of a block.
    pub const RECV_BITMAP: u16 = 10;
    /// The source has stopped its VM (machine types from 10.0 on).
    pub const SWITCHOVER_START: u16 = 11;
}

/// The numbers of the format.
pub(crate) mod raw {
    pub(crate) const MAGIC: u32 = 0x5145_564d;
    pub(crate) const VERSION: u32 = 3;
    pub(crate) const MULTIFD_MAGIC: u32 = 0x1122_3344;

    pub(crate) const EOF: u8 = 0x00;
    pub(crate) const START: u8 = 0x01;
    pub(crate) const PART: u8 = 0x02;
    pub(crate) const END: u8 = 0x03;
    pub(crate) const FULL: u8 = 0x04;
    pub(crate) const SUBSECTION: u8 = 0x05;
    pub(crate) const VMDESCRIPTION: u8 = 0x06;
    pub(crate) const CONFIGURATION: u8 = 0x07;
    pub(crate) const COMMAND: u8 = 0x08;
    pub(crate) const FOOTER: u8 = 0x7e;

    pub(crate) const FLAG_ZERO: u64 = 0x002;
    pub(crate) const FLAG_MEM_SIZE: u64 = 0x004;
    pub(crate) const FLAG_PAGE: u64 = 0x008;
    pub(crate) const FLAG_EOS: u64 = 0x010;
    pub(crate) const FLAG_CONTINUE: u64 = 0x020;
    pub(crate) const FLAG_XBZRLE: u64 = 0x040;
    pub(crate) const FLAG_HOOK: u64 = 0x080;
    pub(crate) const FLAG_COMPRESS: u64 = 0x100;
    pub(crate) const FLAG_MULTIFD_FLUSH: u64 = 0x200;
}
