//! Split text into the words that merges never cross.

mod block_scan;
mod char_class;
mod gpt_pattern;
mod splitter;
mod word_scan;

pub use splitter::Splitter;
pub(crate) use splitter::MAX_BOUNDS;
