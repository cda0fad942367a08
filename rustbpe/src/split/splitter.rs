//! Cuts text into the words that merges never cross.
//!
//! The patterns of GPT-2, GPT-4 and ours are one family: contractions, letters, numbers, other characters, white
//! space, in this order, with small differences. For these the words are found by hand, in one pass without
//! backtracking; any other pattern runs on a regex engine. Both give the same words, which the tests compare.

use super::block_scan::{scan_block, BLOCK_LEN};
use super::char_class::CharClassTable;
use super::gpt_pattern::GptPattern;
use crate::Error;
use fancy_regex::Regex;

/// A compiled split pattern.
pub struct Splitter(Kind);

enum Kind {
    GptPattern(GptPattern, &'static CharClassTable),
    Regex(Box<Regex>),
}

impl Splitter {
    /// A splitter by hand where the pattern is of the family, else by regex.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        match GptPattern::of(pattern) {
            Some(family) => Ok(Self(Kind::GptPattern(family, CharClassTable::get()))),
            None => Self::with_regex(pattern),
        }
    }

    /// A splitter by regex whatever the pattern: the readable twin of the fast one.
    pub fn with_regex(pattern: &str) -> Result<Self, Error> {
        let regex = Regex::new(pattern).map_err(|error| Error::Pattern(error.to_string()))?;
        Ok(Self(Kind::Regex(Box::new(regex))))
    }

    /// True if the pattern runs on the regex engine.
    pub fn uses_regex(&self) -> bool {
        matches!(self.0, Kind::Regex(_))
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
            Kind::GptPattern(family, classes) => family.split(classes, text.as_bytes(), visit),
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
    pub fn next_safe_cut(&self, text: &[u8], at: usize) -> usize {
        let Kind::GptPattern(_, classes) = &self.0 else { return text.len() };
        let is_cut = |i: &usize| match (text[*i - 1], text[*i]) {
            (_, b' ') => ends_solid(classes, &text[..*i]),
            (b'\n', _) => ends_solid(classes, &text[..*i - 1]) && begins_solid(classes, &text[*i..]),
            _ => false,
        };
        (at.max(1)..text.len()).find(is_cut).unwrap_or(text.len())
    }
}

/// Does the text begin with something that is not white?
fn begins_solid(classes: &CharClassTable, text: &[u8]) -> bool {
    is_solid(classes, (1..=text.len().min(4)).map(|length| &text[..length]))
}

/// Does it end with such?
fn ends_solid(classes: &CharClassTable, text: &[u8]) -> bool {
    is_solid(classes, (1..=text.len().min(4)).map(|length| &text[text.len() - length..]))
}

/// The shortest of the pieces that is UTF-8 is a character. If none is, these are bytes that are no UTF-8: not white.
fn is_solid<'t>(classes: &CharClassTable, mut pieces: impl Iterator<Item = &'t [u8]>) -> bool {
    let character = pieces.find(|piece| std::str::from_utf8(piece).is_ok());
    character.is_none_or(|character| !classes.at(character, 0).0.is_whitespace())
}

/// Bounds of words handed over together, at most.
pub const MAX_BOUNDS: usize = 3 * BLOCK_LEN;

impl GptPattern {
    /// May words be found by blocks?
    fn allows_block_scan(&self) -> bool {
        self.letters_take_any_char && self.splits_at_line_ends && !self.numbers_take_space
    }

    /// By blocks, if the pattern allows that, and from word to word around what is hard.
    #[inline(always)]
    fn split(&self, classes: &CharClassTable, text: &[u8], mut visit: impl FnMut(&[usize]) -> bool) {
        let mut bounds = [0; MAX_BOUNDS];
        let (mut start, mut count) = (0, 1); // `start` is the last bound so far
        let mut hard = if self.allows_block_scan() { 0 } else { usize::MAX }; // before this place it goes from word to word
        loop {
            if count > MAX_BOUNDS - BLOCK_LEN || start >= text.len() {
                if !visit(&bounds[..count]) || start >= text.len() {
                    return;
                }
                bounds[0] = start;
                count = 1;
            }
            match text.get(start..start + BLOCK_LEN) {
                Some(block) if start >= hard => {
                    let found = scan_block(classes, block.try_into().expect("of this length"), self.max_digits);
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
                    if found.hard < BLOCK_LEN {
                        hard = start + found.hard + 1;
                    } else if known == 1 {
                        hard = start + 1; // a word longer than the block
                    }
                    start += BLOCK_LEN - 1 - found.bits.leading_zeros() as usize;
                }
                _ => {
                    start = self.word_end(classes, text, start);
                    bounds[count] = start;
                    count += 1;
                }
            }
        }
    }
}
