//! Objects on copied pages of images of the library's heap, as the images' own files tell them.

use super::types::Typist;
use crate::analyse::objects::{FirstWrites, ImageEvidence, marked, on_page};
use crate::record::image::{self, FOOTER, Footer, Part, Unread, WORD};
use crate::record::{Block, End, Objects, OnPage, Place, WriteClass};
use crate::stacks::names::Names;
use crate::trace::link::{CodeMapping, Image};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

/// The number of copied pages of an image that are told one by one, as in reports of the library.
const TOLD_MAX: usize = 5000;
/// The most bytes of an arena's name that are told.
const NAME_MAX: usize = 4096;
/// Numbers of places that are given here begin so high: the tracer gives its own from 1.
const FIRST_PLACE: u32 = 1 << 31;

/// The images that were heard of.
#[derive(Default)]
pub struct Images {
    /// By inode; why not, where a file tells nothing.
    files: HashMap<u64, Result<Told, String>>,
    /// Those of intervals that are about to close, with the code of their process.
    waiting: HashMap<u32, (Vec<Image>, Vec<CodeMapping>)>,
    /// The numbers of places that were given.
    places: HashMap<(u32, u64), u32>,
}

/// An image's file.
struct Told {
    file: File,
    footer: Footer,
    name: String,
}

/// Records that are told before an interval's end.
#[derive(Default)]
pub struct EarlyRecords {
    pub places: Vec<Place>,
    pub objects: Vec<Objects>,
    /// Why nothing is told, one sentence for each image.
    pub unknown: Vec<String>,
}

impl Images {
    /// An interval has copies in these images, whose files are open in the process `tracer`.
    pub fn add(&mut self, interval: u32, images: Vec<Image>, code: Vec<CodeMapping>, tracer: i32) {
        for image in &images {
            let open = || {
                let descriptor = image.descriptor.ok_or("its file could not be opened")?;
                let file = File::open(format!("/proc/{tracer}/fd/{descriptor}"));
                Told::new(file.map_err(|e| format!("its file could not be opened: {e}"))?)
            };
            self.files.entry(image.inode).or_insert_with(open);
        }
        self.waiting.insert(interval, (images, code));
    }

    /// Tells whether an interval has such copies.
    pub fn has(&self, interval: u32) -> bool {
        self.waiting.contains_key(&interval)
    }

    /// Tells what lies on the pages of an interval that closes.
    pub fn tell(&mut self, end: &End, written: &FirstWrites, names: &mut Names) -> EarlyRecords {
        let mut news = EarlyRecords::default();
        let Some((images, code)) = self.waiting.remove(&end.interval) else { return news };
        for image in images {
            let objects = match self.files.get(&image.inode) {
                Some(Ok(told)) => {
                    let evidence = ImageEvidence { contents: &end.contents, written };
                    let places = &mut self.places;
                    let typist = Typist::new(names, &code);
                    told.objects(end, &image, &evidence, typist, |address| place(places, &mut news, &code, address))
                }
                Some(Err(why)) => Err(why.clone()),
                None => Err("it was not heard of".to_owned()),
            };
            match objects {
                Ok(objects) => news.objects.push(objects),
                Err(why) => {
                    news.unknown.push(format!("what lies on copied pages of a frozen heap is not known: {why}"))
                }
            }
        }
        news
    }
}

/// The number of the place of an address; 0 where no file's code is there.
fn place(places: &mut HashMap<(u32, u64), u32>, news: &mut EarlyRecords, code: &[CodeMapping], address: u64) -> u32 {
    let Some(map) = code.iter().find(|map| (map.start..map.end).contains(&address)) else { return 0 };
    let (module, offset) = (map.module, (address - map.start).saturating_add(map.offset));
    let next = FIRST_PLACE + places.len() as u32;
    *places.entry((module, offset)).or_insert_with(|| {
        news.places.push(Place { code: next, module: Some(module), offset, pid: 0 });
        next
    })
}

impl Told {
    fn new(file: File) -> Result<Self, String> {
        let unreadable = |e: io::Error| unreadable(&e);
        let len = file.metadata().map_err(unreadable)?.size();
        let mut bytes = vec![0; FOOTER];
        if let Some(at) = len.checked_sub(FOOTER as u64) {
            file.read_exact_at(&mut bytes, at).map_err(unreadable)?;
        }
        let footer = Footer::parse(&bytes, len).map_err(|why| match why {
            Unread::NoFooter => {
                "its file does not say what it holds: the library is older than this cowbell".to_owned()
            }
            Unread::Version(version) => {
                format!("its file says what it holds in version {version}, which this cowbell does not read")
            }
            Unread::Damaged => "its file contradicts itself".to_owned(),
        })?;
        let mut name = vec![0; usize::try_from(footer.name.count).unwrap_or(0).min(NAME_MAX)];
        file.read_exact_at(&mut name, footer.name.at).map_err(unreadable)?;
        Ok(Self { file, footer, name: String::from_utf8_lossy(&name).into_owned() })
    }

    fn objects(
        &self,
        end: &End,
        image: &Image,
        evidence: &ImageEvidence<'_>,
        mut typist: Typist<'_>,
        place: impl FnMut(u64) -> u32,
    ) -> Result<Objects, String> {
        let footer = &self.footer;
        if !image.parts.iter().all(|&(start, end, offset)| footer.is_at(start, end, offset)) {
            return Err("its file is mapped elsewhere than where it was frozen".to_owned());
        }
        let (mut pages, mut untold) = (Vec::new(), 0);
        let mut stacks = Stacks { told: self, numbers: HashMap::new(), stacks: Vec::new(), place };
        for page in copied(end, image, evidence.written.page_size) {
            if pages.len() == TOLD_MAX {
                untold += 1;
                continue;
            }
            let blocks = self.blocks(page, evidence.written.page_size, &mut stacks);
            let mut page = on_page(page, &blocks.map_err(|e| unreadable(&e))?, evidence);
            self.name_types(&mut page, &mut typist).map_err(|e| unreadable(&e))?;
            pages.push(page);
        }
        let Footer { start, len, generation, recorded, .. } = *footer;
        let (interval, arena, stacks) = (end.interval, self.name.clone(), stacks.stacks);
        let types = typist.types();
        Ok(Objects { interval, arena, generation, start, len, recorded, pages, untold, types, stacks })
    }

    /// Names the types of a page's blocks that are told one by one, and the fields of the bytes that are.
    fn name_types(&self, page: &mut OnPage, typist: &mut Typist<'_>) -> io::Result<()> {
        for block in page.blocks.iter_mut().filter(|block| block.stack.is_some()) {
            let offset = block.start - self.footer.start;
            for (_, asked, stack) in self.allocations(offset, offset + 1)? {
                let bytes = marked(page.changed, page.written).map(|byte| (byte, page.page + u64::from(byte)));
                let bytes = bytes.filter_map(|(byte, at)| Some((byte, at.checked_sub(block.start)?)));
                block.of = typist.name(&self.calls(stack)?, asked, bytes, &mut page.fields);
            }
        }
        Ok(())
    }

    /// The blocks that a page lies in.
    fn blocks(
        &self,
        page: u64,
        page_size: u64,
        stacks: &mut Stacks<'_, impl FnMut(u64) -> u32>,
    ) -> io::Result<Vec<Block>> {
        let (mut blocks, mut at, mut unit) = (Vec::new(), page, None);
        while at < page + page_size {
            let Some(number) = self.footer.unit_of(at) else { break };
            let words = match unit {
                Some((of, words)) if of == number => words,
                _ => words::<3>(&self.file, self.footer.units, number)?,
            };
            unit = Some((number, words));
            let Some((start, len)) = image::block_at(words, at) else { break };
            blocks.push(Block { start, len, stack: None, of: None });
            at = start + len;
        }
        let Some(first) = blocks.first() else { return Ok(blocks) };
        for (offset, _, stack) in
            self.allocations(first.start - self.footer.start, page + page_size - self.footer.start)?
        {
            let start = self.footer.start + offset;
            if let Ok(nth) = blocks.binary_search_by_key(&start, |block| block.start)
                && let Some(block) = blocks.get_mut(nth)
            {
                block.stack = stacks.number(stack)?;
            }
        }
        Ok(blocks)
    }

    /// The recorded allocations that begin between two offsets from the image's start: where, of how many bytes, and by which of the file's
    /// stacks.
    fn allocations(&self, from: u64, to: u64) -> io::Result<Vec<(u64, u64, u32)>> {
        let part = self.footer.allocations;
        let (mut low, mut high) = (0, part.count);
        while low < high {
            let middle = low.midpoint(high);
            let [offset, _] = words::<2>(&self.file, part, middle)?;
            if offset < from { low = middle + 1 } else { high = middle }
        }
        let mut found = Vec::new();
        for nth in low..part.count {
            let (offset, asked, stack) = image::allocation(words(&self.file, part, nth)?);
            if offset >= to {
                break;
            }
            found.extend(stack.map(|stack| (offset, asked, stack)));
        }
        Ok(found)
    }

    /// The calls of one of the file's stacks.
    fn calls(&self, stack: u32) -> io::Result<Vec<u64>> {
        let end = |nth: u64| words::<1>(&self.file, self.footer.ends, nth).map(|[end]| end);
        let nth = u64::from(stack);
        let begin = if nth == 0 { 0 } else { end(nth - 1)? };
        (begin..end(nth)?).map(|nth| words::<1>(&self.file, self.footer.calls, nth).map(|[call]| call)).collect()
    }
}

/// The stacks of an image that were needed so far.
struct Stacks<'a, P> {
    told: &'a Told,
    /// By their numbers in the file.
    numbers: HashMap<u32, u32>,
    stacks: Vec<Vec<u32>>,
    /// The number of the place of an address.
    place: P,
}

impl<P: FnMut(u64) -> u32> Stacks<'_, P> {
    fn number(&mut self, stack: u32) -> io::Result<Option<u32>> {
        if let Some(&number) = self.numbers.get(&stack) {
            return Ok(Some(number));
        }
        let number = self.stacks.len() as u32;
        self.stacks.push(self.told.calls(stack)?.into_iter().map(&mut self.place).collect());
        self.numbers.insert(stack, number);
        Ok(Some(number))
    }
}

fn unreadable(e: &io::Error) -> String {
    format!("its file could not be read: {e}")
}

/// An entry of so many words.
fn words<const COUNT: usize>(file: &File, part: Part, nth: u64) -> io::Result<[u64; COUNT]> {
    if nth >= part.count {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut bytes = [0; 3 * WORD];
    let len = COUNT * WORD;
    let entry = bytes.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
    file.read_exact_at(entry, part.at + nth * len as u64)?;
    let read = bytes.as_chunks::<WORD>().0;
    Ok(std::array::from_fn(|nth| read.get(nth).map_or(0, |word| u64::from_ne_bytes(*word))))
}

/// The copied pages of an interval in the mappings of an image, ascending.
fn copied(end: &End, image: &Image, page_size: u64) -> impl Iterator<Item = u64> {
    let is_copy = |class| matches!(class, WriteClass::Copy | WriteClass::CopyOrReuse | WriteClass::PrivateFile);
    let pages = end.pages.iter().filter(move |run| is_copy(run.class));
    let pages = pages.flat_map(move |run| (0..run.pages).map(move |nth| run.start + nth * page_size));
    let parts = image.parts.clone();
    pages.filter(move |page| parts.iter().any(|&(start, end, _)| (start..end).contains(page)))
}
