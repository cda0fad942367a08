//! Train the merges of byte-level BPE.

mod count_words;
mod merges;

pub use count_words::{count_words, Texts};
pub use merges::{token_bytes, train_merges};
