//! The Python module `nanochat._rustbpe`: types in and out, Python's lock, signals. No algorithm lives here.
//!
//! Nothing relies on Python's lock: what is shared is either immutable or behind a mutex, which the compiler checks, and
//! the texts are read from immutable strings, bytes and Arrow buffers. So the module does not ask a free-threaded Python
//! (3.14t and later) to switch the lock on. Such a Python loads no abi3 wheel; built on it from source the module is one
//! for that version alone. That it compiles so has been checked; it has been run on Pythons with the lock only.

use crate::{
    arrow, count_words, encode_batch, token_bytes, train_merges, Encoder, Error, Splitter, Text, Texts, Vocabulary,
};
use pyo3::exceptions::{PyKeyError, PyTypeError, PyUnicodeEncodeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyCapsule, PyCapsuleMethods, PyDict, PyIterator, PyList, PyString};
use std::collections::VecDeque;
use std::ffi::CStr;
use std::time::{Duration, Instant};

/// Texts are taken from the iterator in batches of about this size.
const BATCH_BYTES: usize = 1 << 20;
/// And from at most so many items, so that an endless stream of empty ones can be interrupted.
const BATCH_ITEMS: usize = 1 << 14;
/// How often Python gets a chance to show progress or to interrupt.
const TICK: Duration = Duration::from_millis(100);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        match error {
            Error::UnknownId(_) => PyKeyError::new_err(error.to_string()),
            _ => PyValueError::new_err(error.to_string()),
        }
    }
}

/// Reports progress to Python now and then, and lets Ctrl-C through.
struct Pulse {
    progress: Option<Py<PyAny>>,
    bytes_read: usize,
    last: Instant,
}

impl Pulse {
    fn beat(&mut self, merges: usize) -> PyResult<()> {
        if self.last.elapsed() < TICK {
            return Ok(());
        }
        Python::attach(|py| self.tell(py, merges))
    }

    fn tell(&mut self, py: Python<'_>, merges: usize) -> PyResult<()> {
        self.last = Instant::now();
        py.check_signals()?;
        match &self.progress {
            Some(progress) => progress.call1(py, (self.bytes_read, merges)).map(drop),
            None => Ok(()),
        }
    }
}

/// Texts to train on, as they come from Python: strings, which are not copied, or an Arrow array.
enum Batch {
    Strings(Vec<PyBackedStr>),
    Column(arrow::Column),
}

impl Texts for Batch {
    fn len(&self) -> usize {
        match self {
            Batch::Strings(texts) => texts.len(),
            Batch::Column(column) => column.len(),
        }
    }

    fn get(&self, index: usize) -> Result<Text<'_>, Error> {
        match self {
            Batch::Strings(texts) => texts.get(index),
            Batch::Column(column) => column.get(index).map(Text::Bytes).map_err(Error::Text),
        }
    }
}

/// Batches from an iterator over strings and Arrow arrays, or from one Arrow array.
struct Batches {
    iterator: Py<PyIterator>,
    /// Columns of an Arrow array that was taken already.
    columns: VecDeque<arrow::Column>,
}

impl Batches {
    fn new(texts: &Bound<'_, PyAny>) -> PyResult<Self> {
        if texts.is_instance_of::<PyString>() || texts.is_instance_of::<PyBytes>() {
            return Err(PyTypeError::new_err("expected several texts, not one: put it into a list"));
        }
        let items = if is_arrow(texts)? { PyList::new(texts.py(), [texts])?.into_any() } else { texts.clone() };
        Ok(Self { iterator: items.try_iter()?.unbind(), columns: VecDeque::new() })
    }

    /// The next batch, or None at the end.
    fn next(&mut self, py: Python<'_>) -> PyResult<Option<Batch>> {
        let mut strings: Vec<PyBackedStr> = Vec::new();
        let (mut bytes, mut items) = (0, 0);
        while self.columns.is_empty() && bytes < BATCH_BYTES && items < BATCH_ITEMS {
            items += 1;
            match self.iterator.bind(py).clone().next().transpose()? {
                Some(item) if item.is_instance_of::<PyString>() || !is_arrow(&item)? => {
                    let text: PyBackedStr = item.extract()?;
                    bytes += text.len();
                    strings.push(text);
                }
                Some(item) => {
                    if let Source::Arrow(texts) = Source::new(&item)? {
                        self.columns.extend(texts.columns);
                    }
                }
                None if strings.is_empty() => return Ok(None),
                None => break,
            }
        }
        if strings.is_empty() {
            if let Some(column) = self.columns.pop_front() {
                return Ok(Some(Batch::Column(column)));
            }
        }
        Ok(Some(Batch::Strings(strings)))
    }
}

fn is_arrow(texts: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(texts.hasattr("__arrow_c_stream__")? || texts.hasattr("__arrow_c_array__")?)
}

#[pyfunction]
#[pyo3(signature = (texts, vocab_size, pattern, *, num_threads=None, progress=None))]
fn train(
    py: Python<'_>,
    texts: &Bound<'_, PyAny>,
    vocab_size: usize,
    pattern: &str,
    num_threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<Py<PyBytes>>> {
    if vocab_size < 256 {
        return Err(Error::VocabSize(vocab_size).into());
    }
    let splitter = Splitter::new(pattern)?;
    let num_threads = num_threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let mut batches = Batches::new(texts)?;
    let mut pulse = Pulse { progress, bytes_read: 0, last: Instant::now() };
    let tokens = py.detach(|| {
        let next_batch = |spent| {
            Python::attach(|py| {
                drop(spent);
                batches.next(py)
            })
        };
        let counts = count_words(&splitter, num_threads, next_batch, |bytes| {
            pulse.bytes_read += bytes;
            pulse.beat(0)
        })?;
        let merges = train_merges(&counts, vocab_size, |merges| pulse.beat(merges))?;
        Python::attach(|py| pulse.tell(py, merges.len()))?;
        Ok::<_, PyErr>(token_bytes(&merges))
    })?;
    Ok(tokens.iter().map(|token| PyBytes::new(py, token).unbind()).collect())
}

/// Numbers that numpy can look at without copying them.
#[pyclass(frozen, module = "nanochat._rustbpe")]
struct Numbers(Store);

enum Store {
    U16(Vec<u16>),
    U32(Vec<u32>),
    I64(Vec<i64>),
}

#[pymethods]
impl Numbers {
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
            Held::Bytes(bytes) => Text::from_bytes(bytes),
        }
    }
}

/// The texts of a batch: from a Python sequence, or from an Arrow array.
enum Source {
    Python(Vec<Held>),
    Arrow(arrow::Texts),
}

impl Source {
    fn new(texts: &Bound<'_, PyAny>) -> PyResult<Self> {
        let from_arrow = |texts: Result<arrow::Texts, String>| texts.map(Source::Arrow).map_err(PyValueError::new_err);
        if texts.hasattr("__arrow_c_stream__")? {
            let capsule = texts.call_method0("__arrow_c_stream__")?;
            let stream: *mut arrow::Stream = pointer(&capsule, c"arrow_array_stream")?;
            // SAFETY: the capsule of that name holds such a struct, and is ours to take.
            return from_arrow(arrow::Texts::from_stream(unsafe { arrow::Stream::take(stream) }));
        }
        if texts.hasattr("__arrow_c_array__")? {
            let capsules = texts.call_method0("__arrow_c_array__")?;
            let schema: *mut arrow::Schema = pointer(&capsules.get_item(0)?, c"arrow_schema")?;
            let array: *mut arrow::Array = pointer(&capsules.get_item(1)?, c"arrow_array")?;
            // SAFETY: as above.
            return from_arrow(unsafe {
                arrow::Texts::from_array(arrow::Schema::take(schema), arrow::Array::take(array))
            });
        }
        if texts.is_instance_of::<PyString>() || texts.is_instance_of::<PyBytes>() {
            return Err(PyTypeError::new_err("expected several texts, not one: put it into a list"));
        }
        texts.try_iter()?.map(|text| Held::new(&text?)).collect::<PyResult<_>>().map(Source::Python)
    }

    fn texts(&self) -> PyResult<Vec<Text<'_>>> {
        match self {
            Source::Python(held) => Ok(held.iter().map(Held::text).collect()),
            Source::Arrow(arrays) => arrays.texts().map_err(PyValueError::new_err),
        }
    }
}

fn pointer<T>(capsule: &Bound<'_, PyAny>, name: &CStr) -> PyResult<*mut T> {
    let capsule = capsule.cast::<PyCapsule>()?;
    Ok(capsule.pointer_checked(Some(name))?.as_ptr().cast())
}

/// A vocabulary with its split pattern.
#[pyclass(frozen, module = "nanochat._rustbpe", name = "Encoder")]
struct PyEncoder(Encoder);

#[pymethods]
impl PyEncoder {
    #[new]
    fn new(pattern: &str, tokens: Vec<PyBackedBytes>, special_tokens: Vec<String>) -> PyResult<Self> {
        let splitter = Splitter::new(pattern)?;
        Ok(Self(Encoder::new(Vocabulary::new(&tokens, &special_tokens)?, splitter)))
    }

    fn encode(&self, py: Python<'_>, text: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        let held = Held::new(text)?;
        Ok(py.detach(|| self.0.encode(held.text()))?)
    }

    #[pyo3(signature = (texts, num_threads=1))]
    fn encode_batch(
        &self,
        py: Python<'_>,
        texts: &Bound<'_, PyAny>,
        num_threads: usize,
    ) -> PyResult<(Numbers, Numbers)> {
        let source = Source::new(texts)?;
        let texts = source.texts()?;
        let (ids, offsets) = py.detach(|| {
            if self.0.vocabulary.len() <= 1 << 16 {
                encode_batch(&self.0, &texts, num_threads).map(|batch| (Store::U16(batch.ids), batch.offsets))
            } else {
                encode_batch(&self.0, &texts, num_threads).map(|batch| (Store::U32(batch.ids), batch.offsets))
            }
        })?;
        Ok((Numbers(ids), Numbers(Store::I64(offsets))))
    }

    #[pyo3(signature = (texts, num_threads=1))]
    fn encode_lists<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        num_threads: usize,
    ) -> PyResult<Vec<Bound<'py, PyList>>> {
        let source = Source::new(texts)?;
        let texts = source.texts()?;
        let batch = py.detach(|| encode_batch::<u32>(&self.0, &texts, num_threads))?;
        let row = |range: &[i64]| PyList::new(py, &batch.ids[range[0] as usize..range[1] as usize]);
        batch.offsets.windows(2).map(row).collect()
    }

    fn decode_bytes<'py>(&self, py: Python<'py>, ids: Vec<i64>) -> PyResult<Bound<'py, PyBytes>> {
        let mut bytes = Vec::new();
        self.0.vocabulary.decode(&ids, &mut bytes)?;
        Ok(PyBytes::new(py, &bytes))
    }

    fn decode_batch<'py>(&self, py: Python<'py>, rows: Vec<Vec<i64>>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        rows.into_iter().map(|ids| self.decode_bytes(py, ids)).collect()
    }
}

#[pymodule(gil_used = false)]
fn _rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyEncoder>()?;
    module.add_class::<Numbers>()?;
    module.add_function(wrap_pyfunction!(train, module)?)
}
