//! The text type that training and encoding share.

use std::ops::Range;

/// Borrowed text: a UTF-8 string, or bytes that may not be UTF-8.
#[derive(Clone, Copy, Debug)]
pub enum Text<'t> {
    Str(&'t str),
    Bytes(&'t [u8]),
}

impl<'t> Text<'t> {
    pub fn as_bytes(&self) -> &'t [u8] {
        match self {
            Text::Str(text) => text.as_bytes(),
            Text::Bytes(bytes) => bytes,
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Return the part of the text in a byte range. Panics if the range cuts a character of a `Str`.
    pub fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Text::Str(text) => Text::Str(&text[range]),
            Text::Bytes(bytes) => Text::Bytes(&bytes[range]),
        }
    }
}
