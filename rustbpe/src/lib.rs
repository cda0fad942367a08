//! Byte-level BPE, exact and parallel: training, encoding, decoding.
//!
//! Text is cut into words by a pattern ([`Splitter`]), distinct words are counted by several threads
//! ([`count_words`]), and the most frequent pair of neighbouring tokens is merged again and again
//! ([`train_merges`]). Between equal counts the lower pair of ids wins, so the result depends on the text alone:
//! not on the number of threads, nor on the order of the documents. An [`Encoder`] turns texts into ids, many at once by
//! [`encode_batch`], and its [`Vocabulary`] turns ids into bytes.
//!
//! Nothing here knows of Python; the binding is `py.rs`, `py_train.rs` and `arrow.rs`, behind the feature `python`.

#[cfg(feature = "python")]
mod arrow;
mod batch;
mod cache;
mod classes;
mod count;
mod encode;
mod error;
mod merge;
mod pages;
mod pattern;
#[cfg(feature = "python")]
mod py;
#[cfg(feature = "python")]
mod py_train;
mod split;
mod starts;
mod train;
mod vocabulary;
mod words;

pub use batch::{encode_batch, encode_fed, Batch};
pub use count::{count_words, Texts};
pub use encode::{Encoder, Id, Text};
pub use error::Error;
pub use split::Splitter;
pub use train::{token_bytes, train_merges};
pub use vocabulary::Vocabulary;
pub use words::WordCounts;
