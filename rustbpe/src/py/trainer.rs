//! The function `train` of the Python module: texts in, progress and signals meanwhile.

use super::arrow;
use super::texts::TextSource;
use crate::{count_words, token_bytes, train_merges, Error, Splitter, Text, TextBatch};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyBytes, PyIterator, PyList, PyString};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Texts are taken from the iterator in batches of about this size.
const BATCH_BYTES: usize = 1 << 20;
/// And from at most so many items, so that an endless stream of empty ones can be interrupted.
const BATCH_ITEMS: usize = 1 << 14;
/// How often Python gets a chance to show progress or to interrupt.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Reports progress to Python now and then, and lets Ctrl-C through.
struct ProgressReporter {
    progress: Option<Py<PyAny>>,
    bytes_read: usize,
    last: Instant,
}

impl ProgressReporter {
    fn beat(&mut self, merges: usize) -> PyResult<()> {
        if self.last.elapsed() < POLL_INTERVAL {
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
enum TrainingBatch {
    Strings(Vec<PyBackedStr>),
    Column(arrow::TextArray),
}

impl TextBatch for TrainingBatch {
    fn len(&self) -> usize {
        match self {
            TrainingBatch::Strings(texts) => texts.len(),
            TrainingBatch::Column(column) => column.len(),
        }
    }

    fn get(&self, index: usize) -> Result<Text<'_>, Error> {
        match self {
            TrainingBatch::Strings(texts) => texts.get(index),
            TrainingBatch::Column(column) => column.get(index).map(Text::Bytes).map_err(Error::Text),
        }
    }
}

/// Batches from an iterator over strings and Arrow arrays, or from one Arrow array.
struct BatchReader {
    iterator: Py<PyIterator>,
    /// Columns of an Arrow array that was taken already.
    columns: VecDeque<arrow::TextArray>,
}

impl BatchReader {
    fn new(texts: &Bound<'_, PyAny>) -> PyResult<Self> {
        if texts.is_instance_of::<PyString>() || texts.is_instance_of::<PyBytes>() {
            return Err(PyTypeError::new_err("expected several texts, not one: put it into a list"));
        }
        let items = if is_arrow(texts)? { PyList::new(texts.py(), [texts])?.into_any() } else { texts.clone() };
        Ok(Self { iterator: items.try_iter()?.unbind(), columns: VecDeque::new() })
    }

    /// The next batch, or None at the end.
    fn next(&mut self, py: Python<'_>) -> PyResult<Option<TrainingBatch>> {
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
                    if let TextSource::Arrow(texts) = TextSource::new(&item)? {
                        self.columns.extend(texts.chunks);
                    }
                }
                None if strings.is_empty() => return Ok(None),
                None => break,
            }
        }
        if strings.is_empty() {
            if let Some(column) = self.columns.pop_front() {
                return Ok(Some(TrainingBatch::Column(column)));
            }
        }
        Ok(Some(TrainingBatch::Strings(strings)))
    }
}

fn is_arrow(texts: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(texts.hasattr("__arrow_c_stream__")? || texts.hasattr("__arrow_c_array__")?)
}

/// Train byte-level BPE on strings or Arrow arrays of them; returns the bytes of every token by id.
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
    let mut pulse = ProgressReporter { progress, bytes_read: 0, last: Instant::now() };
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
