//! The kinds of objects on copied pages, all intervals together.

use super::Profile;
use super::sum::share;
use crate::record;
use serde::Serialize;
use std::collections::BTreeMap;

/// The objects on copied pages by type, as they lay there when the intervals closed. The bytes of all parts together are those of the
/// pages.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Kinds {
    /// The copied pages that could be read then.
    pub pages: u64,
    /// By bytes, most first.
    pub types: Vec<OfType>,
    /// Bytes of blocks that are in use and hold no object that is known: tables and items of containers, for the most part.
    pub other_bytes: u64,
    /// Bytes of blocks that are free, and of the allocator's own.
    pub free_bytes: u64,
    /// Bytes outside of the blocks of the interpreter's allocator that belong to no object that is known.
    pub outside_bytes: u64,
}

/// The objects of one type.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OfType {
    /// The type's name, as the interpreter keeps it.
    pub name: String,
    /// The objects whose reference count lies on a copied page.
    pub objects: u64,
    /// The bytes of copied pages that they and others of the type take.
    pub bytes: u64,
    /// The type's part of the copied pages that could be read.
    pub share: f64,
}

/// The kinds on the copied pages of all intervals; `None` where none was looked at.
pub fn kinds(profile: &Profile) -> Option<Kinds> {
    let mut types: BTreeMap<&str, OfType> = BTreeMap::new();
    let mut all = Kinds::default();
    for record::Kinds { pages, types: found, other_bytes, free_bytes, outside_bytes } in &profile.kinds {
        all.pages = all.pages.saturating_add(*pages);
        all.other_bytes = all.other_bytes.saturating_add(*other_bytes);
        all.free_bytes = all.free_bytes.saturating_add(*free_bytes);
        all.outside_bytes = all.outside_bytes.saturating_add(*outside_bytes);
        for record::OfType { name, objects, bytes } in found {
            let of_type = types.entry(name).or_default();
            of_type.objects = of_type.objects.saturating_add(*objects);
            of_type.bytes = of_type.bytes.saturating_add(*bytes);
        }
    }
    let bytes = all.pages.saturating_mul(profile.page_size());
    let named = |(name, of_type): (&str, OfType)| OfType {
        name: name.to_owned(),
        share: share(of_type.bytes, bytes),
        ..of_type
    };
    all.types = types.into_iter().map(named).collect();
    all.types.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
    (all.pages > 0).then_some(all)
}
