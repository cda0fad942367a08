//! Recognizes the split patterns of the GPT family (GPT-2, GPT-4, nanochat) and parses each into a few options.
//!
//! This file defines no pattern: nanochat's default is `SPLIT_PATTERN` in `nanochat/tokenizer.py`.
//!
//! A pattern of the family is a list of alternatives in this order: contractions, letters, numbers, other characters,
//! whitespace. The parser compares its text, alternative by alternative, with the spellings that are in use. Some
//! spellings differ only in possessive quantifiers (`++`, `?+`), which match the same words faster on a regex engine.

/// The options by which the patterns of the family differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GptPattern {
    /// The contractions 's, 'd, 'm, 't, 'll, 've and 're also match in capitals.
    pub contractions_ignore_case: bool,
    /// Letters take any one preceding character except for letters, numbers and line ends. If false, only a space.
    pub letters_take_any_char: bool,
    /// Longest run of digits in one word.
    pub max_digits: usize,
    /// Numbers take a preceding space.
    pub numbers_take_space: bool,
    /// Other characters take the line ends that follow, and whitespace is cut after its last line end.
    pub splits_at_line_ends: bool,
    /// Whitespace at the end of the text is one word, line ends included.
    pub keeps_trailing_whitespace: bool,
}

impl GptPattern {
    /// Parse a pattern. Return `None` if it is not of the family.
    pub fn parse(pattern: &str) -> Option<Self> {
        let mut rest = pattern;
        let contractions_ignore_case = strip_first_of(
            &mut rest,
            &[
                (r"'(?i:[sdmt]|ll|ve|re)|", true),
                (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|", true),
                (r"'(?:[sdmt]|ll|ve|re)|", false),
                (r"'s|'t|'re|'ve|'m|'ll|'d|", false),
            ],
        )?;
        let letters_take_any_char = strip_first_of(
            &mut rest,
            &[
                (r"[^\r\n\p{L}\p{N}]?+\p{L}+|", true),
                (r"[^\r\n\p{L}\p{N}]?+\p{L}++|", true),
                (r"[^\r\n\p{L}\p{N}]?\p{L}+|", true),
                (r" ?\p{L}+|", false),
                (r" ?\p{L}++|", false),
            ],
        )?;
        let (max_digits, numbers_take_space) = strip_first_of(
            &mut rest,
            &[
                (r"\p{N}|", (1, false)),
                (r"\p{N}{1,2}|", (2, false)),
                (r"\p{N}{1,3}|", (3, false)),
                (r"\p{N}{1,3}+|", (3, false)),
                (r" ?\p{N}+|", (usize::MAX, true)),
                (r" ?\p{N}++|", (usize::MAX, true)),
            ],
        )?;
        let (splits_at_line_ends, keeps_trailing_whitespace) = strip_first_of(
            &mut rest,
            &[
                (r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+", (true, false)),
                (r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+", (true, false)),
                (r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s", (true, true)),
                (r" ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", (false, false)),
                (r" ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s", (false, true)),
            ],
        )?;
        if !rest.is_empty() {
            return None;
        }
        Some(Self {
            contractions_ignore_case,
            letters_take_any_char,
            max_digits,
            numbers_take_space,
            splits_at_line_ends,
            keeps_trailing_whitespace,
        })
    }
}

/// Strip the first spelling that `rest` starts with, and return its value.
fn strip_first_of<T: Copy>(rest: &mut &str, spellings: &[(&str, T)]) -> Option<T> {
    let (spelling, value) = spellings.iter().find(|(spelling, _)| rest.starts_with(spelling))?;
    *rest = &rest[spelling.len()..];
    Some(*value)
}
