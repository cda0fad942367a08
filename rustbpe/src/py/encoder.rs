//! The class `Encoder` of the Python module.

use super::int_array::{IntArray, Ints};
use super::texts::{PyText, TextSource};
use crate::{Encoder, Splitter, Vocabulary};
use pyo3::exceptions::{PyKeyError, PyOverflowError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyList};

/// A vocabulary with its split pattern. Special tokens in a text are encoded as ordinary text.
#[pyclass(frozen, module = "nanochat.tokenization._rustbpe", name = "Encoder")]
pub struct PyEncoder(Encoder);

#[pymethods]
impl PyEncoder {
    /// Encoder(pattern, tokens, special_tokens): `tokens` by id. The special tokens get the ids that follow.
    #[new]
    fn new(pattern: &str, tokens: Vec<PyBackedBytes>, special_tokens: Vec<String>) -> PyResult<Self> {
        let splitter = Splitter::new(pattern)?;
        Ok(Self(Encoder::new(Vocabulary::new(&tokens, &special_tokens)?, splitter)))
    }

    /// Return the ids of one text, a str or bytes.
    fn encode(&self, py: Python<'_>, text: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        let py_text = PyText::new(text)?;
        Ok(py.detach(|| self.0.encode(py_text.text()))?)
    }

    /// Return the ids of all texts in one array, and the offsets: text i has ids[offsets[i]:offsets[i + 1]].
    #[pyo3(signature = (texts, num_threads=1))]
    fn encode_batch(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        num_threads: usize,
    ) -> PyResult<(IntArray, IntArray)> {
        let source = TextSource::new(texts)?;
        let (ids, offsets) = if self.0.vocabulary.len() <= 1 << 16 {
            let batch = source.encode(py, &self.0, num_threads)?;
            (Ints::U16(batch.ids), batch.offsets)
        } else {
            let batch = source.encode(py, &self.0, num_threads)?;
            (Ints::U32(batch.ids), batch.offsets)
        };
        Ok((IntArray(ids), IntArray(Ints::I64(offsets))))
    }

    /// Return the ids of each text as a list.
    #[pyo3(signature = (texts, num_threads=1))]
    fn encode_lists<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        num_threads: usize,
    ) -> PyResult<Vec<Bound<'py, PyList>>> {
        let batch = TextSource::new(texts)?.encode::<u32>(py, &self.0, num_threads)?;
        let row = |range: &[i64]| PyList::new(py, &batch.ids[range[0] as usize..range[1] as usize]);
        batch.offsets.windows(2).map(row).collect()
    }

    /// Return the bytes of ids. Raises KeyError for an id that does not exist.
    fn decode_bytes<'py>(&self, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let py = ids.py();
        let ids: Vec<i64> = ids.extract().map_err(|error: PyErr| {
            // No token has an id of more than 64 bits.
            if error.is_instance_of::<PyOverflowError>(py) {
                PyKeyError::new_err(format!("no token has one of these ids: {error}"))
            } else {
                error
            }
        })?;
        let mut bytes = Vec::new();
        self.0.vocabulary.decode(&ids, &mut bytes)?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Return the bytes of each row of ids.
    fn decode_batch<'py>(&self, rows: Vec<Bound<'py, PyAny>>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        rows.iter().map(|ids| self.decode_bytes(ids)).collect()
    }
}
