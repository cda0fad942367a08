//! Choice of the instructions: kernels are compiled for each kind of processor, and one kind is chosen when they run.

use crate::lanes::*;

/// A kind of instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cpu {
    /// AVX-512, and AMX for products of bfloat16 and int8 weights.
    Amx,
    Avx512,
    Avx2,
    Neon,
    Portable,
}

/// A computation in independent pieces, written for any kind of instructions.
pub trait Kernel {
    /// Compute a piece; `thread`: number of the thread that does, which has working memory of its own.
    ///
    /// # Safety
    /// The processor supports `L`. No two threads compute the same piece at the same time.
    unsafe fn run<L: Lanes>(&self, piece: usize, thread: usize);
}

impl Cpu {
    /// All kinds that this processor supports, the fastest first; without AMX, which may not work where it is advertised.
    pub fn supported() -> Vec<Cpu> {
        let mut kinds = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if has_avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                kinds.push(Cpu::Avx512);
            }
            if has_avx2 {
                kinds.push(Cpu::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        kinds.push(Cpu::Neon);
        kinds.push(Cpu::Portable);
        kinds
    }

    /// The kind of this name, in small letters. None if this processor does not support it.
    pub fn named(name: &str) -> Option<Cpu> {
        let kinds = Cpu::supported();
        #[cfg(target_arch = "x86_64")]
        if name == "amx" {
            return (kinds[0] == Cpu::Avx512 && crate::amx::request()).then_some(Cpu::Amx);
        }
        kinds.into_iter().find(|kind| format!("{kind:?}").to_lowercase() == name)
    }

    /// Compute a piece of a kernel with these instructions.
    ///
    /// # Safety
    /// The processor supports them, and no two threads compute the same piece at the same time.
    pub unsafe fn run<K: Kernel>(self, kernel: &K, piece: usize, thread: usize) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Cpu::Avx512 | Cpu::Amx => run_avx512(kernel, piece, thread),
            #[cfg(target_arch = "x86_64")]
            Cpu::Avx2 => run_avx2(kernel, piece, thread),
            #[cfg(target_arch = "aarch64")]
            Cpu::Neon => kernel.run::<Neon>(piece, thread),
            _ => kernel.run::<Portable>(piece, thread),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
unsafe fn run_avx512<K: Kernel>(kernel: &K, piece: usize, thread: usize) {
    kernel.run::<Avx512>(piece, thread);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: Kernel>(kernel: &K, piece: usize, thread: usize) {
    kernel.run::<Avx2>(piece, thread);
}
