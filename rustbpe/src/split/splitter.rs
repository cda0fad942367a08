//! Cuts text into the words that merges never cross.
//!
//! The patterns of GPT-2, GPT-4 and ours are one family: contractions, letters, numbers, other characters, white
//! space, in this order, with small differences. For these the words are found by hand, in one pass without
//! backtracking; any other pattern runs on a regex engine. Both give the same words, which the tests compare.

use super::block_scan::{starts, BLOCK};
use super::char_class::{Class, Classes};
use super::pattern::Family;
use crate::Error;
use fancy_regex::Regex;

/// A compiled split pattern.
pub struct Splitter(Kind);

enum Kind {
    Family(Family, &'static Classes),
    Regex(Box<Regex>),
}

impl Splitter {
    /// A splitter by hand where the pattern is of the family, else by regex.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        match Family::of(pattern) {
            Some(family) => Ok(Self(Kind::Family(family, Classes::get()))),
            None => Self::by_regex(pattern),
        }
    }

    /// A splitter by regex whatever the pattern: the readable twin of the fast one.
    pub fn by_regex(pattern: &str) -> Result<Self, Error> {
        let regex = Regex::new(pattern).map_err(|error| Error::Pattern(error.to_string()))?;
        Ok(Self(Kind::Regex(Box::new(regex))))
    }

    pub fn is_by_hand(&self) -> bool {
        matches!(self.0, Kind::Family(..))
    }

    /// Call `visit` with the places in `text` between which the words are, in order, many at a time: each word ends where
    /// the next one begins. What the pattern does not match is between the last place of a call and the first of the next.
    ///
    /// ```
    /// let splitter = rustbpe::Splitter::new(r" ?\w+|\s+").unwrap();
    /// let mut words = Vec::new();
    /// splitter.split("to be, or", |bounds| words.extend(bounds.windows(2).map(|word| (word[0], word[1])))).unwrap();
    /// assert_eq!(words, [(0, 2), (2, 5), (6, 9)]);
    /// ```
    #[inline]
    pub fn split(&self, text: &str, mut visit: impl FnMut(&[usize])) -> Result<(), Error> {
        self.split_while(text, |bounds| {
            visit(bounds);
            true
        })
    }

    /// `split` that ends when `visit` gives false.
    #[inline]
    pub fn split_while(&self, text: &str, mut visit: impl FnMut(&[usize]) -> bool) -> Result<(), Error> {
        match &self.0 {
            Kind::Family(family, classes) => family.split(classes, text.as_bytes(), visit),
            Kind::Regex(regex) => {
                for found in regex.find_iter(text) {
                    let word = found.map_err(|error| Error::Split(error.to_string()))?;
                    if word.start() < word.end() && !visit(&[word.start(), word.end()]) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// A place near `at`, but not before it, where `text` can be cut without changing a word; its end if there is none.
    ///
    /// In the family no word has a space after a character that is not white, nor goes on behind a line end between two
    /// such characters, and no rule looks back. All this holds for bytes that are no UTF-8, too.
    pub fn cut(&self, text: &[u8], at: usize) -> usize {
        let Kind::Family(_, classes) = &self.0 else { return text.len() };
        let is_cut = |i: &usize| match (text[*i - 1], text[*i]) {
            (_, b' ') => ends_solid(classes, &text[..*i]),
            (b'\n', _) => ends_solid(classes, &text[..*i - 1]) && begins_solid(classes, &text[*i..]),
            _ => false,
        };
        (at.max(1)..text.len()).find(is_cut).unwrap_or(text.len())
    }
}

/// Does the text begin with something that is not white?
fn begins_solid(classes: &Classes, text: &[u8]) -> bool {
    is_solid(classes, (1..=text.len().min(4)).map(|length| &text[..length]))
}

/// Does it end with such?
fn ends_solid(classes: &Classes, text: &[u8]) -> bool {
    is_solid(classes, (1..=text.len().min(4)).map(|length| &text[text.len() - length..]))
}

/// The shortest of the pieces that is UTF-8 is a character. If none is, these are bytes that are no UTF-8: not white.
fn is_solid<'t>(classes: &Classes, mut pieces: impl Iterator<Item = &'t [u8]>) -> bool {
    let character = pieces.find(|piece| std::str::from_utf8(piece).is_ok());
    character.is_none_or(|character| !classes.at(character, 0).0.is_white())
}

/// Bounds of words handed over together, at most.
pub const MANY: usize = 3 * BLOCK;

impl Family {
    /// May words be found by blocks?
    fn is_quick(&self) -> bool {
        self.letters_take_any && self.lines && !self.numbers_take_space
    }

    /// By blocks, if the pattern allows that, and from word to word around what is hard.
    #[inline(always)]
    fn split(&self, classes: &Classes, text: &[u8], mut visit: impl FnMut(&[usize]) -> bool) {
        let mut bounds = [0; MANY];
        let (mut start, mut count) = (0, 1); // `start` is the last bound so far
        let mut hard = if self.is_quick() { 0 } else { usize::MAX }; // before this place it goes from word to word
        loop {
            if count > MANY - BLOCK || start >= text.len() {
                if !visit(&bounds[..count]) || start >= text.len() {
                    return;
                }
                bounds[0] = start;
                count = 1;
            }
            match text.get(start..start + BLOCK) {
                Some(block) if start >= hard => {
                    let found = starts(classes, block.try_into().expect("of this length"), self.digits);
                    let known = found.bits.count_ones() as usize;
                    let mut bits = found.bits & (found.bits - 1);
                    // By eights: bounds that are too many are written over, and the number of turns is easy to foresee.
                    for eight in bounds[count..].chunks_exact_mut(8).take((known + 6) / 8) {
                        for bound in eight {
                            *bound = start + bits.trailing_zeros() as usize;
                            bits &= bits.wrapping_sub(1);
                        }
                    }
                    count += known - 1;
                    if found.hard < BLOCK {
                        hard = start + found.hard + 1;
                    } else if known == 1 {
                        hard = start + 1; // a word longer than the block
                    }
                    start += BLOCK - 1 - found.bits.leading_zeros() as usize;
                }
                _ => {
                    start = self.word_end(classes, text, start);
                    bounds[count] = start;
                    count += 1;
                }
            }
        }
    }

    /// Where the word that begins at `start` ends.
    #[inline(always)]
    fn word_end(&self, classes: &Classes, text: &[u8], start: usize) -> usize {
        let (class, length) = classes.at(text, start);
        let next = start + length;
        match class {
            Class::Letter => letters_end(classes, text, next),
            Class::Number => self.number_end(classes, text, next),
            Class::Other => {
                if text[start] == b'\'' {
                    if let Some(end) = self.contraction_end(text, next) {
                        return end;
                    }
                }
                if self.letters_take_any && next < text.len() {
                    let (after, length) = classes.at(text, next);
                    if after == Class::Letter {
                        return letters_end(classes, text, next + length);
                    }
                }
                self.other_end(classes, text, next)
            }
            Class::Space => self.space_end(classes, text, start, next),
            Class::LineEnd => self.white_end(classes, text, start),
        }
    }

    /// A word that begins with a space or the like: it may belong to what follows.
    #[inline(always)]
    fn space_end(&self, classes: &Classes, text: &[u8], start: usize, next: usize) -> usize {
        if next < text.len() {
            let is_space = text[start] == b' ';
            let (after, length) = classes.at(text, next);
            match after {
                Class::Letter if is_space || self.letters_take_any => {
                    return letters_end(classes, text, next + length);
                }
                Class::Number if is_space && self.numbers_take_space => {
                    return self.number_end(classes, text, next + length);
                }
                Class::Other if is_space => return self.other_end(classes, text, next + length),
                _ => {}
            }
        }
        self.white_end(classes, text, start)
    }

    /// Behind the apostrophe: the end of a contraction, if there is one.
    fn contraction_end(&self, text: &[u8], at: usize) -> Option<usize> {
        let byte = |offset: usize| match text.get(at + offset) {
            Some(byte) if self.contractions_in_capitals => byte.to_ascii_lowercase(),
            Some(byte) => *byte,
            None => 0,
        };
        match (byte(0), byte(1)) {
            (b's' | b'd' | b'm' | b't', _) => Some(at + 1),
            (b'l', b'l') | (b'v', b'e') | (b'r', b'e') => Some(at + 2),
            // The long s, U+017F, is a small s to a regex that ignores case.
            (0xC5, 0xBF) if self.contractions_in_capitals => Some(at + 2),
            _ => None,
        }
    }

    /// `at` is behind the first digit.
    fn number_end(&self, classes: &Classes, text: &[u8], mut at: usize) -> usize {
        let mut digits = 1;
        while digits < self.digits && at < text.len() {
            let (class, length) = classes.at(text, at);
            if class != Class::Number {
                break;
            }
            at += length;
            digits += 1;
        }
        at
    }

    /// `at` is behind the first character that is neither letter, number nor white.
    fn other_end(&self, classes: &Classes, text: &[u8], mut at: usize) -> usize {
        while at < text.len() {
            let (class, length) = classes.at(text, at);
            if class != Class::Other {
                break;
            }
            at += length;
        }
        while self.lines && at < text.len() && matches!(text[at], b'\r' | b'\n') {
            at += 1;
        }
        at
    }

    /// White space that nothing else takes: up to its last line end, or all but the last character (which may belong
    /// to the word that follows), or all of it.
    fn white_end(&self, classes: &Classes, text: &[u8], start: usize) -> usize {
        let (mut at, mut last, mut behind_line) = (start, start, start);
        while at < text.len() {
            let (class, length) = classes.at(text, at);
            if !class.is_white() {
                break;
            }
            last = at;
            at += length;
            if class == Class::LineEnd {
                behind_line = at;
            }
        }
        if self.whole_end && at == text.len() {
            at
        } else if self.lines && behind_line > start {
            behind_line
        } else if at == text.len() || last == start {
            at
        } else {
            last
        }
    }
}

/// `at` is behind the first letter. Letters of ASCII are skipped eight at a time.
#[inline(always)]
fn letters_end(classes: &Classes, text: &[u8], mut at: usize) -> usize {
    loop {
        while let Some(eight) = text.get(at..at + 8) {
            let others = not_letters(u64::from_le_bytes(eight.try_into().expect("eight bytes")));
            at += (others.trailing_zeros() / 8) as usize;
            if others != 0 {
                break;
            }
        }
        if at >= text.len() {
            return at;
        }
        let (class, length) = classes.at(text, at);
        if class != Class::Letter {
            return at;
        }
        at += length;
    }
}

/// The high bit of every byte that is no letter of ASCII.
#[inline(always)]
fn not_letters(bytes: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let small = (bytes | (0x20 * ONES)) & (0x7F * ONES);
    let from_a = small + (0x80 - 0x61) * ONES; // high bit: at least 'a'
    let beyond_z = small + (0x80 - 0x7B) * ONES; // high bit: more than 'z'
    !(from_a & !beyond_z & !bytes) & (0x80 * ONES)
}
