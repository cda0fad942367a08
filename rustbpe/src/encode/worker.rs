//! The state of one encoding thread.

use super::encoder::{Encoder, TokenId};
use super::merge_word::{merge_short, merge_word, MergeScratch};
use super::vocabulary::{Vocabulary, NO_TOKEN};
use super::word_cache::{WordCache, MAX_INLINE_IDS};
use crate::packed::{pack, unpack, PackedWord, MAX_PACKED_LEN};
use crate::split::MAX_BOUNDS;
use crate::{Error, Text};

/// Bytes for the ids of as many words as are asked for at once, if each of their bytes is a token.
const ROOM: usize = 4 * MAX_PACKED_LEN * MAX_BOUNDS;

/// What one thread needs for itself.
pub struct Worker {
    cache: WordCache,
    scratch: Vec<u32>,
    tables: MergeScratch,
    /// Words, with their places in the cache, which is asked for many of them at once: memory is slow, but not one at a time.
    waiting: Box<[(PackedWord, usize); MAX_BOUNDS]>,
    /// Room for their ids, in 32 bits each, the lowest byte first.
    room: Box<[u8; ROOM]>,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            cache: WordCache::default(),
            scratch: Vec::new(),
            tables: MergeScratch::default(),
            waiting: Box::new([(0, 0); MAX_BOUNDS]),
            room: Box::new([0; ROOM]),
        }
    }
}

impl Worker {
    /// Make ready for much text.
    pub fn prepare(&mut self) {
        self.cache.prepare();
    }

    /// Append the ids of a text to `out`. Neighbouring bytes that are no UTF-8 are a word of their own.
    pub fn encode_into<I: TokenId>(&mut self, encoder: &Encoder, text: Text, out: &mut Vec<I>) -> Result<(), Error> {
        let bytes = match text {
            Text::Str(text) => return self.encode_str(encoder, text, out),
            Text::Bytes(bytes) => bytes,
        };
        if let Ok(text) = simdutf8::basic::from_utf8(bytes) {
            return self.encode_str(encoder, text, out);
        }
        let (mut start, mut end) = (0, 0); // of the bytes that are no UTF-8
        for chunk in bytes.utf8_chunks() {
            if !chunk.valid().is_empty() {
                self.encode_invalid(encoder, &bytes[start..end], out);
                self.encode_str(encoder, chunk.valid(), out)?;
                start = end + chunk.valid().len();
                end = start;
            }
            end += chunk.invalid().len();
        }
        self.encode_invalid(encoder, &bytes[start..end], out);
        Ok(())
    }

    fn encode_invalid<I: TokenId>(&mut self, encoder: &Encoder, bytes: &[u8], out: &mut Vec<I>) {
        self.scratch.clear();
        match encoder.vocabulary.id(bytes) {
            NO_TOKEN => merge_word(&encoder.vocabulary, bytes, &mut self.tables, &mut self.scratch),
            id => self.scratch.push(id),
        }
        out.extend(self.scratch.iter().map(|&id| I::new(id)));
    }

    fn encode_str<I: TokenId>(&mut self, encoder: &Encoder, text: &str, out: &mut Vec<I>) -> Result<(), Error> {
        let bytes = text.as_bytes();
        let vocabulary = &encoder.vocabulary;
        encoder.splitter.split(text, |bounds| {
            let mut waiting = 0;
            for (&start, &end) in bounds.iter().zip(&bounds[1..]) {
                if let Some(word) = pack(bytes, start, end) {
                    self.waiting[waiting] = (word, self.cache.ask(word));
                    waiting += 1;
                } else {
                    self.answer(vocabulary, waiting, out);
                    waiting = 0;
                    self.long(vocabulary, &bytes[start..end], out);
                }
            }
            self.answer(vocabulary, waiting, out);
        })
    }

    /// Append the ids of the words that wait.
    #[inline(never)]
    fn answer<I: TokenId>(&mut self, vocabulary: &Vocabulary, waiting: usize, out: &mut Vec<I>) {
        let mut used = 0;
        for &(word, line) in &self.waiting[..waiting] {
            match self.cache.short(word, line) {
                Some(ids) if ids.count() <= MAX_INLINE_IDS => {
                    self.room[used..used + 4 * MAX_INLINE_IDS].copy_from_slice(&ids.few());
                    used += 4 * ids.count();
                }
                known => {
                    let has_many = known.is_some();
                    let ids = look_further(&mut self.cache, &mut self.scratch, vocabulary, (word, line), has_many);
                    for id in ids {
                        self.room[used..used + 4].copy_from_slice(&id.to_le_bytes());
                        used += 4;
                    }
                }
            }
        }
        let ids = self.room[..used].chunks_exact(4).map(|id| u32::from_le_bytes(id.try_into().expect("four bytes")));
        out.extend(ids.map(I::new));
    }

    /// A word that cannot be packed.
    #[inline(never)]
    fn long<I: TokenId>(&mut self, vocabulary: &Vocabulary, word: &[u8], out: &mut Vec<I>) {
        if let Some(ids) = self.cache.long(word) {
            out.extend(ids.iter().map(|&id| I::new(id)));
            return;
        }
        self.scratch.clear();
        match vocabulary.id(word) {
            NO_TOKEN => merge_word(vocabulary, word, &mut self.tables, &mut self.scratch),
            id => self.scratch.push(id),
        }
        self.cache.keep_long(word, &self.scratch);
        out.extend(self.scratch.iter().map(|&id| I::new(id)));
    }
}

/// The ids of a short word that is not in its line, or (`has_many`) has more than a few of them.
#[inline(never)]
fn look_further<'s>(
    cache: &mut WordCache,
    scratch: &'s mut Vec<u32>,
    vocabulary: &Vocabulary,
    (word, line): (PackedWord, usize),
    mut has_many: bool,
) -> &'s [u32] {
    scratch.clear();
    if let Some(ids) = if has_many { None } else { cache.displaced(word, line) } {
        if ids.count() <= MAX_INLINE_IDS {
            scratch.extend(ids.all());
            return scratch;
        }
        has_many = true;
    }
    let (bytes, length) = unpack(word);
    let bytes = &bytes[..length];
    if let Some(ids) = if has_many { cache.long(bytes) } else { None } {
        scratch.extend_from_slice(ids);
        return scratch;
    }
    match vocabulary.packed_id(word) {
        NO_TOKEN => merge_short(vocabulary, bytes, scratch),
        id => scratch.push(id),
    }
    if !has_many {
        cache.keep_short(word, line, scratch);
    }
    if scratch.len() > MAX_INLINE_IDS {
        cache.keep_long(bytes, scratch);
    }
    scratch
}
