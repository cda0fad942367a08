//! The class `NativeGPT`: the forward pass of the crate `rustgpt`.

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use rustgpt::{Config, Cpu, Format, LayerWeights, Model, Shape, Step, Weights};
use std::sync::Mutex;

/// Address and number of elements of an array.
type Array = (usize, usize);

/// A model with packed weights and its cache, on the CPU. See nanochat/inference/native_step.py, its only user, which
/// vouches for the addresses that it passes.
#[pyclass(frozen, module = "nanochat.tokenization._rustbpe")]
pub struct NativeGPT(Mutex<Model>);

unsafe fn slice<'a, T>((address, len): Array) -> &'a [T] {
    if len == 0 {
        return &[]; // its address may be 0
    }
    // SAFETY: the caller passes the address of `len` elements that live as long as the call.
    unsafe { std::slice::from_raw_parts(address as *const T, len) }
}

unsafe fn slice_mut<'a, T>((address, len): Array) -> &'a mut [T] {
    if len == 0 {
        return &mut []; // its address may be 0: torch has no memory for the logits of a step that wants none
    }
    // SAFETY: as above; nobody else uses them.
    unsafe { std::slice::from_raw_parts_mut(address as *mut T, len) }
}

unsafe fn weights<'a>(array: Array, is_bf16: bool) -> Weights<'a> {
    // SAFETY: as above.
    unsafe {
        if is_bf16 {
            Weights::Bf16(slice(array))
        } else {
            Weights::F32(slice(array))
        }
    }
}

/// Bytes per second at which threads read memory.
#[pyfunction]
pub fn read_bandwidth(py: Python<'_>, num_bytes: usize, num_threads: usize) -> f64 {
    py.detach(|| rustgpt::read_bandwidth(num_bytes, num_threads))
}

#[pymethods]
impl NativeGPT {
    /// Pack the weights of a model. `matrices`: of each layer q, k, v, o, up, down.
    #[new]
    #[pyo3(signature = (*, context_len, vocab_size, n_layer, n_head, n_kv_head, head_dim, softcap, format, num_blocks,
                        num_threads, is_bf16, embedding, head, rope_cos, rope_sin, matrices, cpu = None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        context_len: usize,
        vocab_size: usize,
        n_layer: usize,
        n_head: usize,
        n_kv_head: usize,
        head_dim: usize,
        softcap: f32,
        format: &str,
        num_blocks: usize,
        num_threads: usize,
        is_bf16: bool,
        embedding: Array,
        head: Array,
        rope_cos: Array,
        rope_sin: Array,
        matrices: Vec<Vec<Array>>,
        cpu: Option<&str>,
    ) -> PyResult<Self> {
        let format = match format {
            "float32" => Format::F32,
            "bfloat16" => Format::Bf16,
            "int8" => Format::Int8,
            _ => return Err(PyValueError::new_err(format!("format {format:?}"))),
        };
        let shape = Shape { n_head, n_kv_head, head_dim };
        let config = Config { context_len, vocab_size, n_layer, attention: shape, softcap };
        let (width, kv_width) = (n_head * head_dim, n_kv_head * head_dim);
        let sizes =
            [width * width, kv_width * width, kv_width * width, width * width, 4 * width * width, 4 * width * width];
        let fits = matrices.len() == n_layer
            && matrices.iter().all(|layer| layer.iter().map(|array| array.1).eq(sizes))
            && embedding.1 == vocab_size * width
            && head.1 == vocab_size * width
            && rope_cos.1 == context_len * (head_dim / 2)
            && rope_sin.1 == rope_cos.1;
        if !fits {
            return Err(PyValueError::new_err("a weight has another size than the shape of the model"));
        }
        let cpu = match cpu {
            None => Cpu::supported()[0],
            Some(name) => Cpu::named(name).ok_or_else(|| {
                PyValueError::new_err(format!("cpu {name:?}: this one supports {:?}", Cpu::supported()))
            })?,
        };
        let model = py.detach(|| {
            // SAFETY: the sizes were compared above, and the caller vouches for the addresses.
            unsafe {
                let layers: Vec<_> = matrices
                    .iter()
                    .map(|layer| LayerWeights {
                        q: weights(layer[0], is_bf16),
                        k: weights(layer[1], is_bf16),
                        v: weights(layer[2], is_bf16),
                        o: weights(layer[3], is_bf16),
                        up: weights(layer[4], is_bf16),
                        down: weights(layer[5], is_bf16),
                    })
                    .collect();
                Model::new(
                    config,
                    format,
                    num_blocks,
                    num_threads,
                    cpu,
                    weights(embedding, is_bf16),
                    (slice(rope_cos), slice(rope_sin)),
                    &layers,
                    weights(head, is_bf16),
                )
            }
        });
        Ok(NativeGPT(Mutex::new(model)))
    }

    /// Run a step: int32 arrays as in `StepTokens` -> float32 logits, written to `logits`.
    #[allow(clippy::too_many_arguments)]
    fn forward(
        &self,
        py: Python<'_>,
        tokens: Array,
        positions: Array,
        rows: Array,
        block_tables: Array,
        table_len: usize,
        wanted: Array,
        logits: Array,
    ) -> PyResult<()> {
        py.detach(|| {
            let mut model = self.0.lock().map_err(|_| "an earlier step failed".to_string())?;
            // SAFETY: the caller vouches for the addresses; nobody else uses the memory of the logits.
            unsafe {
                let step = Step {
                    tokens: slice(tokens),
                    positions: slice(positions),
                    rows: slice(rows),
                    block_tables: slice(block_tables),
                    table_len,
                    wanted: slice(wanted),
                };
                model.forward(step, slice_mut(logits))
            }
        })
        .map_err(PyRuntimeError::new_err)
    }

    /// Copy a block of the cache.
    fn copy_block(&self, source: usize, target: usize) -> PyResult<()> {
        let mut model = self.0.lock().map_err(|_| PyRuntimeError::new_err("an earlier step failed"))?;
        model.copy_block(source, target).map_err(PyRuntimeError::new_err)
    }

    /// Bytes of weights that every step reads.
    #[getter]
    fn weight_bytes(&self) -> PyResult<usize> {
        Ok(self.0.lock().map_err(|_| PyRuntimeError::new_err("an earlier step failed"))?.weight_bytes())
    }
}
