//! The word scan: the end of one word, character by character.
//!
//! It implements every pattern of the GPT family, and runs wherever the block scan does not.

use super::char_class::{CharClass, CharClassTable};
use super::pattern_parser::GptPattern;

impl GptPattern {
    /// Return the end of the word that starts at `start`, a position before the end of the text.
    #[inline(always)]
    pub(super) fn word_end(&self, classes: &CharClassTable, text: &[u8], start: usize) -> usize {
        let (class, len) = classes.class_at(text, start);
        let next = start + len;
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
                    let (next_class, next_len) = classes.class_at(text, next);
                    if next_class == CharClass::Letter {
                        return letters_end(classes, text, next + next_len);
                    }
                }
                self.other_end(classes, text, next)
            }
            CharClass::Space => self.space_end(classes, text, start, next),
            CharClass::LineEnd => self.whitespace_end(classes, text, start),
        }
    }

    /// The end of a word that starts with whitespace other than a line end: it may belong to what follows.
    #[inline(always)]
    fn space_end(&self, classes: &CharClassTable, text: &[u8], start: usize, next: usize) -> usize {
        if next < text.len() {
            let is_space = text[start] == b' ';
            let (next_class, next_len) = classes.class_at(text, next);
            match next_class {
                CharClass::Letter if is_space || self.letters_take_any_char => {
                    return letters_end(classes, text, next + next_len);
                }
                CharClass::Number if is_space && self.numbers_take_space => {
                    return self.number_end(classes, text, next + next_len);
                }
                CharClass::Other if is_space => return self.other_end(classes, text, next + next_len),
                _ => {}
            }
        }
        self.whitespace_end(classes, text, start)
    }

    /// The end of the contraction whose apostrophe ends at `pos`, or `None` if there is no contraction.
    fn contraction_end(&self, text: &[u8], pos: usize) -> Option<usize> {
        let byte = |offset: usize| match text.get(pos + offset) {
            Some(byte) if self.contractions_ignore_case => byte.to_ascii_lowercase(),
            Some(byte) => *byte,
            None => 0,
        };
        match (byte(0), byte(1)) {
            (b's' | b'd' | b'm' | b't', _) => Some(pos + 1),
            (b'l', b'l') | (b'v', b'e') | (b'r', b'e') => Some(pos + 2),
            // The long s (U+017F) equals "s" in a regex that ignores case.
            (0xC5, 0xBF) if self.contractions_ignore_case => Some(pos + 2),
            _ => None,
        }
    }

    /// The end of a number. `pos` is after its first digit.
    fn number_end(&self, classes: &CharClassTable, text: &[u8], mut pos: usize) -> usize {
        let mut num_digits = 1;
        while num_digits < self.max_digits && pos < text.len() {
            let (class, len) = classes.class_at(text, pos);
            if class != CharClass::Number {
                break;
            }
            pos += len;
            num_digits += 1;
        }
        pos
    }

    /// The end of other characters. `pos` is after the first of them.
    fn other_end(&self, classes: &CharClassTable, text: &[u8], mut pos: usize) -> usize {
        while pos < text.len() {
            let (class, len) = classes.class_at(text, pos);
            if class != CharClass::Other {
                break;
            }
            pos += len;
        }
        while self.splits_at_line_ends && pos < text.len() && matches!(text[pos], b'\r' | b'\n') {
            pos += 1;
        }
        pos
    }

    /// The end of whitespace that belongs to no other word: after its last line end, else before its last character,
    /// which may belong to the next word, else after all of it.
    fn whitespace_end(&self, classes: &CharClassTable, text: &[u8], start: usize) -> usize {
        let mut pos = start;
        let mut last_char = start;
        let mut after_line_end = start;
        while pos < text.len() {
            let (class, len) = classes.class_at(text, pos);
            if !class.is_whitespace() {
                break;
            }
            last_char = pos;
            pos += len;
            if class == CharClass::LineEnd {
                after_line_end = pos;
            }
        }
        if self.keeps_trailing_whitespace && pos == text.len() {
            pos
        } else if self.splits_at_line_ends && after_line_end > start {
            after_line_end
        } else if pos == text.len() || last_char == start {
            pos
        } else {
            last_char
        }
    }
}

/// The end of a run of letters. `pos` is after the first of them. Skips ASCII letters eight at a time.
#[inline(always)]
fn letters_end(classes: &CharClassTable, text: &[u8], mut pos: usize) -> usize {
    loop {
        while let Some(eight) = text.get(pos..pos + 8) {
            let non_letters = non_letter_bits(u64::from_le_bytes(eight.try_into().expect("the slice has eight bytes")));
            pos += (non_letters.trailing_zeros() / 8) as usize;
            if non_letters != 0 {
                break;
            }
        }
        if pos >= text.len() {
            return pos;
        }
        let (class, len) = classes.class_at(text, pos);
        if class != CharClass::Letter {
            return pos;
        }
        pos += len;
    }
}

/// Return the high bit of every byte that is not an ASCII letter.
#[inline(always)]
fn non_letter_bits(bytes: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let lowercase = (bytes | (0x20 * ONES)) & (0x7F * ONES);
    let at_least_a = lowercase + (0x80 - 0x61) * ONES; // high bit set: at least 'a'
    let beyond_z = lowercase + (0x80 - 0x7B) * ONES; // high bit set: after 'z'
    !(at_least_a & !beyond_z & !bytes) & (0x80 * ONES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn non_letter_bits_of_every_byte() {
        for byte in 0..=255_u8 {
            let expected = if byte.is_ascii_alphabetic() { 0 } else { 0x8080_8080_8080_8080 };
            assert_eq!(non_letter_bits(u64::from_le_bytes([byte; 8])), expected, "{byte}");
        }
    }
}
