//! Texts from Python.

use super::arrow::{ChunkedTextArray, Exported};
use crate::{encode_batch, encode_batch_with, EncodedBatch, Encoder, Text, TokenId};
use pyo3::exceptions::{PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::sync::critical_section::with_critical_section;
use pyo3::types::{PyBytes, PyCapsule, PyCapsuleMethods, PyString};
use std::sync::OnceLock;

/// A Python string or bytes, held so that Rust can read it without Python's lock.
pub enum PyText {
    Str(PyBackedStr),
    Bytes(PyBackedBytes),
}

impl PyText {
    pub fn new(text: &Bound<'_, PyAny>) -> PyResult<Self> {
        if text.is_instance_of::<PyBytes>() {
            return Ok(PyText::Bytes(text.extract()?));
        }
        match text.extract::<PyBackedStr>() {
            Err(error) if error.is_instance_of::<PyUnicodeEncodeError>(text.py()) => {
                // A lone surrogate, which UTF-8 has no bytes for, becomes U+FFFD.
                let utf16 = text.call_method1("encode", ("utf-16", "surrogatepass"))?;
                Ok(PyText::Str(utf16.call_method1("decode", ("utf-16", "replace"))?.extract()?))
            }
            other => other.map(PyText::Str),
        }
    }

    pub fn text(&self) -> Text<'_> {
        match self {
            PyText::Str(text) => Text::Str(text),
            PyText::Bytes(bytes) => Text::Bytes(bytes),
        }
    }
}

/// The texts of a batch: Python's strings and bytes, or an Arrow array.
pub enum TextSource {
    Python(Vec<Py<PyAny>>),
    Arrow(ChunkedTextArray),
}

impl TextSource {
    pub fn new(texts: &Bound<'_, PyAny>) -> PyResult<Self> {
        let from_arrow =
            |texts: Result<ChunkedTextArray, String>| texts.map(TextSource::Arrow).map_err(PyValueError::new_err);
        if texts.hasattr("__arrow_c_stream__")? {
            let stream = take_from_capsule(&texts.call_method0("__arrow_c_stream__")?)?;
            return from_arrow(ChunkedTextArray::from_stream(stream));
        }
        if texts.hasattr("__arrow_c_array__")? {
            let capsules = texts.call_method0("__arrow_c_array__")?;
            let schema = take_from_capsule(&capsules.get_item(0)?)?;
            let array = take_from_capsule(&capsules.get_item(1)?)?;
            return from_arrow(ChunkedTextArray::from_array(schema, array));
        }
        if texts.is_instance_of::<PyString>() || texts.is_instance_of::<PyBytes>() {
            return Err(PyTypeError::new_err("expected several texts, not one: put it into a list"));
        }
        texts.try_iter()?.map(|text| Ok(text?.unbind())).collect::<PyResult<_>>().map(TextSource::Python)
    }

    pub fn encode<I: TokenId>(
        &self,
        py: Python<'_>,
        encoder: &Encoder,
        num_threads: usize,
    ) -> PyResult<EncodedBatch<I>> {
        match self {
            TextSource::Python(texts) => {
                // Python gives out strings as UTF-8 one at a time, under its lock: other threads begin with those it gave.
                // What is neither string nor bytes is refused when its turn comes, and may say any length meanwhile.
                let is_text = |text: &Bound<'_, PyAny>| {
                    text.is_exact_instance_of::<PyString>() || text.is_exact_instance_of::<PyBytes>()
                };
                let lengths =
                    texts.iter().map(|text| text.bind(py)).filter(|text| is_text(text)).map(|text| text.len());
                let size = lengths.sum::<PyResult<usize>>()?;
                let held: Vec<OnceLock<PyText>> = texts.iter().map(|_| OnceLock::new()).collect();
                py.detach(|| {
                    encode_batch_with(encoder, num_threads, size, |add| {
                        Python::attach(|py| {
                            for (cell, text) in held.iter().zip(texts) {
                                let text = PyText::new(text.bind(py))?;
                                add(cell.get_or_init(|| text).text());
                            }
                            Ok(())
                        })
                    })
                })
            }
            TextSource::Arrow(arrays) => {
                let texts = arrays.texts().map_err(PyValueError::new_err)?;
                Ok(py.detach(|| encode_batch(encoder, &texts, num_threads))?)
            }
        }
    }
}

/// Move the struct out of an Arrow capsule.
fn take_from_capsule<T: Exported>(capsule: &Bound<'_, PyAny>) -> PyResult<T> {
    let capsule = capsule.cast::<PyCapsule>()?;
    // The lock of the capsule: without a global lock, two threads could take the struct from one capsule at once.
    let taken = with_critical_section(capsule, || {
        let struct_pointer = capsule.pointer_checked(Some(T::CAPSULE_NAME))?;
        // SAFETY: a capsule of this name holds a struct of this type, and owns it while this function borrows the
        // capsule. No other thread accesses the struct: this function holds the capsule's lock or Python's global lock,
        // and the interface allows only one consumer for a capsule.
        Ok::<_, PyErr>(unsafe { T::take(struct_pointer.as_ptr().cast()) })
    })?;
    taken.map_err(PyValueError::new_err)
}
