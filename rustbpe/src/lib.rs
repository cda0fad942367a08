//! Byte-level BPE, exact and parallel: training, encoding, decoding.
//!
//! 1. Split: a [`Splitter`] cuts text into words by a pattern. Merges never cross words.
//! 2. Train: [`count_words`] counts distinct words in several threads, and [`train_merges`] merges the most frequent
//!    pair of adjacent tokens again and again. Among pairs of equal count the lower pair of ids is merged first, so the
//!    result depends only on the text: not on the number of threads or the order of the documents.
//! 3. Encode: an [`Encoder`] turns a text into token ids, [`encode_batch`] many texts in several threads. A
//!    [`Vocabulary`] turns ids into bytes.
//!
//! ```
//! use rustbpe::{count_words, token_bytes, train_merges, Encoder, Error, Splitter, Text, Vocabulary};
//! let pattern = r"\w+|\W";
//! let mut batches = [vec!["nana ana"]].into_iter();
//! let splitter = Splitter::new(pattern)?;
//! let counts = count_words::<_, Error>(&splitter, 1, |_| Ok(batches.next()), |_| Ok(()))?;
//! let tokens = token_bytes(&train_merges::<Error>(&counts, 258, |_| Ok(()))?);
//! assert_eq!(tokens[256..], [b"na".to_vec(), b"ana".to_vec()]);
//!
//! let encoder = Encoder::new(Vocabulary::new(&tokens, &[])?, splitter);
//! assert_eq!(encoder.encode(Text::Str("banana"))?, [98, 257, 256]); // "b", "ana", "na"
//! # Ok::<(), Error>(())
//! ```
//!
//! The Python binding is `py/`, behind the feature `python`. The other modules do not depend on Python.

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
