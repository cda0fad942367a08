//! The block scan: the word starts of 64 bytes at once, by arithmetic on bit masks.
//!
//! Three algorithms split text into words:
//!
//! | pattern               | part of the text                                  | algorithm                    |
//! |-----------------------|---------------------------------------------------|------------------------------|
//! | not of the GPT family | all                                               | regex engine (`fancy_regex`) |
//! | GPT-2's               | all                                               | word scan (`word_scan.rs`)   |
//! | GPT-4's, nanochat's   | fewer than 64 bytes before the end                | word scan                    |
//! |                       | words up to an undecided byte (see below)         | word scan                    |
//! |                       | a word longer than 64 bytes                       | word scan                    |
//! |                       | everything else                                   | block scan (this file)       |
//!
//! The block scan does not decide these bytes: characters beyond ASCII that are numbers or whitespace or cross the end
//! of the block, whitespace before a line end, and an apostrophe that starts a word before two or more letters (`I've`
//! has a contraction, `I'very` has none).
//!
//! Bit `i` of a mask represents byte `i` of the block. Almost no branch depends on the text, which makes the block scan
//! faster than the word scan. An example for words of at most two digits, with bit 0 on the left, `_` for a space and
//! `$` for a line feed:
//!
//! ```text
//! text         H i , _ i t ' s _ 1 2 3 4 _ k m ! $ x x ...
//! letters      1 1 . . 1 1 . 1 . . . . . . 1 1 . . 1 1
//! numbers      . . . . . . . . . 1 1 1 1 . . . . . . .
//! whitespace   . . . 1 . . . . 1 . . . . 1 . . . 1 . .
//! others       . . 1 . . . 1 . . . . . . . . . 1 . . .
//! word_starts  1 . 1 1 . . 1 . 1 1 . 1 . 1 . . 1 . 1 .
//!
//! words        "Hi"  ","  " it"  "'s"  " "  "12"  "34"  " km"  "!\n"  "xx...
//! ```

use super::char_class::{CharClass, CharClassTable};

/// Number of bytes that are scanned together.
pub const BLOCK_LEN: usize = 64;

/// The bytes of a block by class. A mask covers all bytes of a character.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Masks {
    letters: u64,
    numbers: u64,
    /// Whitespace, line ends included.
    whitespace: u64,
    line_ends: u64,
    spaces: u64,
    apostrophes: u64,
    /// Bytes of characters beyond ASCII that are in no other mask.
    beyond_ascii: u64,
    /// The bytes after the first one of other characters beyond ASCII.
    other_tails: u64,
}

/// The word starts of a block, as far as the block decides them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockScan {
    /// The word starts. Bit 0 is always set. The end of the last word is not known.
    pub word_starts: u64,
    /// Position of the first byte that the scan cannot decide, after the last word start. `BLOCK_LEN` if there is none.
    pub undecided_pos: usize,
}

/// Find the word starts in a block whose first byte starts a word.
///
/// Implements patterns in which letters take any one character before them, numbers have at most `max_digits` digits
/// and take no space, and line ends follow other characters.
#[inline(always)]
pub fn scan_block(classes: &CharClassTable, block: &[u8; BLOCK_LEN], max_digits: usize) -> BlockScan {
    let mut masks = Masks::new(block);
    if masks.beyond_ascii != 0 {
        masks.classify_beyond_ascii(classes, block);
    }
    let Masks { letters, numbers, whitespace, line_ends, spaces, apostrophes, beyond_ascii, other_tails } = masks;
    let others = !(letters | numbers | whitespace | beyond_ascii);
    let blanks = whitespace & !line_ends;

    // Other characters take a space before them. A single one takes the letters after it. The addition carries from its
    // first byte through its tail to the byte after it.
    let other_starts = others & !((others | spaces) << 1);
    let after_single = (other_starts << 1).wrapping_add(other_tails) & !other_tails;
    let letter_starts = letters & !((letters | blanks) << 1 | after_single);

    // Runs of digits are cut into groups: a group starts `max_digits` after the previous one if all digits between are
    // numbers.
    let mut group_starts = numbers & !(numbers << 1);
    let mut number_starts = group_starts;
    while group_starts != 0 {
        let next_starts = (group_starts << max_digits) & numbers;
        group_starts = (1..max_digits).fold(next_starts, |starts, i| starts & (numbers << i));
        number_starts |= group_starts;
    }

    // Line ends after other characters belong to them. The addition carries through all line ends of such a run.
    let taken_line_ends = line_ends & !line_ends.wrapping_add(line_ends & (others << 1));
    let free_whitespace = whitespace & !taken_line_ends;
    let run_starts = free_whitespace & !(free_whitespace << 1);
    let run_ends = free_whitespace & !(free_whitespace >> 1);
    // The last blank of a run may belong to the next word, so it starts a word.
    let whitespace_starts = run_starts | (blanks & ((line_ends << 1) | run_ends));

    let undecided_contractions = apostrophes & other_starts & (letters >> 1) & (letters >> 2);
    let undecided = beyond_ascii | (blanks & (line_ends >> 1)) | undecided_contractions;
    let undecided_pos = undecided.trailing_zeros();
    let mut decided = u64::MAX.checked_shr(BLOCK_LEN as u32 - undecided_pos).unwrap_or(0);
    if free_whitespace & decided & !(decided >> 1) != 0 {
        // The last decided byte is whitespace: the cuts in its run depend on what follows, except for the run's start.
        decided = u64::MAX >> (run_starts & decided).leading_zeros();
    }
    let word_starts = (letter_starts | number_starts | other_starts | whitespace_starts) & decided;
    BlockScan { word_starts: word_starts | 1, undecided_pos: undecided_pos as usize }
}

impl Masks {
    /// Classify characters beyond ASCII as letters or others, up to the first one that is neither or not complete.
    fn classify_beyond_ascii(&mut self, classes: &CharClassTable, block: &[u8; BLOCK_LEN]) {
        while self.beyond_ascii != 0 {
            let pos = self.beyond_ascii.trailing_zeros() as usize;
            let len = CharClassTable::char_len(block[pos]);
            if pos + len > BLOCK_LEN {
                return;
            }
            let char_bits = ((1 << len) - 1) << pos;
            match classes.class_at(block, pos).0 {
                CharClass::Letter => self.letters |= char_bits,
                CharClass::Other => self.other_tails |= char_bits & (char_bits << 1),
                _ => return,
            }
            self.beyond_ascii &= !char_bits;
        }
    }

    /// Classify the ASCII bytes of a block, sixteen at a time.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn new(block: &[u8; BLOCK_LEN]) -> Self {
        use std::arch::x86_64::{
            __m128i, _mm_add_epi8, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128,
            _mm_set1_epi8,
        };
        let mut masks = Self::default();
        for (i, sixteen) in block.chunks_exact(16).enumerate() {
            // SAFETY: every x86-64 processor has SSE2. `sixteen` has 16 readable bytes, and the load needs no
            // alignment.
            let [letters, numbers, whitespace, line_ends, spaces, apostrophes, beyond_ascii] = unsafe {
                let bytes = _mm_loadu_si128(sixteen.as_ptr().cast());
                let splat = |byte: u8| _mm_set1_epi8(byte as i8);
                let equals = |byte: u8| _mm_cmpeq_epi8(bytes, splat(byte));
                let in_range = |bytes: __m128i, first: u8, last: u8| {
                    let from_first = _mm_add_epi8(bytes, splat(first.wrapping_neg()));
                    _mm_cmpeq_epi8(_mm_min_epu8(from_first, splat(last - first)), from_first)
                };
                [
                    in_range(_mm_or_si128(bytes, splat(0x20)), b'a', b'z'),
                    in_range(bytes, b'0', b'9'),
                    _mm_or_si128(in_range(bytes, b'\t', b'\r'), equals(b' ')),
                    _mm_or_si128(equals(b'\n'), equals(b'\r')),
                    equals(b' '),
                    equals(b'\''),
                    bytes, // the high bit is set beyond ASCII
                ]
                .map(|class| u64::from(_mm_movemask_epi8(class) as u32) << (16 * i))
            };
            masks.letters |= letters;
            masks.numbers |= numbers;
            masks.whitespace |= whitespace;
            masks.line_ends |= line_ends;
            masks.spaces |= spaces;
            masks.apostrophes |= apostrophes;
            masks.beyond_ascii |= beyond_ascii;
        }
        masks
    }

    #[cfg(not(target_arch = "x86_64"))]
    #[inline(always)]
    fn new(block: &[u8; BLOCK_LEN]) -> Self {
        Self::new_portable(block)
    }

    /// Classify the ASCII bytes of a block, eight at a time in one integer.
    #[cfg(any(test, not(target_arch = "x86_64")))]
    fn new_portable(block: &[u8; BLOCK_LEN]) -> Self {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const HIGH_BITS: u64 = 0x80 * ONES;
        let mut masks = Self::default();
        for (i, eight) in block.chunks_exact(8).enumerate() {
            let bytes = u64::from_le_bytes(eight.try_into().expect("the chunk has eight bytes"));
            let ascii = !bytes & HIGH_BITS;
            // The high bit of every byte that is in the range.
            let in_range = |bytes: u64, first: u64, last: u64| {
                let low_bits = bytes & !HIGH_BITS;
                (low_bits + (0x80 - first) * ONES) & !(low_bits + (0x7F - last) * ONES) & ascii
            };
            let equals = |byte: u8| in_range(bytes, u64::from(byte), u64::from(byte));
            // The eight high bits, moved next to each other.
            let gather = |high_bits: u64| ((high_bits >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * i);
            masks.letters |= gather(in_range(bytes | (0x20 * ONES), b'a'.into(), b'z'.into()));
            masks.numbers |= gather(in_range(bytes, b'0'.into(), b'9'.into()));
            masks.whitespace |= gather(in_range(bytes, b'\t'.into(), b'\r'.into()) | equals(b' '));
            masks.line_ends |= gather(equals(b'\n') | equals(b'\r'));
            masks.spaces |= gather(equals(b' '));
            masks.apostrophes |= gather(equals(b'\''));
            masks.beyond_ascii |= gather(bytes & HIGH_BITS);
        }
        masks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block that starts with `text` and goes on with `x`.
    fn block(text: &str) -> [u8; BLOCK_LEN] {
        let mut block = [b'x'; BLOCK_LEN];
        block[..text.len()].copy_from_slice(text.as_bytes());
        block
    }

    fn scan(text: &str) -> (Vec<u32>, usize) {
        let scan = scan_block(CharClassTable::get(), &block(text), 2);
        ((0..64).filter(|i| scan.word_starts >> i & 1 == 1).collect(), scan.undecided_pos)
    }

    #[test]
    fn the_example_above() {
        assert_eq!(scan("Hi, it's 1234 km!\n"), (vec![0, 2, 3, 6, 8, 9, 11, 13, 16, 18], BLOCK_LEN));
        let mask = |row: &str| row.split(' ').enumerate().map(|(i, bit)| u64::from(bit == "1") << i).sum::<u64>();
        let masks = Masks::new(&block("Hi, it's 1234 km!\n"));
        assert_eq!(masks.letters & 0xF_FFFF, mask("1 1 . . 1 1 . 1 . . . . . . 1 1 . . 1 1"));
        assert_eq!(masks.numbers, mask(". . . . . . . . . 1 1 1 1 . . . . . . ."));
        assert_eq!(masks.whitespace, mask(". . . 1 . . . . 1 . . . . 1 . . . 1 . ."));
    }

    #[test]
    fn undecided_bytes() {
        assert_eq!(scan("to be'very"), (vec![0, 2], 5));
        assert_eq!(scan("a, b \n"), (vec![0, 1, 2], 4));
        assert_eq!(scan("été ٣"), (vec![0, 5], 6));
    }

    #[test]
    fn masks_of_every_byte_at_every_position() {
        for byte in 0..=255_u8 {
            for pos in 0..BLOCK_LEN {
                let mut block = [b'x'; BLOCK_LEN];
                block[pos] = byte;
                let masks = Masks::new(&block);
                let bit = |condition: bool| u64::from(condition) << pos;
                assert_eq!(masks, Masks::new_portable(&block));
                assert_eq!(masks.letters, !(1 << pos) | bit(byte.is_ascii_alphabetic()));
                assert_eq!(masks.numbers, bit(byte.is_ascii_digit()));
                assert_eq!(masks.whitespace, bit(matches!(byte, b'\t'..=b'\r' | b' ')));
                assert_eq!(masks.line_ends, bit(matches!(byte, b'\n' | b'\r')));
                assert_eq!(masks.spaces, bit(byte == b' '));
                assert_eq!(masks.apostrophes, bit(byte == b'\''));
                assert_eq!(masks.beyond_ascii, bit(!byte.is_ascii()));
            }
        }
    }
}
