//! From text to ids: cut into words, look each up among those seen before, else among the tokens, else merge it.

use super::merge_word::{merge_short, merge_word, Tables};
use super::vocabulary::{Vocabulary, NONE};
use super::word_cache::{Cache, FEW};
use crate::packed::{pack, unpack, Packed, SHORT};
use crate::split::MANY;
use crate::{Error, Splitter, Text};
use std::sync::Mutex;

/// How ids are stored: in 16 bits where the vocabulary allows, else in 32.
pub trait Id: Copy + Default + Send + Sync + 'static {
    fn new(id: u32) -> Self;
}

impl Id for u16 {
    fn new(id: u32) -> Self {
        id as u16
    }
}

impl Id for u32 {
    fn new(id: u32) -> Self {
        id
    }
}

/// A vocabulary with its split pattern, ready to encode in any number of threads.
pub struct Encoder {
    pub vocabulary: Vocabulary,
    pub splitter: Splitter,
    /// Memories of threads that are done, for the next ones.
    rested: Mutex<Vec<Worker>>,
    /// They are some megabytes each, so no more of them are kept than there are cores; or eight, the number of threads
    /// that is asked for by default.
    most_rested: usize,
}

/// Bytes for the ids of as many words as are asked for at once, if each of their bytes is a token.
const ROOM: usize = 4 * SHORT * MANY;

/// What one thread needs for itself.
pub struct Worker {
    cache: Cache,
    scratch: Vec<u32>,
    tables: Tables,
    /// Words, with their places in the cache, which is asked for many of them at once: memory is slow, but not one at a time.
    waiting: Box<[(Packed, usize); MANY]>,
    /// Room for their ids, in 32 bits each, the lowest byte first.
    room: Box<[u8; ROOM]>,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            cache: Cache::default(),
            scratch: Vec::new(),
            tables: Tables::default(),
            waiting: Box::new([(0, 0); MANY]),
            room: Box::new([0; ROOM]),
        }
    }
}

impl Encoder {
    pub fn new(vocabulary: Vocabulary, splitter: Splitter) -> Self {
        let most_rested = std::thread::available_parallelism().map_or(1, usize::from).max(8);
        Self { vocabulary, splitter, rested: Mutex::default(), most_rested }
    }

    /// The ids of one text.
    ///
    /// ```
    /// use rustbpe::{Encoder, Splitter, Text, Vocabulary};
    /// let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    /// tokens.extend([b"ab".to_vec(), b"abc".to_vec()]);
    /// let encoder = Encoder::new(Vocabulary::new(&tokens, &[]).unwrap(), Splitter::new(r"\w+|\W").unwrap());
    /// assert_eq!(encoder.encode(Text::Str("abcb ab")).unwrap(), [257, 98, 32, 256]);
    /// ```
    pub fn encode(&self, text: Text) -> Result<Vec<u32>, Error> {
        let mut out = Vec::new();
        self.with_worker(|worker| worker.encode_into(self, text, &mut out))?;
        Ok(out)
    }

    /// Lend a worker's memory to `work`.
    pub fn with_worker<R>(&self, work: impl FnOnce(&mut Worker) -> R) -> R {
        let rested = || self.rested.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut worker = rested().pop().unwrap_or_default();
        let result = work(&mut worker);
        let mut rested = rested();
        if rested.len() < self.most_rested {
            rested.push(worker);
        }
        result
    }
}

impl Worker {
    /// Make ready for much text.
    pub fn prepare(&mut self) {
        self.cache.prepare();
    }

    /// Append the ids of a text to `out`. Neighbouring bytes that are no UTF-8 are a word of their own.
    pub fn encode_into<I: Id>(&mut self, encoder: &Encoder, text: Text, out: &mut Vec<I>) -> Result<(), Error> {
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

    fn encode_invalid<I: Id>(&mut self, encoder: &Encoder, bytes: &[u8], out: &mut Vec<I>) {
        self.scratch.clear();
        match encoder.vocabulary.id_of(bytes) {
            NONE => merge_word(&encoder.vocabulary, bytes, &mut self.tables, &mut self.scratch),
            id => self.scratch.push(id),
        }
        out.extend(self.scratch.iter().map(|&id| I::new(id)));
    }

    fn encode_str<I: Id>(&mut self, encoder: &Encoder, text: &str, out: &mut Vec<I>) -> Result<(), Error> {
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
    fn answer<I: Id>(&mut self, vocabulary: &Vocabulary, waiting: usize, out: &mut Vec<I>) {
        let mut used = 0;
        for &(word, line) in &self.waiting[..waiting] {
            match self.cache.short(word, line) {
                Some(ids) if ids.count() <= FEW => {
                    self.room[used..used + 4 * FEW].copy_from_slice(&ids.few());
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
    fn long<I: Id>(&mut self, vocabulary: &Vocabulary, word: &[u8], out: &mut Vec<I>) {
        if let Some(ids) = self.cache.long(word) {
            out.extend(ids.iter().map(|&id| I::new(id)));
            return;
        }
        self.scratch.clear();
        match vocabulary.id_of(word) {
            NONE => merge_word(vocabulary, word, &mut self.tables, &mut self.scratch),
            id => self.scratch.push(id),
        }
        self.cache.keep_long(word, &self.scratch);
        out.extend(self.scratch.iter().map(|&id| I::new(id)));
    }
}

/// The ids of a short word that is not in its line, or (`has_many`) has more than a few of them.
#[inline(never)]
fn look_further<'s>(
    cache: &mut Cache,
    scratch: &'s mut Vec<u32>,
    vocabulary: &Vocabulary,
    (word, line): (Packed, usize),
    mut has_many: bool,
) -> &'s [u32] {
    scratch.clear();
    if let Some(ids) = if has_many { None } else { cache.displaced(word, line) } {
        if ids.count() <= FEW {
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
    match vocabulary.of_short(word) {
        NONE => merge_short(vocabulary, bytes, scratch),
        id => scratch.push(id),
    }
    if !has_many {
        cache.keep_short(word, line, scratch);
    }
    if scratch.len() > FEW {
        cache.keep_long(bytes, scratch);
    }
    scratch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_all_memories_of_many_threads_are_kept() {
        fn nest(encoder: &Encoder, depth: usize) {
            encoder.with_worker(|_| (0..depth.min(1)).for_each(|_| nest(encoder, depth - 1)));
        }
        let tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        let encoder = Encoder::new(Vocabulary::new(&tokens, &[]).unwrap(), Splitter::new(r"\w+").unwrap());
        let rested = || encoder.rested.lock().unwrap().len();
        nest(&encoder, 2);
        assert_eq!(rested(), 3);
        nest(&encoder, encoder.most_rested + 2);
        assert_eq!(rested(), encoder.most_rested);
    }
}
