//! Encode text into token ids, and decode ids into bytes.

mod batch;
mod encoder;
mod merge_word;
mod vocabulary;
mod word_cache;
mod worker;

pub use batch::{encode_batch, encode_fed, Batch};
pub use encoder::{Encoder, Id};
pub use vocabulary::Vocabulary;
