//! The Python module `nanochat.tokenization._rustbpe`: types in and out, Python's lock, signals. No algorithm lives here.
//!
//! Nothing relies on Python's lock: what is shared is either immutable or behind a mutex, which the compiler checks, and
//! the texts are read from immutable strings, bytes and Arrow buffers. So the module does not ask a free-threaded Python
//! (3.14t and later) to switch the lock on. Such a Python loads no abi3 wheel; built on it from source the module is one
//! for that version alone. That it compiles so has been checked; it has been run on Pythons with the lock only.

mod arrow;
mod encoder;
mod int_array;
mod texts;
mod trainer;

use crate::Error;
use encoder::PyEncoder;
use int_array::IntArray;
use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::prelude::*;
use trainer::train;

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
    module.add_function(wrap_pyfunction!(train, module)?)
}
