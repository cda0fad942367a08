//! What the split patterns ask of a character: letter, number, white space, or none of these.
//!
//! The tables are made from `regex-syntax`, so that they are of the same Unicode version as the regex engine.

use regex_syntax::hir::{Class as HirClass, HirKind};
use std::sync::OnceLock;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CharClass {
    /// Neither letter, number nor white space: punctuation, symbols, marks, unassigned.
    Other,
    /// `\p{L}`
    Letter,
    /// `\p{N}`
    Number,
    /// `\s`, line ends apart
    Space,
    /// `[\r\n]`
    LineEnd,
}

impl CharClass {
    pub fn is_whitespace(self) -> bool {
        matches!(self, CharClass::Space | CharClass::LineEnd)
    }
}

const PAGE: usize = 256;

/// A class for every character: a page number for each 256 of them, and the distinct pages.
pub struct CharClassTable {
    ascii: [CharClass; 128],
    page_of: Vec<u16>,
    pages: Vec<[CharClass; PAGE]>,
}

impl CharClassTable {
    /// The table of this process, made at the first call.
    pub fn get() -> &'static Self {
        static TABLE: OnceLock<CharClassTable> = OnceLock::new();
        TABLE.get_or_init(Self::new)
    }

    fn new() -> Self {
        let mut all = vec![CharClass::Other; 0x11_0000];
        for (pattern, class) in
            [(r"\p{L}", CharClass::Letter), (r"\p{N}", CharClass::Number), (r"\s", CharClass::Space)]
        {
            for (first, last) in ranges(pattern) {
                all[first as usize..=last as usize].fill(class);
            }
        }
        all[usize::from(b'\r')] = CharClass::LineEnd;
        all[usize::from(b'\n')] = CharClass::LineEnd;
        let mut pages: Vec<[CharClass; PAGE]> = Vec::new();
        let mut page_of = Vec::with_capacity(all.len() / PAGE);
        for page in all.chunks_exact(PAGE) {
            let known = pages.iter().position(|other| other == page);
            page_of.push(known.unwrap_or(pages.len()) as u16);
            if known.is_none() {
                pages.push(page.try_into().expect("chunks are a page long"));
            }
        }
        let ascii = pages[0][..128].try_into().expect("a page is longer");
        Self { ascii, page_of, pages }
    }

    /// The class of the character that begins at `at`, and its length in bytes. `text` is valid UTF-8.
    #[inline(always)]
    pub fn at(&self, text: &[u8], at: usize) -> (CharClass, usize) {
        let byte = text[at];
        if byte < 0x80 {
            return (self.ascii[usize::from(byte)], 1);
        }
        self.beyond_ascii(text, at)
    }

    /// The bytes of a character that begins with this one.
    #[inline(always)]
    pub fn length(first: u8) -> usize {
        match first {
            0..=0x7F => 1,
            0x80..=0xDF => 2,
            0xE0..=0xEF => 3,
            _ => 4,
        }
    }

    #[inline]
    fn beyond_ascii(&self, text: &[u8], at: usize) -> (CharClass, usize) {
        let tail = |offset: usize| usize::from(text[at + offset] & 0x3F);
        let first = usize::from(text[at]);
        let (code, length) = match first {
            0..=0xDF => ((first & 0x1F) << 6 | tail(1), 2),
            0xE0..=0xEF => ((first & 0x0F) << 12 | tail(1) << 6 | tail(2), 3),
            _ => ((first & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4),
        };
        (self.pages[usize::from(self.page_of[code / PAGE])][code % PAGE], length)
    }
}

fn ranges(pattern: &str) -> Vec<(u32, u32)> {
    let hir = regex_syntax::parse(pattern).expect("a class by name");
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
    fn every_character_as_the_regex_engine_sees_it() {
        let text: String = ('\0'..=char::MAX).collect();
        let mut expected = vec![CharClass::Other; text.len()];
        for (pattern, class) in [
            (r"\p{L}", CharClass::Letter),
            (r"\p{N}", CharClass::Number),
            (r"\s", CharClass::Space),
            (r"[\r\n]", CharClass::LineEnd),
        ] {
            for found in fancy_regex::Regex::new(pattern).unwrap().find_iter(&text) {
                expected[found.unwrap().start()] = class;
            }
        }
        for (at, character) in text.char_indices() {
            assert_eq!(
                CharClassTable::get().at(text.as_bytes(), at),
                (expected[at], character.len_utf8()),
                "{character:?}"
            );
        }
    }
}
