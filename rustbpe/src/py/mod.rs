//! The Python module `nanochat.tokenization._rustbpe`: a thin binding that converts arguments and results.
//!
//! The module is thread-safe without Python's global lock: shared state is immutable or behind a mutex, and texts are
//! read from immutable strings, bytes and Arrow buffers. So `gil_used = false` keeps a free-threaded Python (3.14t and
//! later) from enabling the lock. Such a Python does not load abi3 wheels, but can build the module from source for its
//! own version. That build has been compiled; the module has been run only on versions of Python with the lock.

mod arrow;
mod encoder;
mod gpt;
mod int_array;
mod texts;
mod trainer;
mod training;

use crate::Error;
use encoder::PyEncoder;
use gpt::{read_bandwidth, NativeGPT};
use int_array::IntArray;
use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use trainer::train;
use training::{amx_attention_grads, causal_attention, causal_attention_grads, has_amx, has_vectors, softcap_terms};

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::UnknownId(_) => PyKeyError::new_err(error.to_string()),
            _ => PyValueError::new_err(error.to_string()),
        }
    }
}

#[pymodule(gil_used = false)]
fn _rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyEncoder>()?;
    module.add_class::<IntArray>()?;
    module.add_class::<NativeGPT>()?;
    module.add_function(wrap_pyfunction!(read_bandwidth, module)?)?;
    module.add_function(wrap_pyfunction!(amx_attention_grads, module)?)?;
    module.add_function(wrap_pyfunction!(has_amx, module)?)?;
    module.add_function(wrap_pyfunction!(has_vectors, module)?)?;
    module.add_function(wrap_pyfunction!(causal_attention, module)?)?;
    module.add_function(wrap_pyfunction!(causal_attention_grads, module)?)?;
    module.add_function(wrap_pyfunction!(softcap_terms, module)?)?;
    module.add_function(wrap_pyfunction!(train, module)?)
}
