//! The Python module `nanochat._rustbpe`: types in and out, Python's lock, signals. No algorithm lives here.

use crate::{count_words, token_bytes, train_merges, Error, Splitter};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyIterator};
use std::time::{Duration, Instant};

/// Texts are taken from the iterator in batches of about this size.
const BATCH_BYTES: usize = 1 << 20;
/// How often Python gets a chance to show progress or to interrupt.
const TICK: Duration = Duration::from_millis(100);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        PyValueError::new_err(error.to_string())
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

/// The next batch of texts, or None at the end. Strings are not copied.
fn read_batch(iterator: &Bound<'_, PyIterator>, pulse: &mut Pulse) -> PyResult<Option<Vec<PyBackedStr>>> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    for text in iterator {
        let text: PyBackedStr = text?.extract()?;
        bytes += text.len();
        batch.push(text);
        if bytes >= BATCH_BYTES {
            break;
        }
    }
    pulse.bytes_read += bytes;
    Ok((!batch.is_empty()).then_some(batch))
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
    let iterator = texts.try_iter()?.unbind();
    let mut pulse = Pulse { progress, bytes_read: 0, last: Instant::now() };
    let tokens = py.detach(|| {
        let counts = count_words(&splitter, num_threads, |spent| {
            Python::attach(|py| {
                drop(spent);
                let batch = read_batch(iterator.bind(py), &mut pulse)?;
                if pulse.last.elapsed() >= TICK {
                    pulse.tell(py, 0)?;
                }
                Ok::<_, PyErr>(batch)
            })
        })?;
        let merges = train_merges(&counts, vocab_size, |merges| pulse.beat(merges))?;
        Python::attach(|py| pulse.tell(py, merges.len()))?;
        Ok::<_, PyErr>(token_bytes(&merges))
    })?;
    Ok(tokens.iter().map(|token| PyBytes::new(py, token).unbind()).collect())
}

#[pymodule]
fn _rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(train, module)?)
}
