//! The tokens: from bytes to id, from a pair of neighbours to the id of both together, from id to bytes.

use crate::packed::{self as words, FastMap, PackedWord};
use crate::Error;

/// No token.
pub const NO_TOKEN: u32 = u32::MAX;

/// The most tokens: ids, and ids plus one, take 21 bits, so that three of them fit into one number.
const MAX_TOKENS: usize = (1 << 21) - 1;

/// Tokens by id, the special ones last. An id is also a rank: of two possible merges the lower id comes first.
pub struct Vocabulary {
    bytes: Vec<u8>,
    /// Token `id` is `bytes[starts[id]..starts[id + 1]]`.
    starts: Vec<u32>,
    num_ordinary: usize,
    byte_id: [u32; 256],
    byte_pair_id: Vec<u32>,
    short: ShortTable,
    long: FastMap<Box<[u8]>, u32>,
    pairs: PairTable,
}

impl Vocabulary {
    /// `tokens` by id, `specials` (names) with the ids after them.
    ///
    /// Errors: a byte without a token, a token twice or empty, too many tokens.
    pub fn new<T: AsRef<[u8]>>(tokens: &[T], specials: &[String]) -> Result<Self, Error> {
        if tokens.len() + specials.len() > MAX_TOKENS {
            return Err(Error::Vocabulary(format!("more than {MAX_TOKENS} tokens")));
        }
        let mut vocabulary = Self {
            bytes: Vec::new(),
            starts: vec![0],
            num_ordinary: tokens.len(),
            byte_id: [NO_TOKEN; 256],
            byte_pair_id: vec![NO_TOKEN; 1 << 16],
            short: ShortTable::with_room_for(tokens.len()),
            long: FastMap::default(),
            pairs: PairTable::default(),
        };
        for (id, token) in tokens.iter().enumerate() {
            vocabulary.add(id as u32, token.as_ref())?;
        }
        for name in specials {
            vocabulary.append(name.as_bytes())?;
        }
        if let Some(byte) = vocabulary.byte_id.iter().position(|&id| id == NO_TOKEN) {
            return Err(Error::Vocabulary(format!("the single byte 0x{byte:02x} has no token")));
        }
        vocabulary.find_pairs();
        Ok(vocabulary)
    }

    fn append(&mut self, token: &[u8]) -> Result<(), Error> {
        self.bytes.extend_from_slice(token);
        let end = u32::try_from(self.bytes.len());
        self.starts.push(end.map_err(|_| Error::Vocabulary("more than 4 GiB of tokens".into()))?);
        Ok(())
    }

    fn add(&mut self, id: u32, token: &[u8]) -> Result<(), Error> {
        if token.is_empty() || self.id(token) != NO_TOKEN {
            return Err(Error::Vocabulary(format!("token {id} is empty, or there twice: {token:?}")));
        }
        self.append(token)?;
        match *token {
            [byte] => self.byte_id[usize::from(byte)] = id,
            [a, b] => self.byte_pair_id[usize::from(a) << 8 | usize::from(b)] = id,
            _ => {}
        }
        match words::pack(token, 0, token.len()) {
            Some(word) => self.short.insert(word, id),
            None => drop(self.long.insert(token.into(), id)),
        }
        Ok(())
    }

    /// Every way to cut a token into two tokens, not only the one by which it was made: a merge depends on bytes alone.
    fn find_pairs(&mut self) {
        let ordinary = 0..self.num_ordinary as u32;
        let longest = ordinary.clone().map(|id| self.token_len(id)).max().unwrap_or(0);
        let mut is_length = vec![false; longest + 1]; // is there a token of that length? Spares long tokens most cuts
        ordinary.clone().for_each(|id| is_length[self.token_len(id)] = true);
        let mut found = Vec::new();
        for id in ordinary {
            let token = self.token(id);
            for cut in (1..token.len()).filter(|&cut| is_length[cut] && is_length[token.len() - cut]) {
                let (left, right) = (self.id(&token[..cut]), self.id(&token[cut..]));
                if left != NO_TOKEN && right != NO_TOKEN {
                    found.push((left, right, id));
                }
            }
        }
        self.pairs = PairTable::new(&found);
    }

    /// Number of ids, special tokens included.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a token; a special token's name.
    pub fn token(&self, id: u32) -> &[u8] {
        let id = id as usize;
        &self.bytes[self.starts[id] as usize..self.starts[id + 1] as usize]
    }

    #[inline]
    pub fn token_len(&self, id: u32) -> usize {
        let id = id as usize;
        (self.starts[id + 1] - self.starts[id]) as usize
    }

    #[inline]
    pub fn byte_id(&self, byte: u8) -> u32 {
        self.byte_id[usize::from(byte)]
    }

    #[inline]
    pub fn byte_pair_id(&self, a: u8, b: u8) -> u32 {
        self.byte_pair_id[usize::from(a) << 8 | usize::from(b)]
    }

    #[inline]
    pub fn packed_id(&self, word: PackedWord) -> u32 {
        self.short.get(word)
    }

    #[inline]
    pub fn merged_id(&self, left: u32, right: u32) -> u32 {
        self.pairs.get(left, right)
    }

    /// The ordinary token with exactly these bytes, or NO_TOKEN.
    pub fn id(&self, bytes: &[u8]) -> u32 {
        if bytes.is_empty() {
            return NO_TOKEN;
        }
        match words::pack(bytes, 0, bytes.len()) {
            Some(word) => self.short.get(word),
            None => self.long.get(bytes).copied().unwrap_or(NO_TOKEN),
        }
    }

    /// Append the bytes of `ids` to `out`. Errors: an id that does not exist.
    pub fn decode(&self, ids: &[i64], out: &mut Vec<u8>) -> Result<(), Error> {
        for &id in ids {
            if id < 0 || id as usize >= self.len() {
                return Err(Error::UnknownId(id));
            }
            out.extend_from_slice(self.token(id as u32));
        }
        Ok(())
    }
}

/// Packed words to ids: open addressing, at most half full.
struct ShortTable {
    words: Vec<PackedWord>,
    ids: Vec<u32>,
}

impl ShortTable {
    fn with_room_for(entries: usize) -> Self {
        let size = (2 * entries + 2).next_power_of_two();
        Self { words: vec![0; size], ids: vec![NO_TOKEN; size] }
    }

    fn slot(&self, word: PackedWord) -> usize {
        let mask = self.words.len() - 1;
        let mut at = words::hash_packed(word) as usize & mask;
        while self.words[at] != word && self.words[at] != 0 {
            at = (at + 1) & mask;
        }
        at
    }

    fn insert(&mut self, word: PackedWord, id: u32) {
        let at = self.slot(word);
        self.words[at] = word;
        self.ids[at] = id;
    }

    fn get(&self, word: PackedWord) -> u32 {
        self.ids[self.slot(word)]
    }
}

/// Pairs of ids to ids, each entry one number: left, right and result in 21 bits each, one bit to tell it from nothing.
struct PairTable {
    entries: Vec<u64>,
}

impl Default for PairTable {
    fn default() -> Self {
        Self::new(&[])
    }
}

impl PairTable {
    fn new(pairs: &[(u32, u32, u32)]) -> Self {
        let mut table = Self { entries: vec![0; (2 * pairs.len() + 2).next_power_of_two()] };
        for &(left, right, id) in pairs {
            let key = Self::key(left, right);
            let mask = table.entries.len() - 1;
            let mut at = Self::hash(key) & mask;
            while table.entries[at] != 0 {
                at = (at + 1) & mask;
            }
            table.entries[at] = key << 21 | u64::from(id);
        }
        table
    }

    fn key(left: u32, right: u32) -> u64 {
        1 << 42 | u64::from(left) << 21 | u64::from(right)
    }

    fn hash(key: u64) -> usize {
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize
    }

    #[inline]
    fn get(&self, left: u32, right: u32) -> u32 {
        let key = Self::key(left, right);
        let mask = self.entries.len() - 1;
        let mut at = Self::hash(key) & mask;
        loop {
            let entry = self.entries[at];
            if entry >> 21 == key {
                return (entry & 0x1F_FFFF) as u32;
            }
            if entry == 0 {
                return NO_TOKEN;
            }
            at = (at + 1) & mask;
        }
    }
}
