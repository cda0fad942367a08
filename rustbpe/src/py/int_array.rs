//! The class `IntArray`: integers that numpy reads without a copy.

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// An array of integers. `numpy.asarray` makes a view of it without a copy.
#[pyclass(frozen, module = "nanochat.tokenization._rustbpe")]
pub struct IntArray(pub Ints);

pub enum Ints {
    U16(Vec<u16>),
    U32(Vec<u32>),
    I64(Vec<i64>),
}

#[pymethods]
impl IntArray {
    /// Number of integers.
    fn __len__(&self) -> usize {
        match &self.0 {
            Ints::U16(ints) => ints.len(),
            Ints::U32(ints) => ints.len(),
            Ints::I64(ints) => ints.len(),
        }
    }

    /// Numpy's array interface, version 3. A numpy array that views this memory keeps the object alive.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (kind, address) = match &self.0 {
            Ints::U16(ints) => ("u2", ints.as_ptr() as usize),
            Ints::U32(ints) => ("u4", ints.as_ptr() as usize),
            Ints::I64(ints) => ("i8", ints.as_ptr() as usize),
        };
        let byte_order = if cfg!(target_endian = "little") { '<' } else { '>' };
        let is_read_only = false;
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item("shape", (self.__len__(),))?;
        interface.set_item("typestr", format!("{byte_order}{kind}"))?;
        interface.set_item("data", (address, is_read_only))?;
        Ok(interface)
    }
}
