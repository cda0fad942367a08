//! The patterns that are split by hand: what tells one member of the family from another.

/// What differs within the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GptPattern {
    /// 's, 'd, 'm, 't, 'll, 've, 're are words; in capitals too?
    pub contractions_ignore_case: bool,
    /// Letters take any one character before them that is no letter, number or line end; or only a space.
    pub letters_take_any_char: bool,
    /// IntArray are cut into groups of so many digits.
    pub max_digits: usize,
    /// IntArray take a space before them.
    pub numbers_take_space: bool,
    /// Line ends: other characters take those after them, and white space ends behind its last one.
    pub splits_at_line_ends: bool,
    /// White space at the end of the text is one word, with line ends in it.
    pub keeps_trailing_whitespace: bool,
}

impl GptPattern {
    /// The member that a pattern describes, if it is of the family.
    pub fn of(pattern: &str) -> Option<Self> {
        let mut rest = pattern;
        let contractions_ignore_case = take(
            &mut rest,
            &[
                (r"'(?i:[sdmt]|ll|ve|re)|", true),
                (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|", true),
                (r"'(?:[sdmt]|ll|ve|re)|", false),
                (r"'s|'t|'re|'ve|'m|'ll|'d|", false),
            ],
        )?;
        let letters_take_any_char = take(
            &mut rest,
            &[
                (r"[^\r\n\p{L}\p{N}]?+\p{L}+|", true),
                (r"[^\r\n\p{L}\p{N}]?+\p{L}++|", true),
                (r"[^\r\n\p{L}\p{N}]?\p{L}+|", true),
                (r" ?\p{L}+|", false),
                (r" ?\p{L}++|", false),
            ],
        )?;
        let (max_digits, numbers_take_space) = take(
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
        let (splits_at_line_ends, keeps_trailing_whitespace) = take(
            &mut rest,
            &[
                (r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+", (true, false)),
                (r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+", (true, false)),
                (r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s", (true, true)),
                (r" ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", (false, false)),
                (r" ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s", (false, true)),
            ],
        )?;
        let family = Self {
            contractions_ignore_case,
            letters_take_any_char,
            max_digits,
            numbers_take_space,
            splits_at_line_ends,
            keeps_trailing_whitespace,
        };
        rest.is_empty().then_some(family)
    }
}

/// Strip the first of the options that `rest` begins with.
fn take<T: Copy>(rest: &mut &str, options: &[(&str, T)]) -> Option<T> {
    let (text, value) = options.iter().find(|(text, _)| rest.starts_with(text))?;
    *rest = &rest[text.len()..];
    Some(*value)
}
