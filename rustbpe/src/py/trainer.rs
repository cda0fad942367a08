//! The function `train` of the Python module.

use super::arrow::TextArray;
use super::texts::{is_arrow, read_arrow, reject_single_text};
use crate::{count_words, token_bytes, train_merges, Error, Splitter, Text, TextBatch};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyIterator, PyList, PyString};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Strings are taken from the iterator in batches of about this many bytes.
const BATCH_BYTES: usize = 1 << 20;
/// The largest number of items in a batch, so that an endless iterator of empty strings can be interrupted.
const MAX_BATCH_ITEMS: usize = 1 << 14;
/// Time between two calls of the Python progress function and of Python's signal handlers.
const CALLBACK_INTERVAL: Duration = Duration::from_millis(100);

/// Calls the Python progress function and Python's signal handlers at regular intervals.
struct ProgressReporter {
    progress: Option<Py<PyAny>>,
    bytes_read: usize,
    last_call: Instant,
}

impl ProgressReporter {
    /// Report if the last report is old enough. Errors: the progress function or a signal handler raised.
    fn report_if_due(&mut self, num_merges: usize) -> PyResult<()> {
        if self.last_call.elapsed() < CALLBACK_INTERVAL {
            return Ok(());
        }
        Python::attach(|py| self.report(py, num_merges))
    }

    fn report(&mut self, py: Python<'_>, num_merges: usize) -> PyResult<()> {
        self.last_call = Instant::now();
        py.check_signals()?;
        match &self.progress {
            Some(progress) => progress.call1(py, (self.bytes_read, num_merges)).map(drop),
            None => Ok(()),
        }
    }
}

/// A batch of training texts, which are not copied.
enum TrainingBatch {
    Strings(Vec<PyBackedStr>),
    Array(TextArray),
}

impl TextBatch for TrainingBatch {
    fn len(&self) -> usize {
        match self {
            TrainingBatch::Strings(texts) => texts.len(),
            TrainingBatch::Array(array) => array.len(),
        }
    }

    fn get(&self, index: usize) -> Result<Text<'_>, Error> {
        match self {
            TrainingBatch::Strings(texts) => texts.get(index),
            TrainingBatch::Array(array) => array.get(index).map(Text::Bytes).map_err(Error::Text),
        }
    }
}

/// Reads batches from an iterator over strings and Arrow arrays, or from one Arrow array.
struct BatchReader {
    iterator: Py<PyIterator>,
    /// Chunks of the last Arrow array that are not yet returned.
    chunks: VecDeque<TextArray>,
}

impl BatchReader {
    fn new(texts: &Bound<'_, PyAny>) -> PyResult<Self> {
        reject_single_text(texts)?;
        let items = if is_arrow(texts)? { PyList::new(texts.py(), [texts])?.into_any() } else { texts.clone() };
        Ok(Self { iterator: items.try_iter()?.unbind(), chunks: VecDeque::new() })
    }

    /// Return the next batch, or `None` at the end.
    fn next(&mut self, py: Python<'_>) -> PyResult<Option<TrainingBatch>> {
        let mut strings: Vec<PyBackedStr> = Vec::new();
        let (mut num_bytes, mut num_items) = (0, 0);
        while self.chunks.is_empty() && num_bytes < BATCH_BYTES && num_items < MAX_BATCH_ITEMS {
            num_items += 1;
            match self.iterator.bind(py).clone().next().transpose()? {
                Some(item) if !item.is_instance_of::<PyString>() && is_arrow(&item)? => {
                    self.chunks.extend(read_arrow(&item)?.chunks);
                }
                Some(item) => {
                    let text: PyBackedStr = item.extract()?;
                    num_bytes += text.len();
                    strings.push(text);
                }
                None if strings.is_empty() => return Ok(None),
                None => break,
            }
        }
        if strings.is_empty() {
            if let Some(chunk) = self.chunks.pop_front() {
                return Ok(Some(TrainingBatch::Array(chunk)));
            }
        }
        Ok(Some(TrainingBatch::Strings(strings)))
    }
}

/// Train byte-level BPE on strings or Arrow arrays of strings. Returns the bytes of every token by id.
#[pyfunction]
#[pyo3(signature = (texts, vocab_size, pattern, *, num_threads=None, progress=None))]
pub fn train(
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
    let mut batches = BatchReader::new(texts)?;
    let mut reporter = ProgressReporter { progress, bytes_read: 0, last_call: Instant::now() };
    let tokens = py.detach(|| {
        let next_batch = |done_batches| {
            Python::attach(|py| {
                drop(done_batches); // here, because Python objects are freed under Python's lock
                batches.next(py)
            })
        };
        let counts = count_words(&splitter, num_threads, next_batch, |num_bytes| {
            reporter.bytes_read += num_bytes;
            reporter.report_if_due(0)
        })?;
        let merges = train_merges(&counts, vocab_size, |num_merges| reporter.report_if_due(num_merges))?;
        Python::attach(|py| reporter.report(py, merges.len()))?;
        Ok::<_, PyErr>(token_bytes(&merges))
    })?;
    Ok(tokens.iter().map(|token| PyBytes::new(py, token).unbind()).collect())
}
