//! Encode text into token ids, and decode ids into bytes.

mod batch;
mod encoder;
mod merge_word;
mod vocabulary;
mod word_cache;
mod worker;

pub use batch::{encode_batch, encode_batch_with, EncodedBatch};
pub use encoder::{Encoder, TokenId};
pub use vocabulary::Vocabulary;
