//! Written pages by what the write did.

use crate::record::WriteClass;
use serde::Serialize;

/// Written pages by what the write did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ByClass {
    pub copy: u64,
    pub private_file: u64,
    pub copy_or_reuse: u64,
    pub reuse: u64,
    pub first_touch: u64,
    pub zero_page: u64,
}

impl ByClass {
    /// Adds pages.
    pub fn add(&mut self, class: WriteClass, pages: u64) {
        let count = match class {
            WriteClass::Copy => &mut self.copy,
            WriteClass::PrivateFile => &mut self.private_file,
            WriteClass::CopyOrReuse => &mut self.copy_or_reuse,
            WriteClass::Reuse => &mut self.reuse,
            WriteClass::FirstTouch => &mut self.first_touch,
            WriteClass::ZeroPage => &mut self.zero_page,
        };
        *count = count.saturating_add(pages);
    }

    /// Adds another's pages.
    pub fn add_all(&mut self, other: &Self) {
        let Self { copy, private_file, copy_or_reuse, reuse, first_touch, zero_page } = *other;
        self.add(WriteClass::Copy, copy);
        self.add(WriteClass::PrivateFile, private_file);
        self.add(WriteClass::CopyOrReuse, copy_or_reuse);
        self.add(WriteClass::Reuse, reuse);
        self.add(WriteClass::FirstTouch, first_touch);
        self.add(WriteClass::ZeroPage, zero_page);
    }

    /// Pages of which the kernel made a copy: of memory shared by fork, or of a file. Those of which it cannot be told
    /// whether they were copied or reused are in it: it is an upper bound where there are any.
    pub fn copied(&self) -> u64 {
        self.copy.saturating_add(self.private_file).saturating_add(self.copy_or_reuse)
    }

    /// All of them.
    pub fn written(&self) -> u64 {
        self.copied().saturating_add(self.reuse).saturating_add(self.first_touch).saturating_add(self.zero_page)
    }
}

/// Tells whether a page of this class is counted as copied.
pub fn is_copied(class: WriteClass) -> bool {
    matches!(class, WriteClass::Copy | WriteClass::PrivateFile | WriteClass::CopyOrReuse)
}
