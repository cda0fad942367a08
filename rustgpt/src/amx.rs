//! Products of bfloat16 matrices with AMX, the matrix unit of some x86 processors.
//!
//! A tile is 16 rows of 64 bytes, here always a contiguous KB. One instruction adds the product of a tile of
//! activations, 16 rows x 32 inputs, and a tile of weights, 32 inputs x 16 outputs (as pairs of inputs), to a tile of
//! float32 sums. `matrix.rs` says in which order.

use crate::matrix::HALF;
use std::arch::asm;

/// Rows of one call: two tiles.
pub const MAX_ROWS: usize = 32;
pub const TILE_ROWS: usize = 16;
/// Bytes from a row of a tile to the next.
const ROW: usize = 64;
/// Bytes from the sums of a row to the next.
const SUMS: usize = 4 * HALF;
/// Bytes of a cache line.
pub const LINE: usize = 64;

/// Ask the operating system to let this process use AMX. Returns false if there is none.
///
/// Some virtual machines advertise AMX and kill the process that uses it: the caller has to know that it works.
pub fn request() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        let leaf = std::arch::x86_64::__cpuid_count(7, 0);
        let has_amx = leaf.edx & (1 << 22) != 0 && leaf.edx & (1 << 24) != 0; // amx-bf16, amx-tile
                                                                              // SAFETY: the call changes nothing but what this process may do.
        has_amx && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// The shapes of the tiles: palette 1, then bytes a row and rows of each.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Choose the shapes of this thread's tiles for products of `count` rows, up to 32.
///
/// Tiles 0 to 3 are sums: of the first 16 rows and both tiles of outputs, then of the second 16 rows; 4 and 5 are
/// activations, 6 and 7 weights.
///
/// # Safety
/// AMX works and `request` returned true. `release` follows in the end.
pub unsafe fn configure(count: usize) {
    let first = count.min(TILE_ROWS);
    let second = if count > TILE_ROWS { count - TILE_ROWS } else { first };
    let rows = [first, first, second, second, first, second, 16, 16];
    let mut config = TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    for (tile, rows) in rows.into_iter().enumerate() {
        config.row_bytes[tile] = ROW as u16;
        config.rows[tile] = rows as u8;
    }
    asm!("ldtilecfg [{config}]", config = in(reg) &config, options(nostack));
}

/// Give the tiles back: the operating system need not save them with the thread.
///
/// # Safety
/// The processor has AMX.
pub unsafe fn release() {
    asm!("tilerelease", options(nostack));
}

/// Rows and columns of one call of `multiply_many` or `multiply_few`.
#[derive(Clone, Copy)]
pub struct Block {
    /// Tiles of activations of the first 16 rows and of the others, for one 32 inputs after another.
    pub x: [*const u16; 2],
    /// Two tiles for one 32 inputs after another.
    pub weights: *const u16,
    /// Number of times 32 inputs.
    pub steps: usize,
    /// Sums of each row.
    pub sums: *mut [f32; HALF],
    /// Memory to fetch meanwhile, need not be valid, and the cache lines of it at each 32 inputs, at least 1.
    pub next: *const u8,
    pub lines: usize,
}

/// Add to the sums of up to 16 rows their products with weights of 32 outputs.
///
/// # Safety
/// `configure` was called for the number of rows, and the pointers are valid.
pub unsafe fn multiply_few(block: Block) {
    asm!(
        "tileloadd tmm0, [{to} + {sums}]",
        "tileloadd tmm1, [{to} + {sums} + 64]",
        "2:",
        "mov {n}, {lines}",
        "3:",
        "prefetcht1 [{next}]",
        "add {next}, 64",
        "dec {n}",
        "jnz 3b",
        "tileloadd tmm4, [{x} + {row}]",
        "tileloadd tmm6, [{w} + {row}]",
        "tileloadd tmm7, [{w} + {row} + 1024]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "add {x}, 1024",
        "add {w}, 2048",
        "dec {steps}",
        "jnz 2b",
        "tilestored [{to} + {sums}], tmm0",
        "tilestored [{to} + {sums} + 64], tmm1",
        x = inout(reg) block.x[0] => _,
        w = inout(reg) block.weights => _,
        next = inout(reg) block.next => _,
        lines = in(reg) block.lines,
        n = out(reg) _,
        row = in(reg) ROW,
        sums = in(reg) SUMS,
        steps = inout(reg) block.steps => _,
        to = in(reg) block.sums,
        options(nostack),
    );
}

/// Add to the sums of 17 to 32 rows their products with weights of 32 outputs.
///
/// # Safety
/// As for `multiply_few`.
pub unsafe fn multiply_many(block: Block) {
    asm!(
        "tileloadd tmm0, [{to} + {sums}]",
        "tileloadd tmm1, [{to} + {sums} + 64]",
        "tileloadd tmm2, [{to2} + {sums}]",
        "tileloadd tmm3, [{to2} + {sums} + 64]",
        "2:",
        "mov {n}, {lines}",
        "3:",
        "prefetcht1 [{next}]",
        "add {next}, 64",
        "dec {n}",
        "jnz 3b",
        "tileloadd tmm4, [{x} + {row}]",
        "tileloadd tmm6, [{w} + {row}]",
        "tileloadd tmm7, [{w} + {row} + 1024]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{x2} + {row}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
        "add {x}, 1024",
        "add {x2}, 1024",
        "add {w}, 2048",
        "dec {steps}",
        "jnz 2b",
        "tilestored [{to} + {sums}], tmm0",
        "tilestored [{to} + {sums} + 64], tmm1",
        "tilestored [{to2} + {sums}], tmm2",
        "tilestored [{to2} + {sums} + 64], tmm3",
        x = inout(reg) block.x[0] => _,
        x2 = inout(reg) block.x[1] => _,
        w = inout(reg) block.weights => _,
        next = inout(reg) block.next => _,
        lines = in(reg) block.lines,
        n = out(reg) _,
        row = in(reg) ROW,
        sums = in(reg) SUMS,
        steps = inout(reg) block.steps => _,
        to = in(reg) block.sums,
        to2 = in(reg) block.sums.add(TILE_ROWS),
        options(nostack),
    );
}
