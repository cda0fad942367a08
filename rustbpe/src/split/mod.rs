//! Splitting: cut text into the words (pre-tokens) that merges never cross.
//!
//! [`Splitter`] is the entry point. It parses the split pattern ([`pattern_parser`]), and runs one of three algorithms:
//! [`block_scan`] and [`word_scan`] for the patterns of the GPT family, or a regex engine for any other pattern.

mod block_scan;
mod char_class;
mod pattern_parser;
mod splitter;
mod word_scan;

pub use splitter::Splitter;
pub(crate) use splitter::MAX_BOUNDS;
