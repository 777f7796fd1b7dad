//! Memory that this machine really has.

use std::hint::black_box;

/// More than a move of the benchmark's guest takes: the destination's memory and what is held.
const BYTES: usize = 3 << 30;
const PAGE: usize = 4096;

/// Memory that has been touched. A machine that is a VM itself may get its memory from a hypervisor
/// page by page when it is first touched, and lose it again when it is not used: a move that ran
/// into that would measure the hypervisor. So memory is touched beforehand and let go of right
/// before the move, which then finds it warm; in all modes alike.
#[derive(Debug)]
pub(super) struct Warm(Vec<u8>);

impl Warm {
    /// Touches memory.
    pub(super) fn up() -> Self {
        let mut memory = vec![0u8; BYTES];
        for page in memory.chunks_mut(PAGE) {
            page[0] = 1;
        }
        Warm(black_box(memory))
    }

    /// Lets go of it.
    pub(super) fn release(self) {
        drop(self.0);
    }
}
