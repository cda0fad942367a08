//! The state of one encoding thread: its word cache and buffers.
//!
//! The ids of a word are looked up in the cache, then in the vocabulary (the whole word may be a token). If neither has
//! them, the merge algorithm computes them.

use super::encoder::{Encoder, TokenId};
use super::merge_word::{merge_short, merge_word, MergeScratch};
use super::vocabulary::{Vocabulary, NO_TOKEN};
use super::word_cache::{InlineIds, WordCache, MAX_INLINE_IDS};
use crate::packed::{pack, unpack, PackedWord, MAX_PACKED_LEN};
use crate::split::MAX_BOUNDS;
use crate::{Error, Text};

/// Bytes for the ids of all pending words: at most one id of four bytes for each byte of a word.
const ID_BUFFER_LEN: usize = 4 * MAX_PACKED_LEN * MAX_BOUNDS;

pub struct Worker {
    cache: WordCache,
    /// The ids of the current word.
    word_ids: Vec<u32>,
    merge_scratch: MergeScratch,
    /// Short words whose ids are not yet appended, with their lines in the cache. The lines of all pending words are
    /// fetched from memory at the same time.
    pending: Box<[(PackedWord, usize); MAX_BOUNDS]>,
    /// The ids of the pending words as little-endian `u32`.
    id_buffer: Box<[u8; ID_BUFFER_LEN]>,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            cache: WordCache::default(),
            word_ids: Vec::new(),
            merge_scratch: MergeScratch::default(),
            pending: Box::new([(0, 0); MAX_BOUNDS]),
            id_buffer: Box::new([0; ID_BUFFER_LEN]),
        }
    }
}

impl Worker {
    /// Prepare the cache for a large text.
    pub fn prepare(&mut self) {
        self.cache.prepare();
    }

    /// Append the ids of a text to `out`. A run of bytes that are not UTF-8 is one word.
    pub fn encode_into<I: TokenId>(&mut self, encoder: &Encoder, text: Text, out: &mut Vec<I>) -> Result<(), Error> {
        let bytes = match text {
            Text::Str(text) => return self.encode_str(encoder, text, out),
            Text::Bytes(bytes) => bytes,
        };
        if let Ok(text) = simdutf8::basic::from_utf8(bytes) {
            return self.encode_str(encoder, text, out);
        }
        let vocabulary = &encoder.vocabulary;
        let (mut invalid_start, mut invalid_end) = (0, 0);
        for chunk in bytes.utf8_chunks() {
            if !chunk.valid().is_empty() {
                self.encode_invalid(vocabulary, &bytes[invalid_start..invalid_end], out);
                self.encode_str(encoder, chunk.valid(), out)?;
                invalid_start = invalid_end + chunk.valid().len();
                invalid_end = invalid_start;
            }
            invalid_end += chunk.invalid().len();
        }
        self.encode_invalid(vocabulary, &bytes[invalid_start..invalid_end], out);
        Ok(())
    }

    /// Append the ids of bytes that are not UTF-8, possibly none.
    fn encode_invalid<I: TokenId>(&mut self, vocabulary: &Vocabulary, bytes: &[u8], out: &mut Vec<I>) {
        self.merge_into_word_ids(vocabulary, bytes);
        out.extend(self.word_ids.iter().map(|&id| I::new(id)));
    }

    fn encode_str<I: TokenId>(&mut self, encoder: &Encoder, text: &str, out: &mut Vec<I>) -> Result<(), Error> {
        let bytes = text.as_bytes();
        let vocabulary = &encoder.vocabulary;
        encoder.splitter.split(text, |bounds| {
            let mut num_pending = 0;
            for (&start, &end) in bounds.iter().zip(&bounds[1..]) {
                if let Some(word) = pack(bytes, start, end) {
                    self.pending[num_pending] = (word, self.cache.prefetch(word));
                    num_pending += 1;
                } else {
                    self.flush_pending(vocabulary, num_pending, out);
                    num_pending = 0;
                    self.encode_long(vocabulary, &bytes[start..end], out);
                }
            }
            self.flush_pending(vocabulary, num_pending, out);
        })
    }

    /// Append the ids of the pending words.
    #[inline(never)]
    fn flush_pending<I: TokenId>(&mut self, vocabulary: &Vocabulary, num_pending: usize, out: &mut Vec<I>) {
        let mut used = 0;
        for &(word, line) in &self.pending[..num_pending] {
            match self.cache.get_short(word, line) {
                Some(ids) if ids.count() <= MAX_INLINE_IDS => {
                    // Always all sixteen bytes, which takes no branch. The next word overwrites the surplus.
                    self.id_buffer[used..used + 4 * MAX_INLINE_IDS].copy_from_slice(&ids.to_le_bytes());
                    used += 4 * ids.count();
                }
                cached => {
                    let ids = encode_short(&mut self.cache, &mut self.word_ids, vocabulary, (word, line), cached);
                    for id in ids {
                        self.id_buffer[used..used + 4].copy_from_slice(&id.to_le_bytes());
                        used += 4;
                    }
                }
            }
        }
        let ids = self.id_buffer[..used].chunks_exact(4);
        out.extend(ids.map(|id| I::new(u32::from_le_bytes(id.try_into().expect("the chunk has four bytes")))));
    }

    /// Append the ids of a word that is too long to pack.
    #[inline(never)]
    fn encode_long<I: TokenId>(&mut self, vocabulary: &Vocabulary, word: &[u8], out: &mut Vec<I>) {
        if let Some(ids) = self.cache.get_long(word) {
            out.extend(ids.iter().map(|&id| I::new(id)));
            return;
        }
        self.merge_into_word_ids(vocabulary, word);
        self.cache.insert_long(word, &self.word_ids);
        out.extend(self.word_ids.iter().map(|&id| I::new(id)));
    }

    /// Set `word_ids` to the ids of a word of any length.
    fn merge_into_word_ids(&mut self, vocabulary: &Vocabulary, word: &[u8]) {
        self.word_ids.clear();
        match vocabulary.id(word) {
            NO_TOKEN => merge_word(vocabulary, word, &mut self.merge_scratch, &mut self.word_ids),
            id => self.word_ids.push(id),
        }
    }
}

/// Set `word_ids` to the ids of a short word, and return them. `cached`, from the word's own line of the cache, is
/// `None` or has more than `MAX_INLINE_IDS` ids.
#[inline(never)]
fn encode_short<'s>(
    cache: &mut WordCache,
    word_ids: &'s mut Vec<u32>,
    vocabulary: &Vocabulary,
    (word, line): (PackedWord, usize),
    cached: Option<InlineIds>,
) -> &'s [u32] {
    word_ids.clear();
    let (bytes, len) = unpack(word);
    let bytes = &bytes[..len];
    let cached = cached.or_else(|| cache.get_displaced(word, line));
    if let Some(ids) = cached {
        if ids.count() <= MAX_INLINE_IDS {
            word_ids.extend(ids.iter());
            return word_ids;
        }
        if let Some(ids) = cache.get_long(bytes) {
            word_ids.extend_from_slice(ids);
            return word_ids;
        }
    }
    match vocabulary.packed_id(word) {
        NO_TOKEN => merge_short(vocabulary, bytes, word_ids),
        id => word_ids.push(id),
    }
    if cached.is_none() {
        cache.insert_short(word, line, word_ids);
    }
    if word_ids.len() > MAX_INLINE_IDS {
        cache.insert_long(bytes, word_ids);
    }
    word_ids
}
