//! Where words begin, for 64 bytes at once: a bit for each byte, and the split pattern as arithmetic on these bits. It has
//! hardly a branch that depends on the text, which is why it is quicker than going from word to word.

use super::char_class::{CharClass, CharClassTable};

/// Bytes looked at together.
pub const BLOCK_LEN: usize = 64;

/// Which bytes of a block are of a class: bit `i` stands for byte `i`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Masks {
    letters: u64,
    numbers: u64,
    /// White space, line ends included.
    whites: u64,
    lines: u64,
    spaces: u64,
    apostrophes: u64,
    beyond_ascii: u64,
    /// Of other characters beyond ASCII, the bytes behind the first.
    tails: u64,
}

/// What is known of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockScan {
    /// Where a word begins; the first one at bit 0. Where the last of them ends is not known.
    pub bits: u64,
    /// Behind the last start something stands at this place that needs a closer look; `BLOCK_LEN` if nothing does.
    pub hard: usize,
}

/// Starts of words in a block whose first byte begins a word, for a pattern in which letters take any one character before
/// them, numbers come in groups of `digits`, and line ends follow other characters.
#[inline(always)]
pub fn scan_block(classes: &CharClassTable, block: &[u8; BLOCK_LEN], digits: usize) -> BlockScan {
    let mut masks = Masks::new(block);
    if masks.beyond_ascii != 0 {
        masks.look_beyond_ascii(classes, block);
    }
    let Masks { letters, numbers, whites, lines, spaces, apostrophes, beyond_ascii, tails } = masks;
    let others = !(letters | numbers | whites | beyond_ascii);
    let blanks = whites & !lines;

    // Other characters take a space before them. One that is alone takes the letters behind it, where a carry through its
    // bytes ends.
    let other_starts = others & !((others | spaces) << 1);
    let behind_alone = (other_starts << 1).wrapping_add(tails) & !tails;
    let letter_starts = letters & !((letters | blanks) << 1 | behind_alone);

    let mut group = numbers & !(numbers << 1);
    let mut number_starts = group;
    while group != 0 {
        group = (1..digits).fold((group << digits) & numbers, |group, i| group & (numbers << i));
        number_starts |= group;
    }

    // Line ends behind other characters belong to them: a carry runs through as many as there are.
    let taken = lines & !lines.wrapping_add(lines & (others << 1));
    let free = whites & !taken;
    let run_starts = free & !(free << 1);
    let run_ends = free & !(free >> 1);
    // The last blank of a run may belong to what follows it.
    let white_starts = run_starts | (blanks & ((lines << 1) | run_ends));

    // Blanks before a line end, and contractions with a letter behind them or of two letters.
    let long_contractions = apostrophes & other_starts & (letters >> 1) & (letters >> 2);
    let hard = (beyond_ascii | (blanks & (lines >> 1)) | long_contractions).trailing_zeros();
    let mut known = u64::MAX.checked_shr(BLOCK_LEN as u32 - hard).unwrap_or(0);
    if free & known & !(known >> 1) != 0 {
        // White space up to there: how it goes on decides where it is cut.
        known = u64::MAX >> (run_starts & known).leading_zeros();
    }
    let bits = (letter_starts | number_starts | other_starts | white_starts) & known;
    BlockScan { bits: bits | 1, hard: hard as usize }
}

impl Masks {
    /// Give the characters beyond ASCII to the letters or the others, up to the first that is neither, or not whole.
    fn look_beyond_ascii(&mut self, classes: &CharClassTable, block: &[u8; BLOCK_LEN]) {
        while self.beyond_ascii != 0 {
            let at = self.beyond_ascii.trailing_zeros() as usize;
            let length = CharClassTable::length(block[at]);
            if at + length > BLOCK_LEN {
                return;
            }
            let bits = ((1 << length) - 1) << at;
            match classes.at(block, at).0 {
                CharClass::Letter => self.letters |= bits,
                CharClass::Other => self.tails |= bits & (bits << 1),
                _ => return,
            }
            self.beyond_ascii &= !bits;
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn new(block: &[u8; BLOCK_LEN]) -> Self {
        use std::arch::x86_64::{
            __m128i, _mm_add_epi8, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128,
            _mm_set1_epi8,
        };
        let mut masks = Self::default();
        for (i, sixteen) in block.chunks_exact(16).enumerate() {
            // SAFETY: every x86-64 processor has SSE2. `sixteen` has 16 readable bytes, and the load needs no alignment.
            let [letters, numbers, whites, lines, spaces, apostrophes, beyond_ascii] = unsafe {
                let bytes = _mm_loadu_si128(sixteen.as_ptr().cast());
                let all = |byte: u8| _mm_set1_epi8(byte as i8);
                let is = |byte: u8| _mm_cmpeq_epi8(bytes, all(byte));
                let within = |bytes: __m128i, first: u8, last: u8| {
                    let from_first = _mm_add_epi8(bytes, all(first.wrapping_neg()));
                    _mm_cmpeq_epi8(_mm_min_epu8(from_first, all(last - first)), from_first)
                };
                [
                    within(_mm_or_si128(bytes, all(0x20)), b'a', b'z'),
                    within(bytes, b'0', b'9'),
                    _mm_or_si128(within(bytes, b'\t', b'\r'), is(b' ')),
                    _mm_or_si128(is(b'\n'), is(b'\r')),
                    is(b' '),
                    is(b'\''),
                    bytes,
                ]
                .map(|class| u64::from(_mm_movemask_epi8(class) as u32) << (16 * i))
            };
            masks.letters |= letters;
            masks.numbers |= numbers;
            masks.whites |= whites;
            masks.lines |= lines;
            masks.spaces |= spaces;
            masks.apostrophes |= apostrophes;
            masks.beyond_ascii |= beyond_ascii;
        }
        masks
    }

    #[cfg(not(target_arch = "x86_64"))]
    #[inline(always)]
    fn new(block: &[u8; BLOCK_LEN]) -> Self {
        Self::by_eights(block)
    }

    /// Eight bytes at a time, in one number.
    #[cfg(any(test, not(target_arch = "x86_64")))]
    fn by_eights(block: &[u8; BLOCK_LEN]) -> Self {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const HIGH: u64 = 0x80 * ONES;
        let mut masks = Self::default();
        for (i, eight) in block.chunks_exact(8).enumerate() {
            let all = u64::from_le_bytes(eight.try_into().expect("eight bytes"));
            let ascii = !all & HIGH;
            let within = |bytes: u64, first: u64, last: u64| {
                let low = bytes & !HIGH;
                (low + (0x80 - first) * ONES) & !(low + (0x7F - last) * ONES) & ascii
            };
            let is = |byte: u8| within(all, u64::from(byte), u64::from(byte));
            // The high bits of all eight, next to each other.
            let bits = |high: u64| ((high >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * i);
            masks.letters |= bits(within(all | (0x20 * ONES), b'a'.into(), b'z'.into()));
            masks.numbers |= bits(within(all, b'0'.into(), b'9'.into()));
            masks.whites |= bits(within(all, b'\t'.into(), b'\r'.into()) | is(b' '));
            masks.lines |= bits(is(b'\n') | is(b'\r'));
            masks.spaces |= bits(is(b' '));
            masks.apostrophes |= bits(is(b'\''));
            masks.beyond_ascii |= bits(all & HIGH);
        }
        masks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_of_every_byte_at_every_place() {
        for byte in 0..=255_u8 {
            for place in 0..BLOCK_LEN {
                let mut block = [b'x'; BLOCK_LEN];
                block[place] = byte;
                let masks = Masks::new(&block);
                let bit = |condition: bool| u64::from(condition) << place;
                assert_eq!(masks, Masks::by_eights(&block));
                assert_eq!(masks.letters, !(1 << place) | bit(byte.is_ascii_alphabetic()));
                assert_eq!(masks.numbers, bit(byte.is_ascii_digit()));
                assert_eq!(masks.whites, bit(matches!(byte, b'\t'..=b'\r' | b' ')));
                assert_eq!(masks.lines, bit(matches!(byte, b'\n' | b'\r')));
                assert_eq!(masks.spaces, bit(byte == b' '));
                assert_eq!(masks.apostrophes, bit(byte == b'\''));
                assert_eq!(masks.beyond_ascii, bit(!byte.is_ascii()));
            }
        }
    }
}
