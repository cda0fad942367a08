//! Integers that numpy reads without a copy.

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// An array of integers; numpy.asarray looks at it without a copy.
#[pyclass(frozen, module = "nanochat.tokenization._rustbpe")]
pub struct IntArray(pub Ints);

pub enum Ints {
    U16(Vec<u16>),
    U32(Vec<u32>),
    I64(Vec<i64>),
}

#[pymethods]
impl IntArray {
    /// How many numbers there are.
    fn __len__(&self) -> usize {
        match &self.0 {
            Ints::U16(numbers) => numbers.len(),
            Ints::U32(numbers) => numbers.len(),
            Ints::I64(numbers) => numbers.len(),
        }
    }

    /// Numpy's array interface, version 3. The array that looks at this memory keeps this object alive.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (kind, address) = match &self.0 {
            Ints::U16(numbers) => ("u2", numbers.as_ptr() as usize),
            Ints::U32(numbers) => ("u4", numbers.as_ptr() as usize),
            Ints::I64(numbers) => ("i8", numbers.as_ptr() as usize),
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
