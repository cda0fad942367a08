//! The Python module `nanochat.tokenization._rustbpe`: types in and out, Python's lock, signals. No algorithm lives here.
//!
//! Nothing relies on Python's lock: what is shared is either immutable or behind a mutex, which the compiler checks, and
//! the texts are read from immutable strings, bytes and Arrow buffers. So the module does not ask a free-threaded Python
//! (3.14t and later) to switch the lock on. Such a Python loads no abi3 wheel; built on it from source the module is one
//! for that version alone. That it compiles so has been checked; it has been run on Pythons with the lock only.

mod arrow;
mod trainer;

use crate::{encode_batch, encode_fed, Batch, Encoder, Error, Id, Splitter, Text, Vocabulary};
use arrow::{ChunkedTextArray, Exported};
use pyo3::exceptions::{PyKeyError, PyOverflowError, PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::sync::critical_section::with_critical_section;
use pyo3::types::{PyBytes, PyCapsule, PyCapsuleMethods, PyDict, PyList, PyString};
use std::sync::OnceLock;
use trainer::train;

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::UnknownId(_) => PyKeyError::new_err(error.to_string()),
            _ => PyValueError::new_err(error.to_string()),
        }
    }
}

/// An array of integers; numpy.asarray looks at it without a copy.
#[pyclass(frozen, module = "nanochat.tokenization._rustbpe")]
struct Numbers(Store);

enum Store {
    U16(Vec<u16>),
    U32(Vec<u32>),
    I64(Vec<i64>),
}

#[pymethods]
impl Numbers {
    /// How many numbers there are.
    fn __len__(&self) -> usize {
        match &self.0 {
            Store::U16(numbers) => numbers.len(),
            Store::U32(numbers) => numbers.len(),
            Store::I64(numbers) => numbers.len(),
        }
    }

    /// Numpy's array interface, version 3. The array that looks at this memory keeps this object alive.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (kind, address) = match &self.0 {
            Store::U16(numbers) => ("u2", numbers.as_ptr() as usize),
            Store::U32(numbers) => ("u4", numbers.as_ptr() as usize),
            Store::I64(numbers) => ("i8", numbers.as_ptr() as usize),
        };
        let order = if cfg!(target_endian = "little") { '<' } else { '>' };
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("shape", (self.__len__(),))?;
        interface.set_item("typestr", format!("{order}{kind}"))?;
        interface.set_item("data", (address, false))?;
        Ok(interface)
    }
}

/// A Python string or bytes, held so that Rust can read it without Python's lock.
enum Held {
    Str(PyBackedStr),
    Bytes(PyBackedBytes),
}

impl Held {
    fn new(text: &Bound<'_, PyAny>) -> PyResult<Self> {
        if text.is_instance_of::<PyBytes>() {
            return Ok(Held::Bytes(text.extract()?));
        }
        match text.extract::<PyBackedStr>() {
            Err(error) if error.is_instance_of::<PyUnicodeEncodeError>(text.py()) => {
                // A lone surrogate, which UTF-8 has no bytes for, becomes U+FFFD.
                let utf16 = text.call_method1("encode", ("utf-16", "surrogatepass"))?;
                Ok(Held::Str(utf16.call_method1("decode", ("utf-16", "replace"))?.extract()?))
            }
            other => other.map(Held::Str),
        }
    }

    fn text(&self) -> Text<'_> {
        match self {
            Held::Str(text) => Text::Str(text),
            Held::Bytes(bytes) => Text::Bytes(bytes),
        }
    }
}

/// The texts of a batch: Python's strings and bytes, or an Arrow array.
pub enum Source {
    Python(Vec<Py<PyAny>>),
    Arrow(ChunkedTextArray),
}

impl Source {
    pub fn new(texts: &Bound<'_, PyAny>) -> PyResult<Self> {
        let from_arrow =
            |texts: Result<ChunkedTextArray, String>| texts.map(Source::Arrow).map_err(PyValueError::new_err);
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
        texts.try_iter()?.map(|text| Ok(text?.unbind())).collect::<PyResult<_>>().map(Source::Python)
    }

    fn encode<I: Id>(&self, py: Python<'_>, encoder: &Encoder, num_threads: usize) -> PyResult<Batch<I>> {
        match self {
            Source::Python(texts) => {
                // Python gives out strings as UTF-8 one at a time, under its lock: other threads begin with those it gave.
                // What is neither string nor bytes is refused when its turn comes, and may say any length meanwhile.
                let is_text = |text: &Bound<'_, PyAny>| {
                    text.is_exact_instance_of::<PyString>() || text.is_exact_instance_of::<PyBytes>()
                };
                let lengths =
                    texts.iter().map(|text| text.bind(py)).filter(|text| is_text(text)).map(|text| text.len());
                let size = lengths.sum::<PyResult<usize>>()?;
                let held: Vec<OnceLock<Held>> = texts.iter().map(|_| OnceLock::new()).collect();
                py.detach(|| {
                    encode_fed(encoder, num_threads, size, |add| {
                        Python::attach(|py| {
                            for (cell, text) in held.iter().zip(texts) {
                                let text = Held::new(text.bind(py))?;
                                add(cell.get_or_init(|| text).text());
                            }
                            Ok(())
                        })
                    })
                })
            }
            Source::Arrow(arrays) => {
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

/// A vocabulary with its split pattern; text is never a special token.
#[pyclass(frozen, module = "nanochat.tokenization._rustbpe", name = "Encoder")]
struct PyEncoder(Encoder);

#[pymethods]
impl PyEncoder {
    /// Encoder(pattern, tokens, special_tokens): the tokens by id; the special ones have the ids that follow.
    #[new]
    fn new(pattern: &str, tokens: Vec<PyBackedBytes>, special_tokens: Vec<String>) -> PyResult<Self> {
        let splitter = Splitter::new(pattern)?;
        Ok(Self(Encoder::new(Vocabulary::new(&tokens, &special_tokens)?, splitter)))
    }

    /// The ids of one text, a str or bytes.
    fn encode(&self, py: Python<'_>, text: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        let held = Held::new(text)?;
        Ok(py.detach(|| self.0.encode(held.text()))?)
    }

    /// The ids of all texts, one after another, and the offsets: text i has ids[offsets[i]:offsets[i + 1]].
    #[pyo3(signature = (texts, num_threads=1))]
    fn encode_batch(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        num_threads: usize,
    ) -> PyResult<(Numbers, Numbers)> {
        let source = Source::new(texts)?;
        let (ids, offsets) = if self.0.vocabulary.len() <= 1 << 16 {
            let batch = source.encode(py, &self.0, num_threads)?;
            (Store::U16(batch.ids), batch.offsets)
        } else {
            let batch = source.encode(py, &self.0, num_threads)?;
            (Store::U32(batch.ids), batch.offsets)
        };
        Ok((Numbers(ids), Numbers(Store::I64(offsets))))
    }

    /// The ids of each text as a list.
    #[pyo3(signature = (texts, num_threads=1))]
    fn encode_lists<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        num_threads: usize,
    ) -> PyResult<Vec<Bound<'py, PyList>>> {
        let batch = Source::new(texts)?.encode::<u32>(py, &self.0, num_threads)?;
        let row = |range: &[i64]| PyList::new(py, &batch.ids[range[0] as usize..range[1] as usize]);
        batch.offsets.windows(2).map(row).collect()
    }

    /// The bytes of ids. Raises KeyError for an id that does not exist.
    fn decode_bytes<'py>(&self, ids: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
        let py = ids.py();
        let ids: Vec<i64> = ids.extract().map_err(|error: PyErr| {
            // Beyond 64 bits there is no token either.
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

    /// The bytes of each row of ids.
    fn decode_batch<'py>(&self, rows: Vec<Bound<'py, PyAny>>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        rows.iter().map(|ids| self.decode_bytes(ids)).collect()
    }
}

#[pymodule(gil_used = false)]
fn _rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyEncoder>()?;
    module.add_class::<Numbers>()?;
    module.add_function(wrap_pyfunction!(train, module)?)
}
