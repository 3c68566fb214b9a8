//! Images of the library's heap in which an interval has copies: their files are opened here, while somebody has them, and read by the front, for
//! which nobody waits.

use super::Tracer;
use super::files::open_memfd;
use super::link::{CodeMapping, Image, TracerMessage};
use super::maps::{self, BackedMapping};
use super::watch::OpenInterval;
use crate::record::image::NAME;
use crate::record::{End, PageRun, WriteClass};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;

/// The most files that are held open; of further ones nothing is told.
const FILES_MAX: usize = 256;

/// The files that were opened, by inode, as long as the tracer lives: so no other file gets their numbers.
#[derive(Debug, Default)]
pub struct Images(HashMap<u64, File>);

impl Images {
    /// Tells whether no file is open.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The descriptor of the file that a mapping of process `pid` shows; `None` where it cannot be opened.
    fn descriptor(&mut self, pid: i32, map: &BackedMapping) -> Option<i32> {
        if let Some(file) = self.0.get(&map.file.1) {
            return Some(file.as_raw_fd());
        }
        let file = open_memfd(pid, map).filter(|_| self.0.len() < FILES_MAX)?;
        let descriptor = file.as_raw_fd();
        self.0.insert(map.file.1, file);
        Some(descriptor)
    }
}

fn is_copy(run: &&PageRun) -> bool {
    matches!(run.class, WriteClass::Copy | WriteClass::CopyOrReuse | WriteClass::PrivateFile)
}

impl Tracer {
    /// Tells the front of the images in which an interval that is about to close has copies, before its end. The process stands still.
    pub(super) fn tell_images(&mut self, watch: &mut OpenInterval, end: &End) {
        let is_image = |map: &BackedMapping| map.mapping.name == NAME;
        let may_be = |run: &PageRun| watch.space.find(run.start).is_none_or(is_image);
        // A page that lies in no mapping that was there at first is of one that came since.
        if !end.pages.iter().filter(is_copy).any(may_be) {
            return;
        }
        let now = maps::read(watch.pid).unwrap_or_default();
        let mut images: Vec<Image> = Vec::new();
        for map in now.iter().filter(|map| is_image(map) && has_copies(map, end)) {
            let part = (map.mapping.start, map.mapping.end, map.mapping.offset);
            match images.iter_mut().find(|image| image.inode == map.file.1) {
                Some(image) => image.parts.push(part),
                None => {
                    let descriptor = self.images.descriptor(watch.pid, map);
                    images.push(Image { inode: map.file.1, descriptor, parts: vec![part] });
                }
            }
        }
        if images.is_empty() {
            return;
        }
        let code = watch.code_modules();
        let code =
            code.into_iter().map(|(start, end, offset, module)| CodeMapping { start, end, offset, module }).collect();
        self.say_news();
        self.link.say(&TracerMessage::Images { images: end.interval, of: images, code });
    }
}

fn has_copies(map: &BackedMapping, end: &End) -> bool {
    let page = super::baseline::page_bytes();
    let first = end.pages.partition_point(|run| run.start + run.pages * page <= map.mapping.start);
    end.pages.iter().skip(first).take_while(|run| run.start < map.mapping.end).any(|run| is_copy(&run))
}
