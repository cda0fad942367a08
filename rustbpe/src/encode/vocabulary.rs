//! The vocabulary: lookups from bytes to token id, from two adjacent tokens to their merge, and from id to bytes.

use crate::packed::{hash_packed, pack, FastMap, PackedWord};
use crate::Error;

/// The result of a lookup that finds no token.
pub const NO_TOKEN: u32 = u32::MAX;

/// The largest number of tokens. Ids fit into 21 bits, so that three of them fit into one `u64`.
const MAX_TOKENS: usize = (1 << 21) - 1;

/// Tokens by id: ordinary tokens, then special tokens. An id is also a rank: the merge with the lower id comes first.
pub struct Vocabulary {
    /// The bytes of all tokens. Token `id` is `bytes[starts[id]..starts[id + 1]]`.
    bytes: Vec<u8>,
    starts: Vec<u32>,
    num_ordinary: usize,
    byte_ids: [u32; 256],
    /// Ids of the two-byte tokens `ab`, by `a << 8 | b`.
    byte_pair_ids: Vec<u32>,
    packed_ids: PackedTable,
    /// Ids of the tokens that are too long to pack.
    long_ids: FastMap<Box<[u8]>, u32>,
    merged_ids: PairTable,
}

impl Vocabulary {
    /// Create a vocabulary. `tokens[id]` are the bytes of a token. The names in `specials` get the ids that follow.
    ///
    /// Errors: a byte value has no token, a token is empty or a duplicate, or there are more than 2,097,151 tokens.
    pub fn new<T: AsRef<[u8]>>(tokens: &[T], specials: &[String]) -> Result<Self, Error> {
        let num_tokens = tokens.len() + specials.len();
        if num_tokens > MAX_TOKENS {
            return Err(Error::Vocabulary(format!("{num_tokens} tokens: must be at most {MAX_TOKENS}")));
        }
        let mut vocabulary = Self {
            bytes: Vec::new(),
            starts: vec![0],
            num_ordinary: tokens.len(),
            byte_ids: [NO_TOKEN; 256],
            byte_pair_ids: vec![NO_TOKEN; 1 << 16],
            packed_ids: PackedTable::with_capacity(tokens.len()),
            long_ids: FastMap::default(),
            merged_ids: PairTable::new(&[]),
        };
        for (id, token) in tokens.iter().enumerate() {
            vocabulary.add(id as u32, token.as_ref())?;
        }
        for name in specials {
            vocabulary.append_bytes(name.as_bytes())?;
        }
        if let Some(byte) = vocabulary.byte_ids.iter().position(|&id| id == NO_TOKEN) {
            let message = format!("the single byte 0x{byte:02x} has no token: all 256 byte values need one");
            return Err(Error::Vocabulary(message));
        }
        vocabulary.merged_ids = vocabulary.find_merges();
        Ok(vocabulary)
    }

    fn append_bytes(&mut self, token: &[u8]) -> Result<(), Error> {
        self.bytes.extend_from_slice(token);
        let end = u32::try_from(self.bytes.len());
        self.starts.push(end.map_err(|_| Error::Vocabulary("the tokens have more than 4 GiB".into()))?);
        Ok(())
    }

    /// Add an ordinary token.
    fn add(&mut self, id: u32, token: &[u8]) -> Result<(), Error> {
        if token.is_empty() {
            return Err(Error::Vocabulary(format!("token {id} is empty: every token needs at least one byte")));
        }
        let known = self.id(token);
        if known != NO_TOKEN {
            let message = format!("token {id} has the same bytes as token {known}: every token needs its own");
            return Err(Error::Vocabulary(message));
        }
        self.append_bytes(token)?;
        match *token {
            [byte] => self.byte_ids[usize::from(byte)] = id,
            [a, b] => self.byte_pair_ids[usize::from(a) << 8 | usize::from(b)] = id,
            _ => {}
        }
        match pack(token, 0, token.len()) {
            Some(word) => self.packed_ids.insert(word, id),
            None => drop(self.long_ids.insert(token.into(), id)),
        }
        Ok(())
    }

    /// Find every way to cut a token into two tokens, not only the way by which training created it: whether two tokens
    /// merge depends on their joined bytes alone.
    fn find_merges(&self) -> PairTable {
        let ids = 0..self.num_ordinary as u32;
        let max_len = ids.clone().map(|id| self.token_len(id)).max().unwrap_or(0);
        let mut len_exists = vec![false; max_len + 1]; // avoids most lookups for long tokens
        for id in ids.clone() {
            len_exists[self.token_len(id)] = true;
        }
        let mut merges = Vec::new();
        for id in ids {
            let token = self.token(id);
            for cut in (1..token.len()).filter(|&cut| len_exists[cut] && len_exists[token.len() - cut]) {
                let (left, right) = (self.id(&token[..cut]), self.id(&token[cut..]));
                if left != NO_TOKEN && right != NO_TOKEN {
                    merges.push((left, right, id));
                }
            }
        }
        PairTable::new(&merges)
    }

    /// Number of ids, special tokens included.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Return the bytes of a token. A special token has the bytes of its name.
    pub fn token(&self, id: u32) -> &[u8] {
        let id = id as usize;
        &self.bytes[self.starts[id] as usize..self.starts[id + 1] as usize]
    }

    /// Return the number of bytes of a token.
    #[inline]
    pub fn token_len(&self, id: u32) -> usize {
        let id = id as usize;
        (self.starts[id + 1] - self.starts[id]) as usize
    }

    /// Return the id of the token with a single byte.
    #[inline]
    pub fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[usize::from(byte)]
    }

    /// Return the id of the ordinary token with two bytes, or `NO_TOKEN`.
    #[inline]
    pub fn byte_pair_id(&self, a: u8, b: u8) -> u32 {
        self.byte_pair_ids[usize::from(a) << 8 | usize::from(b)]
    }

    /// Return the id of the ordinary token with the bytes of a packed word, or `NO_TOKEN`.
    #[inline]
    pub fn packed_id(&self, word: PackedWord) -> u32 {
        self.packed_ids.get(word)
    }

    /// Return the id of the ordinary token that two adjacent tokens merge into, or `NO_TOKEN`.
    #[inline]
    pub fn merged_id(&self, left: u32, right: u32) -> u32 {
        self.merged_ids.get(left, right)
    }

    /// Return the id of the ordinary token with exactly these bytes, or `NO_TOKEN`.
    pub fn id(&self, bytes: &[u8]) -> u32 {
        if bytes.is_empty() {
            return NO_TOKEN;
        }
        match pack(bytes, 0, bytes.len()) {
            Some(word) => self.packed_ids.get(word),
            None => self.long_ids.get(bytes).copied().unwrap_or(NO_TOKEN),
        }
    }

    /// Append the bytes of `ids` to `out`. Errors: an id does not exist.
    ///
    /// ```
    /// use rustbpe::{token_bytes, Error, Vocabulary};
    /// let vocabulary = Vocabulary::new(&token_bytes(&[(97, 98)]), &["<|bos|>".to_string()]).unwrap();
    /// let mut bytes = Vec::new();
    /// vocabulary.decode(&[257, 256, 99], &mut bytes).unwrap();
    /// assert_eq!(bytes, b"<|bos|>abc");
    /// assert_eq!(vocabulary.decode(&[258], &mut bytes), Err(Error::UnknownId(258)));
    /// ```
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

/// A hash table from packed words to ids: open addressing, at most half full.
struct PackedTable {
    words: Vec<PackedWord>, // 0 if the slot is empty
    ids: Vec<u32>,
}

impl PackedTable {
    fn with_capacity(num_entries: usize) -> Self {
        let num_slots = (2 * num_entries + 2).next_power_of_two();
        Self { words: vec![0; num_slots], ids: vec![NO_TOKEN; num_slots] }
    }

    /// Return the slot of a word, or the empty slot in which it can be inserted.
    fn slot(&self, word: PackedWord) -> usize {
        let mask = self.words.len() - 1;
        let mut slot = hash_packed(word) as usize & mask;
        while self.words[slot] != word && self.words[slot] != 0 {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn insert(&mut self, word: PackedWord, id: u32) {
        let slot = self.slot(word);
        self.words[slot] = word;
        self.ids[slot] = id;
    }

    fn get(&self, word: PackedWord) -> u32 {
        self.ids[self.slot(word)]
    }
}

/// A hash table from pairs of ids to the id of their merge: open addressing, at most half full.
///
/// An entry is one integer: a bit that marks it as used, then 21 bits each for the left, the right and the merged id.
struct PairTable {
    entries: Vec<u64>,
}

impl PairTable {
    fn new(merges: &[(u32, u32, u32)]) -> Self {
        let mut entries = vec![0; (2 * merges.len() + 2).next_power_of_two()];
        let mask = entries.len() - 1;
        for &(left, right, id) in merges {
            let key = Self::key(left, right);
            let mut slot = Self::hash(key) & mask;
            while entries[slot] != 0 {
                slot = (slot + 1) & mask;
            }
            entries[slot] = key << 21 | u64::from(id);
        }
        Self { entries }
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
        let mut slot = Self::hash(key) & mask;
        loop {
            let entry = self.entries[slot];
            if entry >> 21 == key {
                return (entry & 0x1F_FFFF) as u32;
            }
            if entry == 0 {
                return NO_TOKEN;
            }
            slot = (slot + 1) & mask;
        }
    }
}
