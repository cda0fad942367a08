//! The splitter: a compiled split pattern that yields the bounds of words.

use super::block_scan::{scan_block, BLOCK_LEN};
use super::char_class::CharClassTable;
use super::pattern_parser::GptPattern;
use crate::Error;
use fancy_regex::Regex;

/// A compiled split pattern.
///
/// Patterns of the GPT family are split in one pass without backtracking, any other pattern by a regex engine. The
/// tests check that both give the same words.
pub struct Splitter(Kind);

enum Kind {
    Gpt(GptPattern, &'static CharClassTable),
    Regex(Box<Regex>),
}

impl Splitter {
    /// Compile a pattern. Errors: it is not a regular expression.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        match GptPattern::parse(pattern) {
            Some(gpt_pattern) => Ok(Self(Kind::Gpt(gpt_pattern, CharClassTable::get()))),
            None => Self::with_regex(pattern),
        }
    }

    /// Compile a pattern for the regex engine, even if it is of the GPT family: the slow reference for the tests.
    pub fn with_regex(pattern: &str) -> Result<Self, Error> {
        let regex = Regex::new(pattern).map_err(|error| Error::Pattern(error.to_string()))?;
        Ok(Self(Kind::Regex(Box::new(regex))))
    }

    /// Return true if the pattern runs on the regex engine.
    pub fn uses_regex(&self) -> bool {
        matches!(self.0, Kind::Regex(_))
    }

    /// Call `visit` with the bounds of words, in order, at most `MAX_BOUNDS` at a time.
    ///
    /// Within one call each word ends where the next one starts: bounds `[0, 2, 5]` are the words `0..2` and `2..5`.
    /// Text that the pattern does not match lies between the last bound of a call and the first bound of the next.
    ///
    /// ```
    /// let splitter = rustbpe::Splitter::new(r" ?\w+|\s+").unwrap();
    /// let mut words = Vec::new();
    /// splitter.split("to be, or", |bounds| words.extend(bounds.windows(2).map(|word| (word[0], word[1])))).unwrap();
    /// assert_eq!(words, [(0, 2), (2, 5), (6, 9)]); // "to", " be", " or"
    /// ```
    ///
    /// Errors: the regex engine reached its backtracking limit.
    #[inline]
    pub fn split(&self, text: &str, mut visit: impl FnMut(&[usize])) -> Result<(), Error> {
        self.split_while(text, |bounds| {
            visit(bounds);
            true
        })
    }

    /// Like [`split`](Self::split), but stop when `visit` returns false.
    #[inline]
    pub fn split_while(&self, text: &str, mut visit: impl FnMut(&[usize]) -> bool) -> Result<(), Error> {
        match &self.0 {
            Kind::Gpt(pattern, classes) => pattern.split(classes, text.as_bytes(), visit),
            Kind::Regex(regex) => {
                for regex_match in regex.find_iter(text) {
                    let word = regex_match.map_err(|error| Error::Split(error.to_string()))?;
                    if word.start() < word.end() && !visit(&[word.start(), word.end()]) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Return the first position at or after `min_pos`, and after 0, at which `text` can be cut without changing a
    /// word.
    ///
    /// Returns the length of the text if there is no such position. That is always the case for a regex: its words are
    /// unknown. In the patterns of the GPT family no rule looks behind, and these positions are always between two
    /// words:
    ///
    /// - before a space that follows a character other than whitespace;
    /// - after a line feed between two characters other than whitespace.
    ///
    /// Invalid UTF-8 counts as such a character.
    pub fn next_safe_cut(&self, text: &[u8], min_pos: usize) -> usize {
        let Kind::Gpt(_, classes) = &self.0 else { return text.len() };
        let is_safe = |pos: &usize| match (text[*pos - 1], text[*pos]) {
            (_, b' ') => !ends_in_whitespace(classes, &text[..*pos]),
            (b'\n', _) => {
                !ends_in_whitespace(classes, &text[..*pos - 1]) && !starts_with_whitespace(classes, &text[*pos..])
            }
            _ => false,
        };
        (min_pos.max(1)..text.len()).find(is_safe).unwrap_or(text.len())
    }
}

fn starts_with_whitespace(classes: &CharClassTable, text: &[u8]) -> bool {
    is_whitespace(classes, (1..=text.len().min(4)).map(|len| &text[..len]))
}

fn ends_in_whitespace(classes: &CharClassTable, text: &[u8]) -> bool {
    is_whitespace(classes, (1..=text.len().min(4)).map(|len| &text[text.len() - len..]))
}

/// Return true if the first candidate that is valid UTF-8 is a whitespace character.
///
/// The candidates are 1 to 4 bytes at one end of a text, shortest first, so the first valid one is a single character.
/// No valid one means invalid UTF-8, which is not whitespace.
fn is_whitespace<'t>(classes: &CharClassTable, mut candidates: impl Iterator<Item = &'t [u8]>) -> bool {
    let character = candidates.find(|bytes| std::str::from_utf8(bytes).is_ok());
    character.is_some_and(|character| classes.class_at(character, 0).0.is_whitespace())
}

/// The largest number of bounds in one call of `visit`.
pub const MAX_BOUNDS: usize = 3 * BLOCK_LEN;

impl GptPattern {
    /// Return true if `scan_block` implements the rules of this pattern.
    fn allows_block_scan(&self) -> bool {
        self.letters_take_any_char && self.splits_at_line_ends && !self.numbers_take_space
    }

    /// Scan block by block where the pattern and the text allow it, else word by word. See `block_scan.rs`.
    #[inline(always)]
    fn split(&self, classes: &CharClassTable, text: &[u8], mut visit: impl FnMut(&[usize]) -> bool) {
        let mut bounds = [0; MAX_BOUNDS];
        let mut num_bounds = 1;
        let mut start = 0; // of the next word; the last bound so far
        let mut block_scan_from = if self.allows_block_scan() { 0 } else { usize::MAX };
        loop {
            if num_bounds > MAX_BOUNDS - BLOCK_LEN || start >= text.len() {
                if !visit(&bounds[..num_bounds]) || start >= text.len() {
                    return;
                }
                bounds[0] = start;
                num_bounds = 1;
            }
            match text.get(start..start + BLOCK_LEN) {
                Some(block) if start >= block_scan_from => {
                    let block = block.try_into().expect("the slice has the length of a block");
                    let scan = scan_block(classes, block, self.max_digits);
                    let num_starts = scan.word_starts.count_ones() as usize;
                    // Without the first start, which is the last bound so far.
                    let mut starts = scan.word_starts & (scan.word_starts - 1);
                    // Write eight bounds per step. The last step may write more than needed, and the next bounds
                    // overwrite the surplus: a processor predicts the number of steps better than that of bounds.
                    for eight_bounds in bounds[num_bounds..].chunks_exact_mut(8).take((num_starts + 6) / 8) {
                        for bound in eight_bounds {
                            *bound = start + starts.trailing_zeros() as usize;
                            starts &= starts.wrapping_sub(1);
                        }
                    }
                    num_bounds += num_starts - 1;
                    if scan.undecided_pos < BLOCK_LEN {
                        block_scan_from = start + scan.undecided_pos + 1;
                    } else if num_starts == 1 {
                        block_scan_from = start + 1; // the word is longer than the block
                    }
                    start += BLOCK_LEN - 1 - scan.word_starts.leading_zeros() as usize;
                }
                _ => {
                    start = self.word_end(classes, text, start);
                    bounds[num_bounds] = start;
                    num_bounds += 1;
                }
            }
        }
    }
}
