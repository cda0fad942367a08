//! Cuts text into the words that merges never cross.

use crate::Error;
use fancy_regex::Regex;

/// A compiled split pattern.
pub struct Splitter {
    regex: Regex,
}

impl Splitter {
    pub fn new(pattern: &str) -> Result<Self, Error> {
        let regex = Regex::new(pattern).map_err(|error| Error::Pattern(error.to_string()))?;
        Ok(Self { regex })
    }

    /// Call `visit` with every word of `text`, in order. What the pattern does not match is left out.
    ///
    /// ```
    /// let splitter = rustbpe::Splitter::new(r" ?\w+|\s+").unwrap();
    /// let mut words = Vec::new();
    /// splitter.split("to be, or", |word| words.push(word.to_vec())).unwrap();
    /// assert_eq!(words, [&b"to"[..], b" be", b" or"]);
    /// ```
    pub fn split<'t>(&self, text: &'t str, mut visit: impl FnMut(&'t [u8])) -> Result<(), Error> {
        for found in self.regex.find_iter(text) {
            let found = found.map_err(|error| Error::Split(error.to_string()))?;
            if !found.as_str().is_empty() {
                visit(found.as_str().as_bytes());
            }
        }
        Ok(())
    }
}
