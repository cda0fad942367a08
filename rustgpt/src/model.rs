//! The forward pass: token ids of many sequences -> logits.
//!
//! Letters in shape comments: N tokens, C width, H query heads, K key-value heads, D head size, V vocabulary.

use crate::attention::{Cache, Queries, Shape, BLOCK, MANY};
use crate::buffer::Buffer;
use crate::cpu::{Cpu, Kernel};
use crate::lanes::{Lanes, LANES};
#[cfg(target_arch = "x86_64")]
use crate::matrix::RowTiles;
use crate::matrix::{from_bf16, Format, Matrix, Rows, Store, Total, Weights};
use crate::matrix::{to_bf16, TILE_INPUTS};
use crate::pool::Pool;

const NORM_EPS: f32 = 1e-6;
/// Tokens of one sequence whose attention is one piece of work: they read the same keys while those are in the cache of
/// the processor.
const TILE: usize = 8;
/// Rows up to which norms are computed by the calling thread: handing them out would take longer.
const FEW_ROWS: usize = 4;

/// Shape of a model.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    pub context_len: usize,
    pub vocab_size: usize,
    pub n_layer: usize,
    pub attention: Shape,
    /// Cap of the logits; 0 = none.
    pub softcap: f32,
}

impl Config {
    /// C.
    pub fn width(&self) -> usize {
        self.attention.n_head * self.attention.head_dim
    }
}

/// The weights of a layer as they are given, (n_out, n_in) each.
pub struct LayerWeights<'a> {
    pub q: Weights<'a>,
    pub k: Weights<'a>,
    pub v: Weights<'a>,
    pub o: Weights<'a>,
    pub up: Weights<'a>,
    pub down: Weights<'a>,
}

struct Layer {
    qkv: Matrix,
    o: Matrix,
    up: Matrix,
    down: Matrix,
    cache: Cache,
}

enum Embedding {
    F32(Buffer<f32>),
    Bf16(Buffer<u16>),
}

/// A model with its cache.
pub struct Model {
    config: Config,
    num_blocks: usize,
    cpu: Cpu,
    pool: Pool,
    embedding: Embedding,
    rope: Buffer<f32>, // (context_len, D): cosines, then sines
    layers: Vec<Layer>,
    head: Matrix,
    scratch: Scratch,
}

/// The tokens of a step; see `StepTokens` in nanochat/inference/model_step.py.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    pub tokens: &'a [i32],
    pub positions: &'a [i32],
    pub rows: &'a [i32],
    /// (R, `table_len`)
    pub block_tables: &'a [i32],
    pub table_len: usize,
    pub wanted: &'a [i32],
}

#[derive(Default)]
struct Scratch {
    x: Vec<f32>,           // (N, C): the residual stream
    normed: Vec<f32>,      // (N, C)
    qkv: Vec<f32>,         // (N, (H + 2 K) D)
    attended: Vec<f32>,    // (N, H D)
    hidden: Vec<f32>,      // (N, 4 C)
    tiles: Buffer<u16>,    // (N, up to 4 C): the input of a product with AMX
    scores: Vec<Vec<f32>>, // of each thread
}

impl Model {
    /// Pack the weights. `embedding`: (V, C) in `format`, or bfloat16 if that is int8; `head`: (V, C); `rope`:
    /// cosines (context_len, D/2) and sines.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        config: Config,
        format: Format,
        num_blocks: usize,
        num_threads: usize,
        cpu: Cpu,
        embedding: Weights,
        rope: (&[f32], &[f32]),
        layers: &[LayerWeights],
        head: Weights,
    ) -> Model {
        let (width, attention) = (config.width(), config.attention);
        let embedding = match embedding {
            Weights::F32(weights) => Embedding::F32(buffer(weights)),
            Weights::Bf16(weights) => Embedding::Bf16(buffer(weights)),
        };
        let half = attention.head_dim / 2;
        let mut table = Buffer::zeroed(config.context_len * 2 * half);
        for position in 0..config.context_len {
            let row = &mut table[position * 2 * half..][..2 * half];
            row[..half].copy_from_slice(&rope.0[position * half..][..half]);
            row[half..].copy_from_slice(&rope.1[position * half..][..half]);
        }
        let layers = layers
            .iter()
            .map(|weights| Layer {
                qkv: Matrix::pack(&[weights.q, weights.k, weights.v], width, format),
                o: Matrix::pack(&[weights.o], width, format),
                up: Matrix::pack(&[weights.up], width, format),
                down: Matrix::pack(&[weights.down], 4 * width, format),
                cache: Cache::new(attention, num_blocks, format != Format::F32),
            })
            .collect();
        let head = Matrix::pack(&[head], width, format);
        let pool = Pool::new(num_threads);
        let scratch = Scratch { scores: vec![Vec::new(); pool.num_threads()], ..Scratch::default() };
        Model { config, num_blocks, cpu, pool, embedding, rope: table, layers, head, scratch }
    }

    /// Shape of the model.
    pub fn config(&self) -> Config {
        self.config
    }

    /// Bytes of weights that a step reads, without the embedding.
    pub fn weight_bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(|layer| [&layer.qkv, &layer.o, &layer.up, &layer.down]);
        layers.chain([&self.head]).map(Matrix::n_bytes).sum()
    }

    /// Copy a block of the cache.
    pub fn copy_block(&mut self, source: usize, target: usize) -> Result<(), String> {
        if source.max(target) >= self.num_blocks {
            return Err(format!("block {} of {}", source.max(target), self.num_blocks));
        }
        for layer in &mut self.layers {
            layer.cache.copy_block(self.config.attention, source, target);
        }
        Ok(())
    }

    /// Write the keys and values of all tokens into their blocks, and the logits of the wanted tokens, (L, V), into
    /// `logits`. Returns a reason, and changes nothing, if the step is impossible.
    pub fn forward(&mut self, step: Step, logits: &mut [f32]) -> Result<(), String> {
        check(&self.config, self.num_blocks, &step)?;
        let (config, cpu) = (self.config, self.cpu);
        let vocab_size = config.vocab_size;
        if logits.len() != step.wanted.len() * vocab_size {
            return Err(format!("room for {} logits, not {} x {vocab_size}", logits.len(), step.wanted.len()));
        }
        let Model { pool, layers, scratch, embedding, rope, head, .. } = self;
        let count = step.tokens.len();
        let (width, shape) = (config.width(), config.attention);
        let qkv_width = (shape.n_head + 2 * shape.n_kv_head) * shape.head_dim;
        // Products of bfloat16 and int8 weights read padded columns, which are 0 and stay it.
        let padded = width.next_multiple_of(TILE_INPUTS);
        let hidden_padded = (4 * width).next_multiple_of(TILE_INPUTS);
        scratch.x.resize(count * width, 0.0);
        scratch.normed.resize(count * padded, 0.0);
        scratch.qkv.resize(count * qkv_width, 0.0);
        scratch.attended.resize(count * padded, 0.0);
        scratch.hidden.resize(count * hidden_padded, 0.0);
        let longest = step.positions.iter().max().map_or(0, |&position| position as usize + 1);
        for scores in &mut scratch.scores {
            scores.resize(MANY * longest.next_multiple_of(BLOCK), 0.0);
        }
        let scores: Vec<*mut f32> = scratch.scores.iter_mut().map(Vec::as_mut_ptr).collect();
        let x = scratch.x.as_mut_ptr();
        let normed = scratch.normed.as_mut_ptr();
        let qkv = scratch.qkv.as_mut_ptr();
        let attended = scratch.attended.as_mut_ptr();
        let hidden = scratch.hidden.as_mut_ptr();
        let rows = |x, x_stride, y, y_stride| Rows { x, x_stride, y, y_stride, count };

        let tiles = tiles(step.rows);
        let embed = Embed { embedding, tokens: step.tokens, width, x };
        run(pool, cpu, &embed, count, count <= FEW_ROWS);
        for (number, layer) in layers.iter().enumerate() {
            let next = layers.get(number + 1).map_or(&*head, |layer| &layer.qkv);
            run(
                pool,
                cpu,
                &Norm { x, x_stride: width, out: normed, out_stride: padded, width, rows: None },
                count,
                count <= FEW_ROWS,
            );
            pool.fetch_ahead(layer.o.bytes());
            product(pool, cpu, &mut scratch.tiles, &layer.qkv, rows(normed, padded, qkv, qkv_width), Store::Plain);
            let heads = Heads { step, rope, shape, cache: &layer.cache, qkv, qkv_width };
            run(pool, cpu, &heads, count, count <= FEW_ROWS);
            let (cache, scores) = (&layer.cache, &scores[..]);
            let attend =
                Attend { step, tiles: &tiles, shape, cache, qkv, qkv_width, out: attended, out_stride: padded, scores };
            run(pool, cpu, &attend, tiles.len() * shape.n_kv_head, false);
            pool.fetch_ahead(layer.up.bytes());
            product(pool, cpu, &mut scratch.tiles, &layer.o, rows(attended, padded, x, width), Store::Add);
            run(
                pool,
                cpu,
                &Norm { x, x_stride: width, out: normed, out_stride: padded, width, rows: None },
                count,
                count <= FEW_ROWS,
            );
            pool.fetch_ahead(layer.down.bytes());
            product(
                pool,
                cpu,
                &mut scratch.tiles,
                &layer.up,
                rows(normed, padded, hidden, hidden_padded),
                Store::ReluSquared,
            );
            pool.fetch_ahead(next.bytes());
            product(pool, cpu, &mut scratch.tiles, &layer.down, rows(hidden, hidden_padded, x, width), Store::Add);
        }
        let wanted = step.wanted.len();
        let norm = Norm { x, x_stride: width, out: normed, out_stride: padded, width, rows: Some(step.wanted) };
        run(pool, cpu, &norm, wanted, wanted <= FEW_ROWS);
        let store = if config.softcap > 0.0 { Store::Softcap(config.softcap) } else { Store::Plain };
        let rows = Rows { x: normed, x_stride: padded, y: logits.as_mut_ptr(), y_stride: vocab_size, count: wanted };
        pool.fetch_ahead(layers.first().map_or(&*head, |layer| &layer.qkv).bytes());
        product(pool, cpu, &mut scratch.tiles, head, rows, store);
        Ok(())
    }
}

fn buffer<T: Copy>(numbers: &[T]) -> Buffer<T> {
    let mut buffer = Buffer::zeroed(numbers.len());
    buffer.copy_from_slice(numbers);
    buffer
}

/// Measure the bytes per second at which `num_threads` threads read `num_bytes` of memory: the fastest of a few times.
pub fn read_bandwidth(num_bytes: usize, num_threads: usize) -> f64 {
    let mut numbers = Buffer::<f32>::zeroed(num_bytes / 4);
    numbers.fill(1.0);
    let mut pool = Pool::new(num_threads);
    let total = Total::new(&numbers);
    let seconds = (0..5).map(|_| {
        let start = std::time::Instant::now();
        run(&mut pool, Cpu::supported()[0], &total, total.sums.len(), false);
        start.elapsed().as_secs_f64()
    });
    num_bytes as f64 / seconds.fold(f64::INFINITY, f64::min)
}

/// Return a reason if a step would read or write outside of the model's memory, or write one place in two threads.
fn check(config: &Config, num_blocks: usize, step: &Step) -> Result<(), String> {
    let count = step.tokens.len();
    if count == 0 || step.positions.len() != count || step.rows.len() != count {
        return Err(format!("{count} tokens, {} positions, {} rows", step.positions.len(), step.rows.len()));
    }
    let num_rows = step.block_tables.len().checked_div(step.table_len).unwrap_or(0);
    let mut first_position = 0; // of a sequence, in this step
    let mut written: Vec<i32> = Vec::new();
    for i in 0..count {
        let (token, position, row) = (step.tokens[i], step.positions[i], step.rows[i]);
        if token < 0 || token as usize >= config.vocab_size {
            return Err(format!("token {token} of a vocabulary of {}", config.vocab_size));
        }
        if position < 0 || position as usize >= config.context_len {
            return Err(format!("position {position} of a context of {}", config.context_len));
        }
        if row < 0 || row as usize >= num_rows {
            return Err(format!("row {row} of {num_rows} block tables"));
        }
        if i > 0 && (row < step.rows[i - 1] || (row == step.rows[i - 1] && position != step.positions[i - 1] + 1)) {
            return Err(format!("token {i} does not follow the one before it"));
        }
        if i == 0 || step.rows[i - 1] != row {
            first_position = position as usize;
        }
        let is_last = i + 1 == count || step.rows[i + 1] != row;
        if is_last {
            let n_blocks = position as usize / BLOCK + 1;
            if n_blocks > step.table_len {
                return Err(format!("position {position} in {} blocks", step.table_len));
            }
            let blocks = &step.block_tables[row as usize * step.table_len..][..n_blocks];
            if let Some(block) = blocks.iter().find(|&&block| block < 0 || block as usize >= num_blocks) {
                return Err(format!("block {block} of {num_blocks}"));
            }
            written.extend(&blocks[first_position / BLOCK..]);
        }
    }
    written.sort_unstable();
    if let Some(twice) = written.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("block {} is written twice", twice[0]));
    }
    match step.wanted.iter().find(|&&index| index < 0 || index as usize >= count) {
        Some(index) => Err(format!("logits of token {index} of {count}")),
        None => Ok(()),
    }
}

/// Cut the tokens into runs of one sequence, of at most `TILE` tokens: (first, number).
fn tiles(rows: &[i32]) -> Vec<(usize, usize)> {
    let mut tiles: Vec<(usize, usize)> = Vec::new();
    for (token, row) in rows.iter().enumerate() {
        match tiles.last_mut() {
            Some((first, count)) if rows[*first] == *row && *count < TILE => *count += 1,
            _ => tiles.push((token, 1)),
        }
    }
    tiles
}

/// Compute all pieces of a kernel, in the calling thread if `is_short`.
fn run<K: Kernel>(pool: &mut Pool, cpu: Cpu, kernel: &K, count: usize, is_short: bool) {
    let kernel = Trusted(kernel);
    // SAFETY: the instructions were chosen from those supported, and each piece writes results of its own.
    let work = |piece: usize, thread: usize| unsafe { cpu.run(kernel.get(), piece, thread) };
    if is_short {
        (0..count).for_each(|piece| work(piece, 0));
    } else {
        pool.run(count, &work);
    }
}

/// Rows up to which AVX-512 computes products with bfloat16 and int8 weights although AMX works: it reads them faster.
#[cfg(target_arch = "x86_64")]
const ROWS_WITHOUT_AMX: usize = 4;

/// Compute a product. `rows.x` belongs to `Scratch`; what it holds afterwards is rounded, if the product does that.
fn product(pool: &mut Pool, cpu: Cpu, tiles: &mut Buffer<u16>, matrix: &Matrix, rows: Rows, store: Store) {
    let is_short = rows.count <= FEW_ROWS;
    #[cfg(target_arch = "x86_64")]
    if cpu == Cpu::Amx && matrix.rounds_rows() && rows.count > ROWS_WITHOUT_AMX {
        let padded = matrix.n_in.next_multiple_of(TILE_INPUTS);
        if tiles.len() < RowTiles::len(rows.count, padded) {
            *tiles = Buffer::zeroed(RowTiles::len(rows.count, padded)); // aligned, so that a row of a tile is a cache line
        }
        let tiles = RowTiles { start: tiles.as_mut_ptr(), padded };
        run(pool, cpu, &RoundIntoTiles { rows, tiles }, rows.count, is_short);
        run(pool, cpu, &ProductAmx { matrix, tiles, rows, store }, matrix.n_panels(), false);
        return;
    }
    let _ = tiles;
    if matrix.rounds_rows() {
        run(pool, cpu, &Round { rows, width: matrix.n_in }, rows.count, is_short);
    }
    run(pool, cpu, &Product { matrix, rows, store }, matrix.n_panels(), false);
}

/// A kernel that may be used by several threads although it holds pointers.
struct Trusted<'a, K>(&'a K);
// SAFETY: the pieces of every kernel of this module write to distinct memory.
unsafe impl<K> Sync for Trusted<'_, K> {}
impl<K> Trusted<'_, K> {
    fn get(&self) -> &K {
        self.0
    }
}

struct Product<'a> {
    matrix: &'a Matrix,
    rows: Rows,
    store: Store,
}

impl Kernel for Product<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, panel: usize, _: usize) {
        self.matrix.product::<L>(panel, self.rows, self.store);
    }
}

#[cfg(target_arch = "x86_64")]
struct ProductAmx<'a> {
    matrix: &'a Matrix,
    tiles: RowTiles,
    rows: Rows,
    store: Store,
}

#[cfg(target_arch = "x86_64")]
impl Kernel for ProductAmx<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, panel: usize, _: usize) {
        self.matrix.product_amx::<L>(panel, self.tiles, self.rows, self.store);
    }
}

/// Rows of a product, rounded to bfloat16 where they stand.
struct Round {
    rows: Rows,
    width: usize,
}

impl Kernel for Round {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, row: usize, _: usize) {
        let x = self.rows.x.add(row * self.rows.x_stride);
        for column in 0..self.width {
            *x.add(column) = from_bf16(to_bf16(*x.add(column)));
        }
    }
}

/// Rows of a product, rounded to bfloat16, into tiles.
#[cfg(target_arch = "x86_64")]
struct RoundIntoTiles {
    rows: Rows,
    tiles: RowTiles,
}

#[cfg(target_arch = "x86_64")]
impl Kernel for RoundIntoTiles {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, row: usize, _: usize) {
        self.tiles.put(row, self.rows.x.add(row * self.rows.x_stride));
    }
}

/// The embedding of a token, normalized: id -> x (C).
struct Embed<'a> {
    embedding: &'a Embedding,
    tokens: &'a [i32],
    width: usize,
    x: *mut f32,
}

impl Kernel for Embed<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, token: usize, _: usize) {
        let x = self.x.add(token * self.width);
        let from = self.tokens[token] as usize * self.width;
        for column in 0..self.width {
            *x.add(column) = match self.embedding {
                Embedding::F32(table) => table[from + column],
                Embedding::Bf16(table) => from_bf16(table[from + column]),
            };
        }
        rms_norm::<L>(x, x, self.width);
    }
}

/// RMSNorm without parameters: x (C) -> out (C), of the given rows of x, else of all.
struct Norm<'a> {
    x: *const f32,
    x_stride: usize,
    out: *mut f32,
    out_stride: usize,
    width: usize,
    rows: Option<&'a [i32]>,
}

impl Kernel for Norm<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, piece: usize, _: usize) {
        let row = self.rows.map_or(piece, |rows| rows[piece] as usize);
        rms_norm::<L>(self.x.add(row * self.x_stride), self.out.add(piece * self.out_stride), self.width);
    }
}

/// Write x / sqrt(mean(x^2) + eps); `out` may be `x`.
#[inline(always)]
unsafe fn rms_norm<L: Lanes>(x: *const f32, out: *mut f32, len: usize) {
    let whole = len / LANES * LANES;
    let mut squares = L::splat(0.0);
    for i in (0..whole).step_by(LANES) {
        let x = L::load(x.add(i));
        squares = x.fma(x, squares);
    }
    let mut sum = squares.sum();
    for i in whole..len {
        sum = (*x.add(i)).mul_add(*x.add(i), sum);
    }
    let factor = 1.0 / (sum / len as f32 + NORM_EPS).sqrt();
    for i in (0..whole).step_by(LANES) {
        L::load(x.add(i)).mul(L::splat(factor)).store(out.add(i));
    }
    for i in whole..len {
        *out.add(i) = *x.add(i) * factor;
    }
}

/// Rotate and normalize the queries and keys of a token, and write keys and values into the cache.
struct Heads<'a> {
    step: Step<'a>,
    rope: &'a [f32],
    shape: Shape,
    cache: &'a Cache,
    qkv: *mut f32,
    qkv_width: usize,
}

impl Kernel for Heads<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, token: usize, _: usize) {
        let Shape { n_head, n_kv_head, head_dim } = self.shape;
        let position = self.step.positions[token] as usize;
        let (cos, sin) = self.rope[position * head_dim..][..head_dim].split_at(head_dim / 2);
        let qkv = self.qkv.add(token * self.qkv_width);
        for head in 0..n_head + n_kv_head {
            let y = qkv.add(head * head_dim);
            rotate::<L>(y, y.add(head_dim / 2), cos, sin);
            rms_norm::<L>(y, y, head_dim);
        }
        let table = self.step.rows[token] as usize * self.step.table_len;
        let block = self.step.block_tables[table + position / BLOCK] as usize;
        for head in 0..n_kv_head {
            let key = qkv.add((n_head + head) * head_dim);
            let value = qkv.add((n_head + n_kv_head + head) * head_dim);
            self.cache.write(self.shape, head, block, position % BLOCK, key, value);
        }
    }
}

/// Rotate the pairs (y1, y2) by angles of which the cosines and sines are given: (y1 cos + y2 sin, y2 cos - y1 sin).
#[inline(always)]
unsafe fn rotate<L: Lanes>(y1: *mut f32, y2: *mut f32, cos: &[f32], sin: &[f32]) {
    let whole = cos.len() / LANES * LANES;
    for i in (0..whole).step_by(LANES) {
        let (a, b) = (L::load(y1.add(i)), L::load(y2.add(i)));
        let (cos, sin) = (L::load(cos.as_ptr().add(i)), L::load(sin.as_ptr().add(i)));
        a.mul(cos).add(b.mul(sin)).store(y1.add(i));
        b.mul(cos).sub(a.mul(sin)).store(y2.add(i));
    }
    for i in whole..cos.len() {
        let (a, b) = (*y1.add(i), *y2.add(i));
        *y1.add(i) = a * cos[i] + b * sin[i];
        *y2.add(i) = b * cos[i] - a * sin[i];
    }
}

/// Attention of a tile of tokens, in the query heads of one key-value head.
struct Attend<'a> {
    step: Step<'a>,
    tiles: &'a [(usize, usize)],
    shape: Shape,
    cache: &'a Cache,
    qkv: *const f32,
    qkv_width: usize,
    out: *mut f32,
    out_stride: usize,
    scores: &'a [*mut f32], // of each thread
}

impl Kernel for Attend<'_> {
    #[inline(always)]
    unsafe fn run<L: Lanes>(&self, piece: usize, thread: usize) {
        let scores = self.scores[thread];
        let Shape { n_head, n_kv_head, head_dim } = self.shape;
        let (first, count) = self.tiles[piece / n_kv_head];
        let kv_head = piece % n_kv_head;
        let table_len = self.step.table_len;
        let blocks = &self.step.block_tables[self.step.rows[first] as usize * table_len..][..table_len];
        for head in kv_head * (n_head / n_kv_head)..(kv_head + 1) * (n_head / n_kv_head) {
            let mut token = first;
            while token < first + count {
                let queries = Queries {
                    query: self.qkv.add(token * self.qkv_width + head * head_dim),
                    stride: self.qkv_width,
                    out: self.out.add(token * self.out_stride + head * head_dim),
                    out_stride: self.out_stride,
                    len: self.step.positions[token] as usize + 1,
                };
                let is_many = first + count - token >= MANY;
                self.cache.attend::<L>(self.shape, kv_head, blocks, queries, is_many, scores);
                token += if is_many { MANY } else { 1 };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_written_once_in_a_step() {
        let attention = Shape { n_head: 1, n_kv_head: 1, head_dim: 2 };
        let config = Config { context_len: 64, vocab_size: 9, n_layer: 1, attention, softcap: 0.0 };
        let result = |positions: &[i32], rows: &[i32], block_tables: &[i32]| {
            let tokens = vec![0; rows.len()];
            check(&config, 4, &Step { tokens: &tokens, positions, rows, block_tables, table_len: 2, wanted: &[] })
        };
        assert_eq!(result(&[20, 17], &[0, 1], &[0, 1, 0, 2]), Ok(())); // both read block 0
        assert_eq!(result(&[20, 17], &[0, 1], &[0, 1, 2, 1]), Err("block 1 is written twice".to_string()));
        assert_eq!(result(&[15, 16], &[0, 0], &[3, 3]), Err("block 3 is written twice".to_string()));
    }
}
