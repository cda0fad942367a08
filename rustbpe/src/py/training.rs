//! Functions of a training step on CPUs. nanochat/layers/cpu_kernels.py is their only user, which vouches for addresses.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use rustgpt::{Attention, AttentionGrads, Cpu, Heads, Sizes, SoftcapRows};

/// A tensor (B, H, T, D): its address, and the strides of batch, heads and positions in elements.
type Tensor = (usize, usize, usize, usize);

/// Write the sums and, if `grads` is not 0, the gradients of `count` rows of raw logits. See nanochat/layers/softcap_loss.py.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn softcap_terms(
    py: Python<'_>,
    is_bf16: bool,
    raw: usize,
    count: usize,
    len: usize,
    stride: usize,
    cap: f32,
    sums: usize,
    grads: usize,
    num_threads: usize,
) {
    let cpu = Cpu::supported()[0];
    // SAFETY: the caller vouches for the addresses.
    py.detach(|| unsafe {
        let sums = sums as *mut f32;
        if is_bf16 {
            let (raw, grads) = (raw as *const u16, grads as *mut u16);
            rustgpt::softcap_terms(SoftcapRows { raw, count, len, stride, cap, sums, grads }, cpu, num_threads);
        } else {
            let (raw, grads) = (raw as *const f32, grads as *mut f32);
            rustgpt::softcap_terms(SoftcapRows { raw, count, len, stride, cap, sums, grads }, cpu, num_threads);
        }
    });
}

/// Write the result and the logarithms of the sums, (B, H, T), of causal attention. `sizes`: B, H, T, D. All float32.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn causal_attention(
    py: Python<'_>,
    sizes: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sums: usize,
    num_threads: usize,
) {
    // SAFETY: the caller vouches for the addresses.
    py.detach(|| unsafe {
        rustgpt::attention(tensors(sizes, q, k, v, out, log_sums), Cpu::supported()[0], num_threads);
    });
}

/// Write the gradients by q, k and v, given that by the result.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn causal_attention_grads(
    py: Python<'_>,
    sizes: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sums: usize,
    d_out: Tensor,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    num_threads: usize,
) {
    // SAFETY: as above.
    py.detach(|| unsafe {
        let forward = tensors(sizes, q, k, v, out, log_sums);
        let [d_out, d_q, d_k, d_v] = [d_out, d_q, d_k, d_v].map(heads);
        let grads = AttentionGrads { forward, d_out, d_q, d_k, d_v };
        rustgpt::attention_grads(grads, Cpu::supported()[0], num_threads);
    });
}

/// Write the gradients by q, k and v in bfloat16, with AMX. Raises RuntimeError if this processor has none.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn amx_attention_grads(
    py: Python<'_>,
    sizes: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sums: usize,
    d_out: Tensor,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
    num_threads: usize,
) -> PyResult<()> {
    if Cpu::named("amx").is_none() {
        return Err(PyRuntimeError::new_err("this processor has no AMX"));
    }
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above; the caller knows that AMX works.
    py.detach(|| unsafe {
        let [q, k, v, out, d_out, d_q, d_k, d_v] =
            [q, k, v, out, d_out, d_q, d_k, d_v].map(|(address, batch, head, position)| rustgpt::Heads16 {
                start: address as *mut u16,
                batch,
                head,
                position,
            });
        let (sizes, log_sums) = (sizes_of(sizes), log_sums as *const f32);
        let tensors = rustgpt::AmxAttentionGrads { sizes, q, k, v, out, log_sums, d_out, d_q, d_k, d_v };
        rustgpt::amx_attention_grads(tensors, num_threads);
    });
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (py, sizes, q, k, v, out, log_sums, d_out, d_q, d_k, d_v, num_threads);
    Ok(())
}

/// True if these functions have vector instructions on this processor, without which torch's are faster.
#[pyfunction]
pub fn has_vectors() -> bool {
    Cpu::supported()[0] != Cpu::Portable
}

/// True if this processor has AMX, and the system lets this process use it.
#[pyfunction]
pub fn has_amx() -> bool {
    Cpu::named("amx").is_some()
}

fn sizes_of((batch, heads, positions, head_dim): Tensor) -> Sizes {
    Sizes { batch, heads, positions, head_dim }
}

fn heads((address, batch, head, position): Tensor) -> Heads {
    Heads { start: address as *mut f32, batch, head, position }
}

fn tensors(sizes: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sums: usize) -> Attention {
    let sizes = sizes_of(sizes);
    Attention { sizes, q: heads(q), k: heads(k), v: heads(v), out: heads(out), log_sums: log_sums as *mut f32 }
}
