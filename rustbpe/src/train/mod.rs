//! Training: count the words of a corpus, then find the merges.

mod count_words;
mod train_merges;
mod word_counts;

pub use count_words::{count_words, TextBatch};
pub use train_merges::{token_bytes, train_merges};
pub use word_counts::WordCounts;
