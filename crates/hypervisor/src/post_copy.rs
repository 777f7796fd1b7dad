//! Whether a destination QEMU can run a VM before all of its memory is there.

use std::collections::BTreeMap;

use crate::settings::POST_COPY;
use crate::{Error, Vm};

/// What pages have to be: QEMU takes larger ones whole and in order only.
const PAGE: u64 = 4096;

impl Vm {
    /// Why not, in words that say what to do; nothing if it can. QEMU is asked to, and asked not
    /// to again: it looks at its host (userfaultfd, locked memory) before it agrees.
    pub fn hindrance_of_post_copy(&mut self) -> Result<Option<String>, Error> {
        let Some(before) = self.capabilities()?.get(POST_COPY).copied() else {
            return Ok(Some("QEMU does not know `postcopy-ram`".to_owned()));
        };
        let blocks = self.host_ram()?;
        if let Some(block) = blocks.iter().find(|block| block.page_size != PAGE) {
            return Ok(Some(format!(
                "RAM block `{}` is made of pages of {} KiB: it takes pages of 4 KiB (a memory backend without hugetlb)",
                block.block,
                block.page_size >> 10
            )));
        }
        match self.set_capabilities(&BTreeMap::from([(POST_COPY.to_owned(), true)])) {
            Ok(()) => {}
            Err(Error::Refused { desc, .. }) => {
                return Ok(Some(format!(
                    "{desc} (QEMU needs userfaultfd: run it as root, or set vm.unprivileged_userfaultfd=1)"
                )));
            }
            Err(error) => return Err(error),
        }
        self.set_capabilities(&BTreeMap::from([(POST_COPY.to_owned(), before)]))?;
        Ok(None)
    }
}
