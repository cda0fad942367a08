//! Byte-level BPE, exact and parallel: training, encoding, decoding.
//!
//! Text is cut into words by a pattern ([`Splitter`]), distinct words are counted by several threads
//! ([`count_words`]), and the most frequent pair of neighbouring tokens is merged again and again
//! ([`train_merges`]). Between equal counts the lower pair of ids wins, so the result depends on the text alone:
//! not on the number of threads, nor on the order of the documents. An [`Encoder`] turns texts into ids, many at once by
//! [`encode_batch`], and its [`Vocabulary`] turns ids into bytes.
//!
//! Nothing here knows of Python; the binding is `py/`, behind the feature `python`.

mod encode;
mod error;
mod huge_pages;
mod jobs;
mod packed;
#[cfg(feature = "python")]
mod py;
mod split;
mod text;
mod train;

pub use encode::{encode_batch, encode_batch_with, EncodedBatch, Encoder, TokenId, Vocabulary};
pub use error::Error;
pub use split::Splitter;
pub use text::Text;
pub use train::{count_words, token_bytes, train_merges, TextBatch, WordCounts};
