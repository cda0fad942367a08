//! Encoding: text to token ids, many texts in several threads, and ids back to bytes.

mod batch;
mod encoder;
mod merge_word;
mod vocabulary;
mod word_cache;
mod worker;

pub use batch::{encode_batch, encode_batch_with, EncodedBatch};
pub use encoder::{Encoder, TokenId};
pub use vocabulary::Vocabulary;
