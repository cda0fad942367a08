//! Texts from Arrow arrays by Arrow's C data interface: no Python object per text, no copied bytes.
//!
//! The interface passes C structs with raw pointers, which needs `unsafe` code. The code relies on these rules of the
//! specification (<https://arrow.apache.org/docs/format/CDataInterface.html>):
//!
//! - A struct is valid until its `release` function is called, and released if `release` is null.
//! - A struct may be moved by a bitwise copy if the source is then marked as released.
//! - The buffers of an array are not written while it is exported.
//! - An array of strings has three buffers: a validity bitmap (or null), `offset + length + 1` offsets, and data that
//!   reaches at least to the last offset. Buffers may be unaligned.
//!
//! Rules that can be checked are checked: the format, the number of buffers, null pointers, null texts, negative or
//! decreasing offsets. The readers of the texts validate UTF-8.

use crate::Text;
use std::ffi::{c_char, c_int, c_void, CStr};

/// `struct ArrowSchema` of the C data interface: the type of an array.
#[repr(C)]
pub struct ArrowSchema {
    format: *const c_char,
    name: *const c_char,
    metadata: *const c_char,
    flags: i64,
    n_children: i64,
    children: *mut *mut ArrowSchema,
    dictionary: *mut ArrowSchema,
    release: Option<unsafe extern "C" fn(*mut ArrowSchema)>,
    private_data: *mut c_void,
}

/// `struct ArrowArray` of the C data interface: the data of an array.
#[repr(C)]
pub struct ArrowArray {
    length: i64,
    null_count: i64,
    offset: i64,
    n_buffers: i64,
    n_children: i64,
    buffers: *mut *const c_void,
    children: *mut *mut ArrowArray,
    dictionary: *mut ArrowArray,
    release: Option<unsafe extern "C" fn(*mut ArrowArray)>,
    private_data: *mut c_void,
}

/// `struct ArrowArrayStream` of the C stream interface: an iterator over arrays of one type.
#[repr(C)]
pub struct ArrowArrayStream {
    get_schema: Option<unsafe extern "C" fn(*mut ArrowArrayStream, *mut ArrowSchema) -> c_int>,
    get_next: Option<unsafe extern "C" fn(*mut ArrowArrayStream, *mut ArrowArray) -> c_int>,
    get_last_error: Option<unsafe extern "C" fn(*mut ArrowArrayStream) -> *const c_char>,
    release: Option<unsafe extern "C" fn(*mut ArrowArrayStream)>,
    private_data: *mut c_void,
}

/// A struct of the C data interface that is exported in a Python capsule.
pub trait Exported: Sized {
    /// The capsule name that the Arrow PyCapsule interface prescribes for the struct.
    const CAPSULE_NAME: &'static CStr;

    /// Move the struct out of `source` and mark the source as released.
    ///
    /// Returns an error if the source was released or moved before. Only `release` is read in this case: the other
    /// fields may hold dangling pointers.
    ///
    /// # Safety
    /// `source` points to a struct of this type that no other thread accesses during the call.
    unsafe fn take(source: *mut Self) -> Result<Self, String>;
}

macro_rules! impl_exported {
    ($name:ident, $capsule_name:literal) => {
        impl $name {
            /// A released struct, for a producer to fill.
            fn released() -> Self {
                // SAFETY: every field is an integer, a nullable raw pointer or an `Option` of a function pointer. All
                // zeros is a valid value of each.
                unsafe { std::mem::zeroed() }
            }
        }

        impl Exported for $name {
            const CAPSULE_NAME: &'static CStr = $capsule_name;

            unsafe fn take(source: *mut Self) -> Result<Self, String> {
                // SAFETY: the caller guarantees that `source` is valid and not accessed by another thread.
                let source = unsafe { &mut *source };
                match source.release {
                    Some(_) => Ok(std::mem::replace(source, Self::released())),
                    None => Err("Arrow: the array or stream was read already: export it again".into()),
                }
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                if let Some(release) = self.release {
                    // SAFETY: `release` is set, hence the struct is valid and not yet released. The pointer is valid
                    // for the call, and the struct is not used afterwards.
                    unsafe { release(self) }
                }
            }
        }
    };
}

impl_exported!(ArrowSchema, c"arrow_schema");
impl_exported!(ArrowArray, c"arrow_array");
impl_exported!(ArrowArrayStream, c"arrow_array_stream");

/// One Arrow array of strings or bytes, with at least one row.
pub struct TextArray {
    /// True for 64-bit offsets (large_string, large_binary), false for 32-bit offsets (string, binary).
    has_large_offsets: bool,
    array: ArrowArray,
}

// SAFETY: a `TextArray` owns its struct, and no pointer in it refers to thread-local data of this crate. `drop` calls
// the producer's `release`; the specification ties it to no thread. (`count_words` returns finished batches to its
// caller, so arrays are released on the thread that took them unless a worker panics.)
unsafe impl Send for TextArray {}
// SAFETY: shared access only reads the struct and its buffers, and the specification tells both sides to treat exported
// buffers as immutable.
unsafe impl Sync for TextArray {}

impl TextArray {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.array.length as usize
    }

    /// Return the bytes of a row. Panics if there is no such row.
    pub fn get(&self, row: usize) -> Result<&[u8], String> {
        assert!(row < self.len(), "row {row} of {}", self.len());
        // SAFETY: the row exists, and `has_large_offsets` was set from the format of the array.
        unsafe {
            match self.has_large_offsets {
                false => self.array.row_bytes::<i32>(row),
                true => self.array.row_bytes::<i64>(row),
            }
        }
    }
}

/// The non-empty chunks of an exported array or stream.
pub struct ChunkedTextArray {
    has_large_offsets: bool,
    pub chunks: Vec<TextArray>,
}

impl ChunkedTextArray {
    pub fn from_array(schema: ArrowSchema, array: ArrowArray) -> Result<Self, String> {
        let mut texts = Self::with_schema(&schema)?;
        texts.push(array)?;
        Ok(texts)
    }

    /// Read all arrays of a stream.
    pub fn from_stream(mut stream: ArrowArrayStream) -> Result<Self, String> {
        let (Some(get_schema), Some(get_next)) = (stream.get_schema, stream.get_next) else {
            return Err("Arrow: not a valid stream: `get_schema` or `get_next` is null".into());
        };
        let mut schema = ArrowSchema::released();
        // SAFETY: `stream` was moved out of a valid stream and is not released. `schema` may be overwritten: a released
        // struct owns nothing.
        let code = unsafe { get_schema(&mut stream, &mut schema) };
        stream.check(code)?;

        let mut texts = Self::with_schema(&schema)?;
        loop {
            let mut array = ArrowArray::released();
            // SAFETY: as for `get_schema`.
            let code = unsafe { get_next(&mut stream, &mut array) };
            stream.check(code)?;
            if array.release.is_none() {
                return Ok(texts); // a released array marks the end of the stream
            }
            texts.push(array)?;
        }
    }

    fn with_schema(schema: &ArrowSchema) -> Result<Self, String> {
        if schema.format.is_null() {
            return Err("Arrow: not a valid array: its schema has no format".into());
        }
        if !schema.dictionary.is_null() {
            return Err(
                "Arrow: expected a column of type string, not dictionary-encoded: cast it to string first".into()
            );
        }
        // SAFETY: the schema is valid, so `format`, which is not null, points to a string that ends in NUL.
        match unsafe { CStr::from_ptr(schema.format) }.to_bytes() {
            b"u" | b"z" => Ok(Self { has_large_offsets: false, chunks: Vec::new() }),
            b"U" | b"Z" => Ok(Self { has_large_offsets: true, chunks: Vec::new() }),
            other => Err(format!(
                "Arrow: expected a column of type string, large_string, binary or large_binary, not format {:?}",
                String::from_utf8_lossy(other)
            )),
        }
    }

    fn push(&mut self, array: ArrowArray) -> Result<(), String> {
        let not_valid = || Err("Arrow: not a valid array of strings".into());
        if array.length < 0 || array.offset < 0 || array.n_buffers != 3 || array.buffers.is_null() {
            return not_valid();
        }
        if array.length > 0 {
            if array.buffer(1).is_null() {
                return not_valid();
            }
            array.check_nulls()?;
            self.chunks.push(TextArray { has_large_offsets: self.has_large_offsets, array });
        }
        Ok(())
    }

    /// Return all texts in order. The bytes are not yet known to be UTF-8.
    pub fn texts(&self) -> Result<Vec<Text<'_>>, String> {
        let rows = self.chunks.iter().flat_map(|chunk| (0..chunk.len()).map(move |row| chunk.get(row)));
        rows.map(|bytes| bytes.map(Text::Bytes)).collect()
    }
}

impl ArrowArrayStream {
    /// Turn the error code of a stream function into an error with the producer's message.
    fn check(&mut self, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let message = match self.get_last_error {
            // SAFETY: the stream is not released, and its last call returned an error.
            Some(get_last_error) => unsafe { get_last_error(self) },
            None => std::ptr::null(),
        };
        if message.is_null() {
            return Err(format!("Arrow stream: error {code} without a message"));
        }
        // SAFETY: a message that is not null ends in NUL and is valid until the next call of a stream function.
        let message = unsafe { CStr::from_ptr(message) };
        Err(format!("Arrow stream: {}", message.to_string_lossy()))
    }
}

impl ArrowArray {
    /// The pointer to one of the three buffers. The array was checked by `ChunkedTextArray::push`.
    fn buffer(&self, index: usize) -> *const c_void {
        assert!(index < 3);
        // SAFETY: `push` accepts only arrays in which `buffers` is not null and `n_buffers` is 3.
        unsafe { *self.buffers.add(index) }
    }

    fn check_nulls(&self) -> Result<(), String> {
        let validity = self.buffer(0).cast::<u8>();
        if self.null_count == 0 || validity.is_null() {
            return Ok(());
        }
        for row in self.offset..self.offset + self.length {
            // SAFETY: a validity bitmap that is not null has `offset + length` bits.
            let byte = unsafe { *validity.add(row as usize / 8) };
            if byte >> (row % 8) & 1 == 0 {
                return Err(format!("Arrow: row {} is null: drop or fill null texts first", row - self.offset));
            }
        }
        Ok(())
    }

    /// # Safety
    /// `row` is less than the length, and `O` is the offset type of the array's format: `i32` or `i64`.
    unsafe fn row_bytes<O: Copy + TryInto<usize>>(&self, row: usize) -> Result<&[u8], String> {
        let offset_at = |index: usize| {
            // SAFETY: the offsets buffer has `offset + length + 1` values of type `O`, and `index` is at most `length`.
            // The buffer may be unaligned.
            let offset = unsafe { self.buffer(1).cast::<O>().add(self.offset as usize + index).read_unaligned() };
            offset.try_into().map_err(|_| "Arrow: not a valid array: an offset is negative")
        };
        let (start, end, last) = (offset_at(row)?, offset_at(row + 1)?, offset_at(self.length as usize)?);
        let data = self.buffer(2).cast::<u8>();
        if start > end || end > last {
            return Err("Arrow: not a valid array: offsets decrease".into());
        }
        if start == end {
            return Ok(&[]); // the data pointer may be null if all texts are empty
        }
        if data.is_null() {
            return Err("Arrow: not a valid array: texts without their data".into());
        }
        // SAFETY: the data buffer reaches at least to the last offset, and it lives and stays unchanged until the array
        // is dropped, which the borrow of `self` prevents.
        Ok(unsafe { std::slice::from_raw_parts(data.add(start), end - start) })
    }
}
