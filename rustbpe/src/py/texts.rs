//! Texts from Python: strings, bytes and Arrow arrays.

use super::arrow::{ChunkedTextArray, Exported};
use crate::{encode_batch, encode_batch_with, EncodedBatch, Encoder, Text, TokenId};
use pyo3::exceptions::{PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::sync::critical_section::with_critical_section;
use pyo3::types::{PyBytes, PyCapsule, PyCapsuleMethods, PyString};
use std::sync::OnceLock;

/// A reference to a Python string or bytes object that can be read without Python's lock.
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
                // UTF-8 has no bytes for lone surrogates: replace them by U+FFFD.
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

/// Return true if the object exports itself by the Arrow PyCapsule interface.
pub fn is_arrow(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(object.hasattr("__arrow_c_stream__")? || object.hasattr("__arrow_c_array__")?)
}

/// Read an Arrow stream, or else an Arrow array, from an object for which `is_arrow` is true.
pub fn read_arrow(object: &Bound<'_, PyAny>) -> PyResult<ChunkedTextArray> {
    let texts = if object.hasattr("__arrow_c_stream__")? {
        let stream = take_from_capsule(&object.call_method0("__arrow_c_stream__")?)?;
        ChunkedTextArray::from_stream(stream)
    } else {
        let capsules = object.call_method0("__arrow_c_array__")?;
        let schema = take_from_capsule(&capsules.get_item(0)?)?;
        let array = take_from_capsule(&capsules.get_item(1)?)?;
        ChunkedTextArray::from_array(schema, array)
    };
    texts.map_err(PyValueError::new_err)
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

/// Raise TypeError if the argument for several texts is a single string or bytes object.
pub fn reject_single_text(texts: &Bound<'_, PyAny>) -> PyResult<()> {
    if texts.is_instance_of::<PyString>() || texts.is_instance_of::<PyBytes>() {
        return Err(PyTypeError::new_err("expected several texts, not a single one: put it into a list"));
    }
    Ok(())
}

/// The texts to encode: Python objects that should be strings or bytes, or an Arrow array.
pub enum TextSource {
    Python(Vec<Py<PyAny>>),
    Arrow(ChunkedTextArray),
}

impl TextSource {
    pub fn new(texts: &Bound<'_, PyAny>) -> PyResult<Self> {
        if is_arrow(texts)? {
            return read_arrow(texts).map(TextSource::Arrow);
        }
        reject_single_text(texts)?;
        texts.try_iter()?.map(|text| Ok(text?.unbind())).collect::<PyResult<_>>().map(TextSource::Python)
    }

    pub fn encode<I: TokenId>(
        &self,
        py: Python<'_>,
        encoder: &Encoder,
        num_threads: usize,
    ) -> PyResult<EncodedBatch<I>> {
        match self {
            TextSource::Python(objects) => encode_objects(py, objects, encoder, num_threads),
            TextSource::Arrow(array) => {
                let texts = array.texts().map_err(PyValueError::new_err)?;
                Ok(py.detach(|| encode_batch(encoder, &texts, num_threads))?)
            }
        }
    }
}

/// Encode Python objects. Raises TypeError for an object that is neither a string nor bytes.
///
/// Python converts strings to UTF-8 one at a time under its lock, while other threads encode the first ones.
fn encode_objects<I: TokenId>(
    py: Python<'_>,
    objects: &[Py<PyAny>],
    encoder: &Encoder,
    num_threads: usize,
) -> PyResult<EncodedBatch<I>> {
    // The length of an object of another type means nothing: a range, for example, may have any length.
    let is_text = |object: &Bound<'_, PyAny>| {
        object.is_exact_instance_of::<PyString>() || object.is_exact_instance_of::<PyBytes>()
    };
    let lens = objects.iter().map(|object| object.bind(py)).filter(|object| is_text(object)).map(|object| object.len());
    let expected_bytes = lens.sum::<PyResult<usize>>()?;

    let texts: Vec<OnceLock<PyText>> = objects.iter().map(|_| OnceLock::new()).collect();
    py.detach(|| {
        encode_batch_with(encoder, num_threads, expected_bytes, |push| {
            Python::attach(|py| {
                for (cell, object) in texts.iter().zip(objects) {
                    let text = PyText::new(object.bind(py))?;
                    push(cell.get_or_init(|| text).text());
                }
                Ok(())
            })
        })
    })
}
