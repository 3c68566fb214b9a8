//! Single words of page tables.

use super::baseline::page_bytes;
use cowbell::sys::Errno;
use cowbell::sys::map::Range;
use cowbell::sys::pagemap::{Entry, Pagemap};
use std::cell::RefCell;

/// One page's word.
///
/// # Errors
/// The process is gone.
pub fn entry(pagemap: &Pagemap, page: u64) -> Result<Entry, Errno> {
    let mut found = Entry::empty();
    let range = Range { start: page as usize, len: page_bytes() as usize };
    pagemap.read(range, |_, entry| found = entry)?;
    Ok(found)
}

/// Words of page tables for one look at many pages: read in blocks, each kept until another is asked for.
pub struct Entries<'a> {
    pagemap: &'a Pagemap,
    block: RefCell<(u64, Vec<Entry>)>,
}

/// Pages a block. Page tables are walked for each of them, whether it is asked for or not.
const BLOCK_PAGES: u64 = 64;

impl<'a> Entries<'a> {
    /// Nothing is read yet.
    pub fn new(pagemap: &'a Pagemap) -> Self {
        Self { pagemap, block: RefCell::new((0, Vec::new())) }
    }

    /// One page's word.
    ///
    /// # Errors
    /// The process is gone.
    pub fn at(&self, page: u64) -> Result<Entry, Errno> {
        let bytes = page_bytes();
        let first = page / (bytes * BLOCK_PAGES) * bytes * BLOCK_PAGES;
        let nth = ((page - first) / bytes) as usize;
        let mut block = self.block.borrow_mut();
        if block.0 != first || block.1.is_empty() {
            block.1.clear();
            let range = Range { start: first as usize, len: (bytes * BLOCK_PAGES) as usize };
            let entries = &mut block.1;
            let read = self.pagemap.read(range, |_, entry| entries.push(entry));
            block.0 = first;
            // At the end of what can be mapped a block is short.
            read.or_else(|e| if nth < block.1.len() { Ok(()) } else { Err(e) })?;
        }
        block.1.get(nth).copied().ok_or(Errno::SRCH)
    }
}
