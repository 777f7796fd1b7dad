//! What QEMU keeps the guest's memory in.

use lab::VmOptions;

/// What QEMU keeps the guest's memory in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Its own memory.
    Private,
    /// A file that others can open.
    Shared,
}

impl Backend {
    /// Both.
    pub const ALL: [Backend; 2] = [Backend::Private, Backend::Shared];

    /// The VM with its memory in this.
    pub fn give_to(self, mut options: VmOptions) -> VmOptions {
        if self == Backend::Shared {
            // With the name that the block has in a QEMU without such a backend.
            let object = format!(
                "memory-backend-memfd,id=pc.ram,size={},share=on,x-use-canonical-path-for-ramblock-id=off",
                options.memory
            );
            let words = ["-object", &object, "-machine", "memory-backend=pc.ram"];
            options.extra.extend(words.map(str::to_owned));
        }
        options
    }
}
