//! The character classes of split patterns: letter, number, whitespace, line end, other.
//!
//! The tables are built from `regex-syntax`, so that they have the Unicode version of the regex engine.

use regex_syntax::hir::{Class as HirClass, HirKind};
use std::sync::OnceLock;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CharClass {
    /// Neither letter, number nor whitespace: punctuation, symbols, marks, unassigned characters.
    Other,
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s` except for line ends
    Space,
    /// `[\r\n]`
    LineEnd,
}

impl CharClass {
    pub fn is_whitespace(self) -> bool {
        matches!(self, CharClass::Space | CharClass::LineEnd)
    }
}

const PAGE_LEN: usize = 256;

/// The class of every Unicode character, as a two-stage table: most pages of 256 characters are equal and stored once.
pub struct CharClassTable {
    /// A copy of the first half of the first page, for the fast path.
    ascii: [CharClass; 128],
    /// Index into `pages` by `character / PAGE_LEN`.
    page_index: Vec<u16>,
    pages: Vec<[CharClass; PAGE_LEN]>,
}

impl CharClassTable {
    /// Return the table of the process. The first call builds it.
    pub fn get() -> &'static Self {
        static TABLE: OnceLock<CharClassTable> = OnceLock::new();
        TABLE.get_or_init(Self::new)
    }

    fn new() -> Self {
        let mut class_of = vec![CharClass::Other; 0x11_0000];
        for (pattern, class) in
            [(r"\p{L}", CharClass::Letter), (r"\p{N}", CharClass::Number), (r"\s", CharClass::Space)]
        {
            for (first, last) in unicode_ranges(pattern) {
                class_of[first as usize..=last as usize].fill(class);
            }
        }
        class_of[usize::from(b'\r')] = CharClass::LineEnd;
        class_of[usize::from(b'\n')] = CharClass::LineEnd;

        let mut pages: Vec<[CharClass; PAGE_LEN]> = Vec::new();
        let mut page_index = Vec::with_capacity(class_of.len() / PAGE_LEN);
        for page in class_of.chunks_exact(PAGE_LEN) {
            let known = pages.iter().position(|other| other == page);
            page_index.push(known.unwrap_or(pages.len()) as u16);
            if known.is_none() {
                pages.push(page.try_into().expect("chunks have the length of a page"));
            }
        }
        let ascii = pages[0][..128].try_into().expect("a page has at least 128 characters");
        Self { ascii, page_index, pages }
    }

    /// Return the class of the character that starts at byte `pos`, and its length in bytes. `text` must be valid
    /// UTF-8.
    #[inline(always)]
    pub fn class_at(&self, text: &[u8], pos: usize) -> (CharClass, usize) {
        let byte = text[pos];
        if byte < 0x80 {
            return (self.ascii[usize::from(byte)], 1);
        }
        self.class_beyond_ascii(text, pos)
    }

    /// Return the length in bytes of a UTF-8 character by its first byte.
    #[inline(always)]
    pub fn char_len(first_byte: u8) -> usize {
        match first_byte {
            0..=0x7F => 1,
            0x80..=0xDF => 2,
            0xE0..=0xEF => 3,
            _ => 4,
        }
    }

    #[inline]
    fn class_beyond_ascii(&self, text: &[u8], pos: usize) -> (CharClass, usize) {
        let tail = |offset: usize| usize::from(text[pos + offset] & 0x3F);
        let first = usize::from(text[pos]);
        let (code, len) = match first {
            0..=0xDF => ((first & 0x1F) << 6 | tail(1), 2),
            0xE0..=0xEF => ((first & 0x0F) << 12 | tail(1) << 6 | tail(2), 3),
            _ => ((first & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4),
        };
        let page = &self.pages[usize::from(self.page_index[code / PAGE_LEN])];
        (page[code % PAGE_LEN], len)
    }
}

/// Return the ranges of code points, both ends included, that a class such as `\p{L}` matches.
fn unicode_ranges(pattern: &str) -> Vec<(u32, u32)> {
    let hir = regex_syntax::parse(pattern).expect("the pattern is a class");
    match hir.kind() {
        HirKind::Class(HirClass::Unicode(class)) => {
            class.iter().map(|range| (u32::from(range.start()), u32::from(range.end()))).collect()
        }
        other => unreachable!("{pattern} is a Unicode class, not {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_has_the_class_that_the_regex_engine_gives_it() {
        let text: String = ('\0'..=char::MAX).collect();
        let mut expected = vec![CharClass::Other; text.len()];
        for (pattern, class) in [
            (r"\p{L}", CharClass::Letter),
            (r"\p{N}", CharClass::Number),
            (r"\s", CharClass::Space),
            (r"[\r\n]", CharClass::LineEnd),
        ] {
            for regex_match in fancy_regex::Regex::new(pattern).unwrap().find_iter(&text) {
                expected[regex_match.unwrap().start()] = class;
            }
        }
        for (pos, character) in text.char_indices() {
            let class_and_len = CharClassTable::get().class_at(text.as_bytes(), pos);
            assert_eq!(class_and_len, (expected[pos], character.len_utf8()), "{character:?}");
        }
    }
}
