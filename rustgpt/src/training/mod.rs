//! Pieces of a training step on CPUs, on tensors of torch: what its own operations take several passes for.

#[cfg(target_arch = "x86_64")]
mod amx_attention;
mod attention;
mod products;
mod softcap;
mod threads;

#[cfg(target_arch = "x86_64")]
pub use amx_attention::{amx_attention_grads, AmxAttentionGrads, Heads16};
pub use attention::{attention, attention_grads, Attention, AttentionGrads, Heads, Sizes};
pub use softcap::{softcap_terms, SoftcapRows};

use crate::lanes::Lanes;

/// A type of numbers in a tensor, read and written as float32.
pub trait Element: Copy + Send + Sync {
    /// # Safety
    /// The processor supports `L`, and 16 numbers are valid.
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
    /// # Safety
    /// As for `load`.
    unsafe fn store<L: Lanes>(lanes: L, to: *mut Self);
    /// Zero.
    const ZERO: Self;
}

impl Element for f32 {
    const ZERO: f32 = 0.0;
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const f32) -> L {
        L::load(from)
    }
    #[inline(always)]
    unsafe fn store<L: Lanes>(lanes: L, to: *mut f32) {
        lanes.store(to)
    }
}

/// The bits of a bfloat16.
impl Element for u16 {
    const ZERO: u16 = 0;
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const u16) -> L {
        L::load_bf16(from)
    }
    #[inline(always)]
    unsafe fn store<L: Lanes>(lanes: L, to: *mut u16) {
        lanes.store_bf16(to)
    }
}
