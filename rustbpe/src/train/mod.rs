//! Train the merges of byte-level BPE.

mod count_words;
mod merges;
mod word_counts;

pub use count_words::{count_words, Texts};
pub use merges::{token_bytes, train_merges};
pub use word_counts::WordCounts;
