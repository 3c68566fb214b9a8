use super::super::fixture::{Block, Directory};
use super::*;

fn allocated(block: &Block, types: &mut DebugTypes) -> Option<AllocatedType> {
    types.allocated(&block.calls, block.len)
}

/// The types of the program, and its blocks by name.
fn typed(directory: &Directory, flags: &[&str]) -> (Option<DebugTypes>, HashMap<String, Block>) {
    let (program, blocks) = directory.typed(flags);
    (DebugTypes::read(&File::open(program).unwrap()), blocks)
}

#[test]
fn blocks_have_the_type_that_the_program_gave_them() {
    for flags in [["-Copt-level=3", "-Cdebuginfo=2"], ["-Copt-level=0", "-Cdebuginfo=2"]] {
        let directory = Directory::new();
        let (types, blocks) = typed(&directory, &flags);
        let mut types = types.expect("debug information");
        let mut name = |block: &str| {
            let of = allocated(&blocks[block], &mut types)?;
            types.type_name(of)
        };
        let expected = [
            ("box", "typed::shop::Node"),
            ("arc", "alloc::sync::ArcInner<typed::shop::Shared>"),
            ("vec", "[typed::shop::Node]"),
            ("push", "[typed::shop::Inner]"),
            ("push_other", "[typed::shop::Other]"),
            ("map", "hash table of (u32, typed::shop::Inner)"),
            ("insert", "hash table of (u32, typed::shop::Inner)"),
            ("tree", "alloc::collections::btree::node::LeafNode<u32, typed::shop::Inner>"),
            ("string", "[u8]"),
            ("enum", "typed::shop::Shape"),
        ];
        let mut unknown = Vec::new();
        for (block, expected) in expected {
            match name(block) {
                Some(name) => assert_eq!(name, expected, "{block}, {flags:?}"),
                None => unknown.push(block),
            }
        }
        // Where functions are merged, one of the two vectors is not known; where nothing is inlined, nothing confirms what they say.
        let is_optimised = flags[0] == "-Copt-level=3";
        assert!(
            !is_optimised || unknown.iter().all(|block| block.starts_with("push")) && unknown.len() < 2,
            "{unknown:?}"
        );
        assert_eq!(name("raw"), None, "nobody says what it is for");
        assert_eq!(name("slice"), None, "its counts lie before its elements");
    }
}

#[test]
fn a_byte_is_of_the_field_that_holds_it() {
    let directory = Directory::new();
    let (types, blocks) = typed(&directory, &["-Copt-level=3", "-Cdebuginfo=2"]);
    let mut types = types.expect("debug information");
    let mut field = |block: &str, at: u64| {
        let of = allocated(&blocks[block], &mut types).unwrap();
        types.field(of, blocks[block].len, at)
    };
    // The structures are laid out as in C.
    for (at, expected) in [
        (0, Some("id")),
        (7, Some("id")),
        (8, Some("links[0]")),
        (21, Some("links[3]")),
        (24, Some("weight")),
        (32, Some("inner.flag")),
        (33, Some("inner")),
        (40, Some("inner.count")),
        (64, None),
    ] {
        assert_eq!(field("box", at).as_deref(), expected, "byte {at}");
    }
    assert_eq!(field("vec", 3 * 64 + 40).as_deref(), Some("[3].inner.count"));
    assert_eq!(field("arc", 0).as_deref(), Some("strong"));
    assert_eq!(field("arc", 8).as_deref(), Some("weak"));
    let hits = (16..40).find(|&at| field("arc", at).as_deref() == Some("data.hits"));
    assert!(hits.is_some(), "atomics are fields like others");
    assert_eq!(field("string", 3).as_deref(), Some("[3]"));
    assert_eq!(field("enum", 3), None, "its variant is not known");
    let len = blocks["map"].len;
    assert_eq!(field("map", len - 1).as_deref(), Some("control bytes"));
    let entry: Vec<_> = (0..24).filter_map(|at| field("map", at)).collect();
    assert!(entry.iter().any(|field| field == "entry.1.count") && entry.iter().any(|field| field == "entry.0"));
    let fields: Vec<_> = (0..blocks["tree"].len).filter_map(|at| field("tree", at)).collect();
    assert!(
        ["keys[10]", "vals[3].count", "len"].iter().all(|told| fields.iter().any(|field| field == told)),
        "{fields:?}"
    );
}

#[test]
fn where_types_are_not_told_nothing_is_said() {
    let directory = Directory::new();
    let (types, blocks) = typed(&directory, &["-Copt-level=3", "-Cdebuginfo=line-tables-only"]);
    if let Some(mut types) = types {
        let told: Vec<_> = blocks.iter().filter(|(_, block)| allocated(block, &mut types).is_some()).collect();
        // The types with which the standard library was built are told there too.
        assert!(told.is_empty(), "{:?}", told.iter().map(|(name, _)| name).collect::<Vec<_>>());
    }
    let (types, _) = typed(&directory, &["-Cstrip=symbols"]);
    assert!(types.is_none());
}

#[test]
fn an_array_of_itself_has_no_size() {
    // A unit with one type: an array without a length in bytes, whose elements are arrays like it.
    let abbreviations = [1, 0x11, 1, 0, 0, 2, 0x01, 0, 0x49, 0x13, 0, 0, 0];
    // Length, version, abbreviations, bytes of an address; the unit; the array and its element, which is at byte 12; the end.
    let info = [14, 0, 0, 0, 4, 0, 0, 0, 0, 0, 8, 1, 2, 12, 0, 0, 0, 0];
    let section = |id: gimli::SectionId| -> Result<Bytes, ()> {
        let bytes: &[u8] = match id {
            gimli::SectionId::DebugAbbrev => &abbreviations,
            gimli::SectionId::DebugInfo => &info,
            _ => &[],
        };
        Ok(Bytes::new(Arc::from(bytes), LittleEndian))
    };
    let types = DebugTypes::of(Dwarf::load(section).unwrap()).unwrap();
    let array = Place { unit: 0, offset: UnitOffset(12) };
    assert_eq!(types.entry(array).unwrap().tag(), gimli::DW_TAG_array_type);
    let allocated = AllocatedType { form: Form::One, element: array };
    assert!(!types.fits(allocated, 8));
}

#[test]
fn a_length_that_does_not_fit_is_of_another_type() {
    let directory = Directory::new();
    let (types, blocks) = typed(&directory, &["-Copt-level=3", "-Cdebuginfo=2"]);
    let mut types = types.expect("debug information");
    for (block, len) in [("box", 65), ("vec", 449), ("map", 3217)] {
        assert_eq!(types.allocated(&blocks[block].calls, len), None, "{block}");
    }
}
