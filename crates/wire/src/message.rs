//! Control messages: small, rare, encoded with postcard.
//!
//! The position of a variant in [`Message`] and [`AbortCode`] is its number on the wire: new ones
//! go at the end, none is ever removed. The golden-byte tests hold this.

use serde::{Deserialize, Serialize};

use crate::{PageRun, WireError};

/// A set of optional parts of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Page contents are compared by XXH3-128 with the session's seed.
    pub const XXH3_128: Capabilities = Capabilities(1 << 0);
    /// The outcome can be asked for on a new connection ([`Message::Verdict`]).
    pub const VERDICT: Capabilities = Capabilities(1 << 1);
    /// The destination thaws frozen processes and says so ([`Message::Thawed`]).
    pub const THAWED: Capabilities = Capabilities(1 << 2);
    /// A lost connection can be resumed ([`Message::Resume`]).
    pub const RESUME: Capabilities = Capabilities(1 << 3);
    /// Batches of pages may be compressed ([`PackedFrame`](crate::PackedFrame)).
    pub const PACKED: Capabilities = Capabilities(1 << 4);
    /// A session may use several connections ([`Message::ResumeOver`]); needs `RESUME`.
    pub const SEVERAL: Capabilities = Capabilities(1 << 5);
    /// Pages may be told by what the peer has already ([`Form::Recalled`](crate::Form::Recalled));
    /// needs `PACKED`.
    pub const RECALLED: Capabilities = Capabilities(1 << 6);
    /// Part of the memory may follow after the switchover ([`Message::MayFollow`]).
    pub const FOLLOWING: Capabilities = Capabilities(1 << 7);
    /// The source's QEMU hears that the destination's agrees to the switchover
    /// ([`Message::SwitchoverAck`]). Offered by a source whose QEMU has a return path.
    pub const SWITCHOVER_ACK: Capabilities = Capabilities(1 << 8);
    /// Everything that this release knows.
    pub const OURS: Capabilities = Capabilities(
        Self::REQUIRED.0
            | Self::THAWED.0
            | Self::RESUME.0
            | Self::PACKED.0
            | Self::SEVERAL.0
            | Self::RECALLED.0
            | Self::FOLLOWING.0
            | Self::SWITCHOVER_ACK.0,
    );
    /// What this release cannot do without.
    pub const REQUIRED: Capabilities = Capabilities(Self::XXH3_128.0 | Self::VERDICT.0);

    /// Without resuming a lost connection and what needs that, and without memory that follows: what is
    /// left where somebody else decides where the VM runs.
    pub const OF_A_MANAGED_VM: Capabilities = Capabilities(
        Self::REQUIRED.0
            | Self::PACKED.0
            | Self::RECALLED.0
            | Self::THAWED.0
            | Self::SWITCHOVER_ACK.0,
    );

    /// Whether all of the other's parts are in this set.
    pub fn has(self, other: Capabilities) -> bool {
        self.0 & other.0 == other.0
    }

    /// This set without the other's parts.
    #[must_use]
    pub fn without(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 & !other.0)
    }

    /// What both sides have, unless one requires more than the other offers.
    pub fn negotiate(
        self,
        peer_offers: Capabilities,
        peer_requires: Capabilities,
    ) -> Result<Capabilities, WireError> {
        let missing = peer_requires.0 & !self.0;
        if missing != 0 {
            return Err(WireError::MissingCapabilities(missing));
        }
        Ok(Capabilities(self.0 & peer_offers.0))
    }
}

/// The source's opening message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Names this migration on both hosts and in every message about it.
    pub session: [u8; 16],
    /// Seed of the page hashes: random for each session, so that nobody can prepare two contents
    /// with the same hash.
    pub seed: u64,
    /// Release of unmoor, for people.
    pub software: String,
    /// Optional parts that this side can do.
    pub offers: Capabilities,
    /// Optional parts that this side cannot do without.
    pub requires: Capabilities,
    /// Facts about the VM as a JSON object, so that either side may know fields that the other
    /// does not.
    pub vm_facts: String,
}

/// The destination's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// Release of unmoor, for people.
    pub software: String,
    /// What both sides will use.
    pub uses: Capabilities,
    /// Facts about the waiting QEMU as a JSON object.
    pub vm_facts: String,
}

/// One of QEMU's RAM blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// QEMU's name for it.
    pub name: String,
    /// Length in bytes.
    pub used_length: u64,
    /// Host page size in bytes where the stream names it.
    pub page_size: Option<u64>,
    /// Address of the memory region where the stream names it.
    pub region_addr: Option<u64>,
}

/// The head of the `ram` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamSetup {
    /// The number that this stream uses for the section.
    pub section_id: u32,
    /// QEMU's instance number (0).
    pub instance_id: u32,
    /// QEMU's version of the section (4).
    pub version_id: u32,
    /// Guest page size in bytes: the unit of page indexes.
    pub page_size: u32,
    /// The RAM blocks; frames name them by their position here.
    pub blocks: Vec<Block>,
}

/// What a half knows of all memory that travelled: equal on both sides exactly if every page
/// arrived with the content that was sent last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Digest {
    /// Pages known to the table.
    pub pages: u64,
    /// Sum over all pages of a hash of (block, page index, content hash).
    pub sum: u128,
}

/// How the VM started at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Whether the VM runs (a QEMU started with `-S` stays paused).
    pub running: bool,
    /// Microseconds between receiving `Commit` and QEMU's RESUME event, on the destination's
    /// clock.
    pub resume_after_us: u64,
}

/// How frozen processes were thawed at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thawed {
    /// How many; nothing if the agent could not be asked, so that they thaw by themselves when
    /// their time is up.
    pub processes: Option<u32>,
    /// Microseconds between QEMU's RESUME event and the agent's answer, on the destination's
    /// clock.
    pub after_us: u64,
}

/// How the memory that followed has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Followed {
    /// Whether all of it is what was sent.
    pub equal: bool,
    /// Pages that the VM asked for.
    pub faults: u64,
    /// Half of them had come to QEMU within so many microseconds.
    pub latency_p50_us: u64,
    /// And 99 of a hundred within so many.
    pub latency_p99_us: u64,
    /// And all of them.
    pub latency_max_us: u64,
}

/// Pages of one block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRuns {
    /// The block, by its position in [`RamSetup`].
    pub block: u16,
    /// Which of its pages.
    pub runs: Vec<PageRun>,
}

impl PageRuns {
    /// Most runs in one message.
    pub const MAX: usize = 1 << 16;
}

/// Why a side gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AbortCode {
    /// The user or a time limit ended it.
    Cancelled,
    /// The peer broke the protocol.
    Protocol,
    /// QEMU failed on the sender's side.
    Qemu,
    /// The two VMs do not fit each other.
    Mismatch,
    /// Memory at the destination is not what was sent.
    Digest,
    /// The sender is busy with another migration.
    Busy,
    /// Anything else.
    Other,
    /// The sender knows nothing of what was said on the connection that is to be resumed.
    Forgotten,
}

/// A control message. The order of the variants is the wire format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Source: opens a session.
    Hello(Hello),
    /// Destination: takes part.
    Accept(Accept),
    /// Source: the stream's head, from QEMU's magic to the end of the configuration section.
    Head(Vec<u8>),
    /// Source: the RAM blocks.
    RamSetup(RamSetup),
    /// Source: bytes of QEMU's stream that go through unchanged between RAM sections (early
    /// device sections, commands).
    Through(Vec<u8>),
    /// Source: QEMU has begun another walk over its dirty pages; the number of the one that ended.
    PassEnd(u32),
    /// Source: all memory has been sent.
    RamEnd,
    /// Source: all device state has been sent; its length in bytes and the digest of all memory.
    DeviceEnd {
        /// Bytes of device state.
        bytes: u64,
        /// The source's digest.
        digest: Digest,
    },
    /// Destination: everything is loaded, the digests are equal, the VM can run on `Commit`.
    Ready(Digest),
    /// Source: run the VM. From here on the source never runs it again.
    Commit,
    /// Destination: the VM has been started.
    Committed(Started),
    /// Source: the outcome is known; nothing more follows.
    Bye,
    /// Either side: gives up; valid until `Commit` has been sent.
    Abort {
        /// The kind of reason.
        code: AbortCode,
        /// One sentence for people.
        reason: String,
    },
    /// Either side: still there.
    KeepAlive,
    /// Source (or its guardian), first message on a new connection: the decision taken for a
    /// session whose connection was lost. Answered with `Committed`, or with `Abort`.
    Verdict {
        /// The session.
        session: [u8; 16],
        /// Whether the commit was recorded.
        commit: bool,
    },
    /// Destination, after `Committed`, if both can: what was frozen runs again.
    Thawed(Thawed),
    /// Destination, after `Accept`, if both can resume: what the source shows when it comes back.
    Ticket([u8; 32]),
    /// Either side: all bytes of the other's stream before this have come.
    Ack(u64),
    /// Source, first message on a new connection: the last one was lost.
    Resume {
        /// The session.
        session: [u8; 16],
        /// What the destination has given for it.
        ticket: [u8; 32],
        /// Bytes of the destination's stream that have come.
        received: u64,
    },
    /// Destination: goes on; so many bytes of the source's stream have come.
    Resumed(u64),
    /// Source, first message on a new connection: one more for a session.
    Join {
        /// The session.
        session: [u8; 16],
        /// What the destination has given for it.
        ticket: [u8; 32],
        /// Those of earlier attempts do not count any more.
        attempt: u32,
    },
    /// Destination: it is kept until the source says how many there are.
    Joined,
    /// Source, first message on a new connection: as `Resume`, but from here on over this connection
    /// and those that have joined.
    ResumeOver {
        /// The session.
        session: [u8; 16],
        /// What the destination has given for it.
        ticket: [u8; 32],
        /// Bytes of the destination's stream that have come.
        received: u64,
        /// Connections, this one included.
        connections: u8,
        /// That of those that have joined.
        attempt: u32,
    },
    /// Source, after `Accept` and before `Head`, if both can: part of the memory may follow after
    /// the switchover.
    MayFollow,
    /// Source, before `RamEnd`: these pages follow. What was sent of them before does not count.
    Follows(PageRuns),
    /// Destination, after the switchover: the VM waits for these pages.
    Needs {
        /// The block.
        block: u16,
        /// Which of its pages.
        run: PageRun,
    },
    /// Destination, on a new connection on which it was told of the commit: these pages have not
    /// come.
    Missing {
        /// Which.
        pages: PageRuns,
        /// Whether that is all.
        last: bool,
    },
    /// Source: all that was to follow has been sent; the digest of it.
    AllSent(Digest),
    /// Destination: it is all here, and the source is not needed any more.
    Arrived(Followed),
    /// Destination, after `Head`, if both can: its QEMU agrees to the switchover.
    SwitchoverAck,
}

impl Message {
    /// The variant's name, for messages to people.
    pub fn name(&self) -> &'static str {
        match self {
            Message::Hello(_) => "Hello",
            Message::Accept(_) => "Accept",
            Message::Head(_) => "Head",
            Message::RamSetup(_) => "RamSetup",
            Message::Through(_) => "Through",
            Message::PassEnd(_) => "PassEnd",
            Message::RamEnd => "RamEnd",
            Message::DeviceEnd { .. } => "DeviceEnd",
            Message::Ready(_) => "Ready",
            Message::Commit => "Commit",
            Message::Committed(_) => "Committed",
            Message::Bye => "Bye",
            Message::Abort { .. } => "Abort",
            Message::KeepAlive => "KeepAlive",
            Message::Verdict { .. } => "Verdict",
            Message::Thawed(_) => "Thawed",
            Message::Ticket(_) => "Ticket",
            Message::Ack(_) => "Ack",
            Message::Resume { .. } => "Resume",
            Message::Resumed(_) => "Resumed",
            Message::Join { .. } => "Join",
            Message::Joined => "Joined",
            Message::ResumeOver { .. } => "ResumeOver",
            Message::MayFollow => "MayFollow",
            Message::Follows(_) => "Follows",
            Message::Needs { .. } => "Needs",
            Message::Missing { .. } => "Missing",
            Message::AllSent(_) => "AllSent",
            Message::Arrived(_) => "Arrived",
            Message::SwitchoverAck => "SwitchoverAck",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(message: &Message) -> Vec<u8> {
        postcard::to_stdvec(message).unwrap()
    }

    #[test]
    fn numbers_on_the_wire_are_fixed() {
        let numbered: Vec<(u8, Message)> = vec![
            (2, Message::Head(vec![])),
            (4, Message::Through(vec![])),
            (5, Message::PassEnd(0)),
            (6, Message::RamEnd),
            (8, Message::Ready(Digest::default())),
            (9, Message::Commit),
            (11, Message::Bye),
            (13, Message::KeepAlive),
        ];
        for (number, message) in numbered {
            assert_eq!(bytes(&message)[0], number, "{}", message.name());
        }
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(bytes(&Message::PassEnd(300)), [5, 0xac, 0x02]);
        assert_eq!(
            bytes(&Message::Committed(Started {
                running: true,
                resume_after_us: 5
            })),
            [10, 1, 5]
        );
        assert_eq!(
            bytes(&Message::Abort {
                code: AbortCode::Digest,
                reason: "no".into()
            }),
            [12, 4, 2, b'n', b'o']
        );
        let mut verdict = vec![14];
        verdict.extend([7; 16]);
        verdict.push(1);
        assert_eq!(
            bytes(&Message::Verdict {
                session: [7; 16],
                commit: true
            }),
            verdict
        );
        let thawed = Thawed {
            processes: Some(3),
            after_us: 5,
        };
        assert_eq!(bytes(&Message::Thawed(thawed)), [15, 1, 3, 5]);
        let ticket = [[16].as_slice(), &[9; 32]].concat();
        assert_eq!(bytes(&Message::Ticket([9; 32])), ticket);
        assert_eq!(bytes(&Message::Ack(300)), [17, 0xac, 0x02]);
        let resume = Message::Resume {
            session: [7; 16],
            ticket: [9; 32],
            received: 5,
        };
        let expected = [[18].as_slice(), &[7; 16], &[9; 32], &[5]].concat();
        assert_eq!(bytes(&resume), expected);
        assert_eq!(bytes(&Message::Resumed(5)), [19, 5]);
        let join = Message::Join {
            session: [7; 16],
            ticket: [9; 32],
            attempt: 3,
        };
        let expected = [[20].as_slice(), &[7; 16], &[9; 32], &[3]].concat();
        assert_eq!(bytes(&join), expected);
        assert_eq!(bytes(&Message::Joined), [21]);
        let resume = Message::ResumeOver {
            session: [7; 16],
            ticket: [9; 32],
            received: 5,
            connections: 4,
            attempt: 3,
        };
        let expected = [[22].as_slice(), &[7; 16], &[9; 32], &[5, 4, 3]].concat();
        assert_eq!(bytes(&resume), expected);
        assert_eq!(bytes(&Message::MayFollow), [23]);
        let run = PageRun { first: 5, count: 2 };
        let pages = PageRuns {
            block: 1,
            runs: vec![run],
        };
        assert_eq!(bytes(&Message::Follows(pages.clone())), [24, 1, 1, 5, 2]);
        assert_eq!(bytes(&Message::Needs { block: 1, run }), [25, 1, 5, 2]);
        let missing = Message::Missing { pages, last: true };
        assert_eq!(bytes(&missing), [26, 1, 1, 5, 2, 1]);
        let sent = Message::AllSent(Digest { pages: 3, sum: 4 });
        assert_eq!(bytes(&sent), [27, 3, 4]);
        let followed = Followed {
            equal: true,
            faults: 2,
            latency_p50_us: 3,
            latency_p99_us: 4,
            latency_max_us: 5,
        };
        assert_eq!(bytes(&Message::Arrived(followed)), [28, 1, 2, 3, 4, 5]);
        assert_eq!(bytes(&Message::SwitchoverAck), [29]);
    }

    #[test]
    fn bits_of_capabilities_are_fixed() {
        for (bit, capability) in [
            (0, Capabilities::XXH3_128),
            (1, Capabilities::VERDICT),
            (2, Capabilities::THAWED),
            (3, Capabilities::RESUME),
            (4, Capabilities::PACKED),
            (5, Capabilities::SEVERAL),
            (6, Capabilities::RECALLED),
            (7, Capabilities::FOLLOWING),
            (8, Capabilities::SWITCHOVER_ACK),
        ] {
            assert_eq!(capability, Capabilities(1 << bit));
        }
    }

    #[test]
    fn what_an_older_release_does_not_know_is_not_used() {
        let older = Capabilities::OURS.without(Capabilities::SWITCHOVER_ACK);
        for (ours, theirs) in [(Capabilities::OURS, older), (older, Capabilities::OURS)] {
            let uses = ours.negotiate(theirs, Capabilities::REQUIRED).unwrap();
            assert_eq!(uses, older);
        }
    }

    #[test]
    fn capabilities_intersect_and_requirements_bind() {
        let ours = Capabilities(0b011);
        assert_eq!(
            ours.negotiate(Capabilities(0b110), Capabilities(0b010)),
            Ok(Capabilities(0b010))
        );
        assert_eq!(
            ours.negotiate(Capabilities(0b110), Capabilities(0b110)),
            Err(WireError::MissingCapabilities(0b100))
        );
    }
}
