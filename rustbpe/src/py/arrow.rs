//! Texts from Arrow arrays, through Arrow's C data interface: no Python object is made for a text, no byte is copied.
//!
//! The interface is C structs with pointers, so this is where `unsafe` cannot be avoided. What is relied on is what the
//! specification promises (https://arrow.apache.org/docs/format/CDataInterface.html): the buffers live until `release`
//! is called, there are `length + offset + 1` offsets, and the data reaches as far as the last one. What can be checked
//! is checked: the format, nulls, offsets that fall; UTF-8 by those who read the texts.

use crate::Text;
use std::ffi::{c_char, c_int, c_void, CStr};

#[repr(C)]
pub struct Schema {
    format: *const c_char,
    name: *const c_char,
    metadata: *const c_char,
    flags: i64,
    n_children: i64,
    children: *mut *mut Schema,
    dictionary: *mut Schema,
    release: Option<unsafe extern "C" fn(*mut Schema)>,
    private_data: *mut c_void,
}

#[repr(C)]
pub struct Array {
    length: i64,
    null_count: i64,
    offset: i64,
    n_buffers: i64,
    n_children: i64,
    buffers: *mut *const c_void,
    children: *mut *mut Array,
    dictionary: *mut Array,
    release: Option<unsafe extern "C" fn(*mut Array)>,
    private_data: *mut c_void,
}

#[repr(C)]
pub struct Stream {
    get_schema: Option<unsafe extern "C" fn(*mut Stream, *mut Schema) -> c_int>,
    get_next: Option<unsafe extern "C" fn(*mut Stream, *mut Array) -> c_int>,
    get_last_error: Option<unsafe extern "C" fn(*mut Stream) -> *const c_char>,
    release: Option<unsafe extern "C" fn(*mut Stream)>,
    private_data: *mut c_void,
}

macro_rules! released_on_drop {
    ($name:ident) => {
        impl $name {
            /// An empty struct, as the interface wants it where a callee is to fill one.
            fn empty() -> Self {
                // SAFETY: all fields are numbers, nullable pointers or optional functions, for which zero is valid.
                unsafe { std::mem::zeroed() }
            }

            /// Take the struct out of `place`, whose owner then has nothing to release. One that somebody took before,
            /// or that was released, is told by its missing `release` alone: the rest of it may point anywhere.
            ///
            /// # Safety
            /// `place` points to a struct of this kind that nobody else uses meanwhile.
            pub unsafe fn take(place: *mut Self) -> Result<Self, String> {
                match (*place).release {
                    Some(_) => Ok(std::ptr::replace(place, Self::empty())),
                    None => Err("Arrow: an array or stream that was read already".into()),
                }
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                if let Some(release) = self.release {
                    // SAFETY: a struct that has a release function is valid and was not released yet.
                    unsafe { release(self) }
                }
            }
        }
    };
}

released_on_drop!(Schema);
released_on_drop!(Array);
released_on_drop!(Stream);

/// An array of strings or of bytes.
pub struct Column {
    /// Are offsets 64 bits wide?
    large: bool,
    array: Array,
}

// SAFETY: nobody writes to an array's buffers once it is handed over, and its release is not bound to a thread.
unsafe impl Send for Column {}
unsafe impl Sync for Column {}

impl Column {
    pub fn len(&self) -> usize {
        self.array.length as usize
    }

    /// The bytes of a row.
    pub fn get(&self, row: usize) -> Result<&[u8], String> {
        assert!(row < self.len());
        // SAFETY: the row is there, and the format says how wide the offsets are.
        unsafe {
            match self.large {
                false => self.array.bytes::<i32>(row),
                true => self.array.bytes::<i64>(row),
            }
        }
    }
}

/// The columns of what was handed over, one after another; none of them is empty.
pub struct Texts {
    large: bool,
    pub columns: Vec<Column>,
}

impl Texts {
    pub fn from_array(schema: Schema, array: Array) -> Result<Self, String> {
        let mut texts = Self::of_format(&schema)?;
        texts.add(array)?;
        Ok(texts)
    }

    pub fn from_stream(mut stream: Stream) -> Result<Self, String> {
        let (Some(get_schema), Some(get_next)) = (stream.get_schema, stream.get_next) else {
            return Err("Arrow: not a valid stream".into());
        };
        let mut schema = Schema::empty();
        // SAFETY: the stream is valid, and fills the struct that it is given.
        let code = unsafe { get_schema(&mut stream, &mut schema) };
        stream.check(code)?;
        let mut texts = Self::of_format(&schema)?;
        loop {
            let mut array = Array::empty();
            // SAFETY: as above.
            let code = unsafe { get_next(&mut stream, &mut array) };
            stream.check(code)?;
            if array.release.is_none() {
                return Ok(texts); // the end of the stream
            }
            texts.add(array)?;
        }
    }

    fn of_format(schema: &Schema) -> Result<Self, String> {
        if schema.format.is_null() || !schema.dictionary.is_null() {
            return Err("Arrow: expected an array of strings, not of dictionary codes".into());
        }
        // SAFETY: a valid schema has a string that ends in a zero.
        match unsafe { CStr::from_ptr(schema.format) }.to_bytes() {
            b"u" | b"z" => Ok(Self { large: false, columns: Vec::new() }),
            b"U" | b"Z" => Ok(Self { large: true, columns: Vec::new() }),
            other => Err(format!(
                "Arrow: expected a column of type string, large_string, binary or large_binary, not format {:?}",
                String::from_utf8_lossy(other)
            )),
        }
    }

    fn add(&mut self, array: Array) -> Result<(), String> {
        let not_valid = || Err("Arrow: not a valid array of strings".into());
        if array.length < 0 || array.offset < 0 || array.n_buffers != 3 || array.buffers.is_null() {
            return not_valid();
        }
        if array.length > 0 {
            if array.buffer(1).is_null() {
                return not_valid();
            }
            array.check_nulls()?;
            self.columns.push(Column { large: self.large, array });
        }
        Ok(())
    }

    /// All texts in order; whether they are UTF-8 was not looked at.
    pub fn texts(&self) -> Result<Vec<Text<'_>>, String> {
        let rows = self.columns.iter().flat_map(|column| (0..column.len()).map(move |row| column.get(row)));
        rows.map(|bytes| bytes.map(Text::Bytes)).collect()
    }
}

impl Stream {
    fn check(&mut self, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the function may be called after an error; it gives a string that ends in a zero, or null.
        let text = self.get_last_error.map_or(std::ptr::null(), |get| unsafe { get(self) });
        let why =
            if text.is_null() { "no reason given".into() } else { unsafe { CStr::from_ptr(text) }.to_string_lossy() };
        Err(format!("Arrow stream: {why}"))
    }
}

impl Array {
    fn buffer(&self, index: usize) -> *const c_void {
        // SAFETY: `Texts::add` has checked that there are three.
        unsafe { *self.buffers.add(index) }
    }

    fn check_nulls(&self) -> Result<(), String> {
        let validity = self.buffer(0).cast::<u8>();
        if self.null_count == 0 || validity.is_null() {
            return Ok(());
        }
        for row in self.offset..self.offset + self.length {
            // SAFETY: the bitmap has a bit for each row.
            let byte = unsafe { *validity.add(row as usize / 8) };
            if byte >> (row % 8) & 1 == 0 {
                return Err(format!("Arrow: row {} is null: drop or fill null texts first", row - self.offset));
            }
        }
        Ok(())
    }

    /// # Safety
    /// There are more rows than `row`, and `O` is the type of the offsets.
    unsafe fn bytes<O: Copy + TryInto<usize>>(&self, row: usize) -> Result<&[u8], String> {
        let offsets = self.buffer(1).cast::<O>().add(self.offset as usize + row);
        let bound = |offset: O| offset.try_into().map_err(|_| "Arrow: a negative offset".to_string());
        let (start, end): (usize, usize) = (bound(*offsets)?, bound(*offsets.add(1))?);
        let data = self.buffer(2).cast::<u8>();
        match end.checked_sub(start) {
            None => Err("Arrow: offsets that fall".into()),
            Some(0) => Ok(&[]), // the data of empty texts may be a null pointer, which no slice may have
            Some(_) if data.is_null() => Err("Arrow: texts without their data".into()),
            Some(length) => Ok(std::slice::from_raw_parts(data.add(start), length)),
        }
    }
}
