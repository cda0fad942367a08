//! The block scan and the word scan against the regex engine.

use rustbpe::Splitter;

const NANOCHAT: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

const PATTERNS: [&str; 8] = [
    NANOCHAT,
    // GPT-4: as published, and in the spellings of tiktoken; with three digits and with one
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    // GPT-2, in three spellings
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
];

const TRICKY: [&str; 14] = [
    "'s 'S 'ſ 'D'm'T 'll'LL'lL 'VE're 'r 'l '' ' 's's don'T o'clock 'ſſ",
    " 'll  'll\n'll x'll",
    "1 12 123 1234567 ٣٤٥ Ⅳ½² 1a2",
    "  a   b\t\tc \td\u{a0}e\u{3000}f \u{85}g",
    "\n\n  \n x \r\n\r\n y  \n",
    "   ",
    " \n ",
    "\u{2028}\u{2029}\u{200b}\u{feff}z",
    "!!\n\n?? \n.\r\n\r\n ..x .\u{301} e\u{301} \u{301}a",
    "",
    "Привет, мир! 你好，世界。नमस्ते مرحبا 👩‍👩‍👧‍👦🎉",
    "a\0b\u{7f}c\u{fffd}\u{10ffff}\u{e000}",
    "\tif x:\n\t\treturn 'a'\n",
    " \u{3000} 1",
];

fn words(splitter: &Splitter, text: &str) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    splitter
        .split(text, |bounds| words.extend(bounds.windows(2).map(|at| text.as_bytes()[at[0]..at[1]].to_vec())))
        .unwrap();
    words
}

/// Random numbers, the same on every machine (xorshift).
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % bound
    }

    /// A random text: either short with characters of all kinds, or long enough for the block scan and mostly ASCII.
    fn text(&mut self) -> String {
        const COMMON: [char; 40] = [
            'a', 'Z', 'é', 's', 'S', 'ſ', 't', 'l', 'L', 'v', 'E', 'r', 'd', 'M', '\'', '\'', '’', ' ', ' ', ' ', '\n',
            '\r', '\t', '\u{b}', '\u{85}', '\u{a0}', '\u{2003}', '\u{200b}', '0', '7', '٣', 'Ⅳ', '½', '.', '!',
            '\u{301}', 'ا', '世', '𝔸', '😀',
        ];
        let is_long = self.below(2) == 0;
        let length = if is_long { 60 + self.below(200) } else { self.below(24) };
        let rarity = if is_long { 12 << self.below(8) } else { 12 };
        let kinds = if is_long { 1 + self.below(COMMON.len()) } else { COMMON.len() };
        let first = self.below(COMMON.len());
        (0..length)
            .map(|_| match self.below(rarity) {
                0 => char::from_u32(self.below(0x11_0000) as u32).unwrap_or('\u{d7ff}'),
                _ => {
                    let common = COMMON[(first + self.below(kinds)) % COMMON.len()];
                    if !is_long || common.is_ascii() || self.below(rarity) == 1 {
                        common
                    } else {
                        ['x', ' ', '7', '.'][self.below(4)]
                    }
                }
            })
            .collect()
    }
}

#[test]
fn scans_equal_the_regex() {
    let mut rng = Rng(0x9E37_79B9_7F4A_7C15);
    for pattern in PATTERNS {
        let (fast, slow) = (Splitter::new(pattern).unwrap(), Splitter::with_regex(pattern).unwrap());
        assert!(!fast.uses_regex() && slow.uses_regex(), "{pattern}");
        for text in TRICKY {
            assert_eq!(words(&fast, text), words(&slow, text), "{pattern} on {text:?}");
            for before in 0..80 {
                let text = format!(
                    "{}{text} and more of the same, for a block{text}",
                    "x".repeat(before % 3) + &" y".repeat(before)
                );
                assert_eq!(words(&fast, &text), words(&slow, &text), "{pattern} on {text:?}");
            }
        }
        for _ in 0..3000 {
            let text = rng.text();
            assert_eq!(words(&fast, &text), words(&slow, &text), "{pattern} on {text:?}");
        }
    }
}

#[test]
#[ignore = "ten million texts take minutes"]
fn scans_equal_the_regex_on_many_texts() {
    let splitters: Vec<_> = PATTERNS
        .iter()
        .map(|pattern| (Splitter::new(pattern).unwrap(), Splitter::with_regex(pattern).unwrap()))
        .collect();
    let mut rng = Rng(20_261_121);
    for round in 0..10_000_000 {
        let text = rng.text();
        let (fast, slow) = &splitters[round % PATTERNS.len()];
        assert_eq!(words(fast, &text), words(slow, &text), "{} on {text:?}", PATTERNS[round % PATTERNS.len()]);
    }
}

/// The words of bytes. A run of bytes that are not UTF-8 is one word.
fn byte_words(splitter: &Splitter, bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut all, mut invalid) = (Vec::new(), Vec::new());
    for chunk in bytes.utf8_chunks() {
        if !chunk.valid().is_empty() {
            all.extend(Some(std::mem::take(&mut invalid)).filter(|word| !word.is_empty()));
            all.extend(words(splitter, chunk.valid()));
        }
        invalid.extend(chunk.invalid());
    }
    all.extend(Some(invalid).filter(|word| !word.is_empty()));
    all
}

#[test]
fn safe_cuts_change_no_word() {
    let mut rng = Rng(7);
    for pattern in PATTERNS {
        let splitter = Splitter::new(pattern).unwrap();
        let (mut cuts, mut beyond_ascii) = (0, 0);
        for _ in 0..4000 {
            let text = rng.text() + &rng.text();
            let text = match rng.below(3) {
                0 => text.replace(' ', "世").replace('\t', "世\n").replace('a', "。\n。").replace('E', "\u{3000}"),
                1 => {
                    text.replace('a', "दु ").replace('E', "ไทย \u{2003}").replace('7', "𝔸\n\u{1680}").replace('.', "é ")
                }
                _ => text,
            };
            let mut bytes = text.into_bytes();
            if rng.below(4) == 0 {
                bytes.retain(|byte| byte.is_ascii() || rng.below(6) > 0);
            }
            let cut = splitter.next_safe_cut(&bytes, rng.below(bytes.len() + 1));
            let parts = [byte_words(&splitter, &bytes[..cut]), byte_words(&splitter, &bytes[cut..])].concat();
            assert_eq!(parts, byte_words(&splitter, &bytes), "{bytes:?} at {cut}, {pattern}");
            cuts += usize::from(cut < bytes.len());
            beyond_ascii += usize::from(cut < bytes.len() && cut > 0 && !bytes[cut - 1].is_ascii());
        }
        assert!(cuts > 1500 && beyond_ascii > 500, "{cuts}, {beyond_ascii}");
    }
    let splitter = Splitter::new(NANOCHAT).unwrap();
    assert_eq!(splitter.next_safe_cut(b"ab cd ef", 3), 5);
    assert_eq!(splitter.next_safe_cut("世世\n世\n世世".as_bytes(), 2), 7);
    assert_eq!(splitter.next_safe_cut("世\u{3000}\n世\n\u{3000}世".as_bytes(), 2), 17);
    assert_eq!(splitter.next_safe_cut("हिन्दी में".as_bytes(), 1), 18);
    assert_eq!(splitter.next_safe_cut("é\u{a0} \u{2003} 𝔸 ".as_bytes(), 1), 13);
    assert_eq!(splitter.next_safe_cut(b"\xe2\x80 x", 0), 2);
    assert_eq!(Splitter::with_regex(NANOCHAT).unwrap().next_safe_cut(b"ab cd ef", 3), 8);
}

#[test]
fn other_patterns_run_on_the_regex_engine() {
    for pattern in [r"\w+|\W", &NANOCHAT[1..], &format!("{NANOCHAT}|x")] {
        assert!(Splitter::new(pattern).unwrap().uses_regex());
    }
    assert!(Splitter::new("(").is_err());
}
