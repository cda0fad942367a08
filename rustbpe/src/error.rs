//! The error type of the crate.

use std::fmt;

/// An error with a message for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The split pattern is not a regular expression.
    Pattern(String),
    /// The regex engine gave up on a text: it reached its backtracking limit.
    Split(String),
    /// A training text cannot be read or is not UTF-8.
    Text(String),
    /// The vocabulary size is less than the number of byte values.
    VocabSize(usize),
    /// There are no texts, or the pattern matches nothing in them.
    EmptyCorpus,
    /// The distinct words have more bytes than 32-bit positions can address.
    TooManyWords(usize),
    /// The tokens are not a valid vocabulary.
    Vocabulary(String),
    /// No token has this id.
    UnknownId(i64),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Pattern(reason) => write!(f, "split pattern: {reason}"),
            Error::Split(reason) => write!(f, "the split pattern failed on a text: {reason}"),
            Error::Text(reason) => write!(f, "a training text cannot be read: {reason}"),
            Error::VocabSize(size) => {
                write!(f, "`vocab_size` is {size}: must be at least 256, one token per byte value")
            }
            Error::EmptyCorpus => {
                write!(f, "nothing to train on: the texts are empty, or the split pattern matches nothing in them")
            }
            Error::TooManyWords(bytes) => {
                write!(f, "the distinct words have {bytes} bytes: must be less than 4 GiB (train on less text)")
            }
            Error::Vocabulary(reason) => write!(f, "vocabulary: {reason}"),
            Error::UnknownId(id) => write!(f, "no token has the id {id}"),
        }
    }
}

impl std::error::Error for Error {}
