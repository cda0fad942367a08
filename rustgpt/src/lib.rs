//! The forward pass of a GPT on CPUs, for generation; and pieces of a training step (`training/`).
//!
//! A [`Model`] holds packed weights and a cache of keys and values in blocks. A [`Step`] gives it tokens of any number
//! of sequences: the next token of some, a part of the prompt of others. [`Model::forward`] returns logits.
//!
//! **A token's numbers never depend on what else is in the step**, on how a prompt was cut, or on threads: every sum has
//! one order. They are the same bits on every processor, too, but for results next to and below 2^-126 (`matrix.rs`).

#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
mod buffer;
mod cpu;
mod lanes;
mod matrix;
mod model;
mod pool;
mod training;

pub use attention::{Shape, BLOCK};
pub use cpu::Cpu;
pub use matrix::{Format, Weights};
pub use model::{read_bandwidth, Config, LayerWeights, Model, Step};
#[cfg(target_arch = "x86_64")]
pub use training::{amx_attention_grads, AmxAttentionGrads, Heads16};
pub use training::{attention, attention_grads, softcap_terms, Attention, AttentionGrads, Heads, Sizes, SoftcapRows};
