//! The patterns that are split by hand: what tells one member of the family from another.

/// What differs within the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family {
    /// 's, 'd, 'm, 't, 'll, 've, 're are words; in capitals too?
    pub contractions_in_capitals: bool,
    /// Letters take any one character before them that is no letter, number or line end; or only a space.
    pub letters_take_any: bool,
    /// Numbers are cut into groups of so many digits.
    pub digits: usize,
    /// Numbers take a space before them.
    pub numbers_take_space: bool,
    /// Line ends: other characters take those after them, and white space ends behind its last one.
    pub lines: bool,
    /// White space at the end of the text is one word, with line ends in it.
    pub whole_end: bool,
}

impl Family {
    /// The member that a pattern describes, if it is of the family.
    pub fn of(pattern: &str) -> Option<Self> {
        let mut rest = pattern;
        let contractions_in_capitals = take(
            &mut rest,
            &[
                (r"'(?i:[sdmt]|ll|ve|re)|", true),
                (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|", true),
                (r"'(?:[sdmt]|ll|ve|re)|", false),
                (r"'s|'t|'re|'ve|'m|'ll|'d|", false),
            ],
        )?;
        let letters_take_any = take(
            &mut rest,
            &[
                (r"[^\r\n\p{L}\p{N}]?+\p{L}+|", true),
                (r"[^\r\n\p{L}\p{N}]?+\p{L}++|", true),
                (r"[^\r\n\p{L}\p{N}]?\p{L}+|", true),
                (r" ?\p{L}+|", false),
                (r" ?\p{L}++|", false),
            ],
        )?;
        let (digits, numbers_take_space) = take(
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
        let (lines, whole_end) = take(
            &mut rest,
            &[
                (r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+", (true, false)),
                (r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+", (true, false)),
                (r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s", (true, true)),
                (r" ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", (false, false)),
                (r" ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s", (false, true)),
            ],
        )?;
        let family = Self { contractions_in_capitals, letters_take_any, digits, numbers_take_space, lines, whole_end };
        rest.is_empty().then_some(family)
    }
}

/// Strip the first of the options that `rest` begins with.
fn take<T: Copy>(rest: &mut &str, options: &[(&str, T)]) -> Option<T> {
    let (text, value) = options.iter().find(|(text, _)| rest.starts_with(text))?;
    *rest = &rest[text.len()..];
    Some(*value)
}
