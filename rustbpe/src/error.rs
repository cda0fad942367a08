//! What can go wrong, in words that a user can act on.

use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The split pattern is not a regular expression.
    Pattern(String),
    /// The regular expression gave up on a text (its backtracking limit).
    Split(String),
    /// A text to train on that is no text.
    Text(String),
    /// Fewer tokens were asked for than there are bytes.
    VocabSize(usize),
    /// There was no text, or the pattern matched nothing in it.
    EmptyCorpus,
    /// More distinct words than positions can be counted in 32 bits.
    TooManyWords(usize),
    /// The tokens do not make a vocabulary.
    Vocabulary(String),
    /// An id that no token has.
    UnknownId(i64),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Pattern(why) => write!(f, "split pattern: {why}"),
            Error::Split(why) => write!(f, "the split pattern failed on a text: {why}"),
            Error::Text(why) => write!(f, "a text to train on cannot be read: {why}"),
            Error::VocabSize(size) => write!(f, "vocab_size {size}: must be at least 256, one token per byte"),
            Error::EmptyCorpus => {
                write!(f, "nothing to train on: the texts are empty, or the pattern matches nothing in them")
            }
            Error::Vocabulary(why) => write!(f, "vocabulary: {why}"),
            Error::UnknownId(id) => write!(f, "no token has the id {id}"),
            Error::TooManyWords(bytes) => {
                write!(f, "{bytes} bytes of distinct words: more than 4 GiB; train on fewer characters")
            }
        }
    }
}

impl std::error::Error for Error {}
