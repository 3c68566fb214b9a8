//! The layout facts, against words and sizes that real interpreters showed.

#[path = "../src/layout.rs"]
#[expect(dead_code, reason = "offsets and slots are used by the library alone")]
mod layout;

use layout::{Layout, str_bytes};

#[test]
fn only_versions_that_were_looked_at_have_a_layout() {
    assert_eq!(Layout::of_version(0x030b_07f0), None);
    assert_eq!(Layout::of_version(0x030c_01f0), Some(Layout::Whole));
    assert_eq!(Layout::of_version(0x030d_00f0), Some(Layout::Whole));
    assert_eq!(Layout::of_version(0x030e_0af0), Some(Layout::Flagged));
    assert_eq!(Layout::of_version(0x030f_02f0), Some(Layout::Flagged));
    assert_eq!(Layout::of_version(0x0310_0000), None);
    assert_eq!(Layout::of_version(0x040c_0000), None);
}

#[test]
fn an_immortal_word_is_the_one_that_the_version_writes_itself() {
    assert_eq!(Layout::Whole.immortal(7), 0xFFFF_FFFF);
    // `_Py_SetImmortalUntracked` of 3.14: the low half set, the flag added, other flags as they were.
    assert_eq!(Layout::Flagged.immortal(7), 0x0001_0000_C000_0000);
    assert_eq!(Layout::Flagged.immortal(0x0004_0000_0000_0001), 0x0005_0000_C000_0000);
}

#[test]
fn immortality_is_the_sign_of_the_lower_half() {
    for layout in [Layout::Whole, Layout::Flagged] {
        assert!(Layout::is_immortal(layout.immortal(1)));
    }
    assert!(!Layout::is_immortal(1));
    assert!(!Layout::is_immortal(0x7FFF_FFFF));
    assert!(!Layout::is_immortal(0x0004_0000_0000_0002));
}

#[test]
fn a_str_is_as_long_as_getsizeof_says() {
    // State: not interned, kind, compact, ascii. So says `sys.getsizeof` for "", "a", "é", "ā", "😀", without UTF-8 copies.
    let state = |kind: u32, ascii: u32| kind << 2 | 1 << 5 | ascii << 6;
    assert_eq!(str_bytes(state(1, 1), 0, 64), 41);
    assert_eq!(str_bytes(state(1, 1), 1, 64), 42);
    assert_eq!(str_bytes(state(1, 0), 1, 64), 58);
    assert_eq!(str_bytes(state(2, 0), 1, 64), 60);
    assert_eq!(str_bytes(state(4, 0), 1, 64), 64);
    // A subclass keeps its text elsewhere, and may have a larger head.
    assert_eq!(str_bytes(1 << 2 | 1 << 6, 3, 80), 84);
}
