//! Word ends, one word at a time.

use super::char_class::{CharClass, CharClassTable};
use super::gpt_pattern::GptPattern;

impl GptPattern {
    /// Where the word that begins at `start` ends.
    #[inline(always)]
    pub(super) fn word_end(&self, classes: &CharClassTable, text: &[u8], start: usize) -> usize {
        let (class, length) = classes.at(text, start);
        let next = start + length;
        match class {
            CharClass::Letter => letters_end(classes, text, next),
            CharClass::Number => self.number_end(classes, text, next),
            CharClass::Other => {
                if text[start] == b'\'' {
                    if let Some(end) = self.contraction_end(text, next) {
                        return end;
                    }
                }
                if self.letters_take_any_char && next < text.len() {
                    let (after, length) = classes.at(text, next);
                    if after == CharClass::Letter {
                        return letters_end(classes, text, next + length);
                    }
                }
                self.other_end(classes, text, next)
            }
            CharClass::Space => self.space_end(classes, text, start, next),
            CharClass::LineEnd => self.white_end(classes, text, start),
        }
    }

    /// A word that begins with a space or the like: it may belong to what follows.
    #[inline(always)]
    fn space_end(&self, classes: &CharClassTable, text: &[u8], start: usize, next: usize) -> usize {
        if next < text.len() {
            let is_space = text[start] == b' ';
            let (after, length) = classes.at(text, next);
            match after {
                CharClass::Letter if is_space || self.letters_take_any_char => {
                    return letters_end(classes, text, next + length);
                }
                CharClass::Number if is_space && self.numbers_take_space => {
                    return self.number_end(classes, text, next + length);
                }
                CharClass::Other if is_space => return self.other_end(classes, text, next + length),
                _ => {}
            }
        }
        self.white_end(classes, text, start)
    }

    /// Behind the apostrophe: the end of a contraction, if there is one.
    fn contraction_end(&self, text: &[u8], at: usize) -> Option<usize> {
        let byte = |offset: usize| match text.get(at + offset) {
            Some(byte) if self.contractions_ignore_case => byte.to_ascii_lowercase(),
            Some(byte) => *byte,
            None => 0,
        };
        match (byte(0), byte(1)) {
            (b's' | b'd' | b'm' | b't', _) => Some(at + 1),
            (b'l', b'l') | (b'v', b'e') | (b'r', b'e') => Some(at + 2),
            // The long s, U+017F, is a small s to a regex that ignores case.
            (0xC5, 0xBF) if self.contractions_ignore_case => Some(at + 2),
            _ => None,
        }
    }

    /// `at` is behind the first digit.
    fn number_end(&self, classes: &CharClassTable, text: &[u8], mut at: usize) -> usize {
        let mut digits = 1;
        while digits < self.max_digits && at < text.len() {
            let (class, length) = classes.at(text, at);
            if class != CharClass::Number {
                break;
            }
            at += length;
            digits += 1;
        }
        at
    }

    /// `at` is behind the first character that is neither letter, number nor white.
    fn other_end(&self, classes: &CharClassTable, text: &[u8], mut at: usize) -> usize {
        while at < text.len() {
            let (class, length) = classes.at(text, at);
            if class != CharClass::Other {
                break;
            }
            at += length;
        }
        while self.splits_at_line_ends && at < text.len() && matches!(text[at], b'\r' | b'\n') {
            at += 1;
        }
        at
    }

    /// White space that nothing else takes: up to its last line end, or all but the last character (which may belong
    /// to the word that follows), or all of it.
    fn white_end(&self, classes: &CharClassTable, text: &[u8], start: usize) -> usize {
        let (mut at, mut last, mut behind_line) = (start, start, start);
        while at < text.len() {
            let (class, length) = classes.at(text, at);
            if !class.is_whitespace() {
                break;
            }
            last = at;
            at += length;
            if class == CharClass::LineEnd {
                behind_line = at;
            }
        }
        if self.keeps_trailing_whitespace && at == text.len() {
            at
        } else if self.splits_at_line_ends && behind_line > start {
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
fn letters_end(classes: &CharClassTable, text: &[u8], mut at: usize) -> usize {
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
        if class != CharClass::Letter {
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
