//! Products of bfloat16 matrices with AMX, the matrix unit of some x86 processors.
//!
//! A tile is 16 rows of 64 bytes. One instruction adds the product of a tile of activations, 16 rows x 32 inputs, and a
//! tile of weights, 32 inputs x 16 outputs (as pairs of inputs, see `matrix.rs`), to a tile of float32 sums. The order
//! of the sums within an instruction is that of the processor; it is the same for every row and any number of rows.

use crate::matrix::PANEL;
use std::arch::asm;

/// Rows of one call: two tiles.
pub const MAX_ROWS: usize = 32;
pub const TILE_ROWS: usize = 16;
/// Bytes from a pair of inputs to the next in packed weights.
const PAIR_STRIDE: usize = PANEL * 4;

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
/// Up to 16 rows, tiles 0 to 3 are sums of 64 outputs, 4 activations, 5 to 7 weights. Above, tiles 0 to 3 are sums of
/// 2 x 16 rows and 2 x 16 outputs, 4 and 5 activations, 6 and 7 weights.
///
/// # Safety
/// AMX works and `request` returned true. `release` follows in the end.
pub unsafe fn configure(count: usize) {
    let rows = match count.checked_sub(TILE_ROWS) {
        None | Some(0) => [count, count, count, count, count, 16, 16, 16],
        Some(second) => [16, 16, second, second, 16, second, 16, 16],
    };
    let mut config = TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    for (tile, rows) in rows.into_iter().enumerate() {
        config.row_bytes[tile] = 64;
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

/// Rows and columns of one call of `multiply_add`.
#[derive(Clone, Copy)]
pub struct Block {
    /// Activations, and elements from a row of them to the next.
    pub x: *const u16,
    pub x_stride: usize,
    pub n_rows: usize,
    /// Inputs: a multiple of 32.
    pub n_in: usize,
    /// Packed weights of 64 outputs, and the sums of each row.
    pub weights: *const u16,
    pub sums: *mut [f32; PANEL],
}

/// Add to the sums of up to 16 rows their products with the weights of a panel.
///
/// # Safety
/// `configure` was called for the number of rows, and the pointers are valid.
pub unsafe fn multiply_few(block: Block) {
    asm!(
        "tileloadd tmm0, [{to} + {w_stride}]",
        "tileloadd tmm1, [{to} + {w_stride} + 64]",
        "tileloadd tmm2, [{to} + {w_stride} + 128]",
        "tileloadd tmm3, [{to} + {w_stride} + 192]",
        "2:",
        "tileloadd tmm4, [{x} + {x_stride}]",
        "tileloadd tmm5, [{w} + {w_stride}]",
        "tileloadd tmm6, [{w} + {w_stride} + 64]",
        "tdpbf16ps tmm0, tmm4, tmm5",
        "tileloadd tmm7, [{w} + {w_stride} + 128]",
        "tdpbf16ps tmm1, tmm4, tmm6",
        "tileloadd tmm5, [{w} + {w_stride} + 192]",
        "tdpbf16ps tmm2, tmm4, tmm7",
        "tdpbf16ps tmm3, tmm4, tmm5",
        "add {x}, 64",
        "add {w}, {tile_bytes}",
        "dec {steps}",
        "jnz 2b",
        "tilestored [{to} + {w_stride}], tmm0",
        "tilestored [{to} + {w_stride} + 64], tmm1",
        "tilestored [{to} + {w_stride} + 128], tmm2",
        "tilestored [{to} + {w_stride} + 192], tmm3",
        x = inout(reg) block.x => _,
        x_stride = in(reg) 2 * block.x_stride,
        w = inout(reg) block.weights => _,
        w_stride = in(reg) PAIR_STRIDE, // also the stride of the sums
        tile_bytes = const 16 * PAIR_STRIDE,
        steps = inout(reg) block.n_in / 32 => _,
        to = in(reg) block.sums,
        options(nostack),
    );
}

/// Add to the sums of 17 to 32 rows their products with the weights of one half of a panel, 0 or 1.
///
/// # Safety
/// As for `multiply_few`.
pub unsafe fn multiply_many(block: Block, half: usize) {
    asm!(
        "tileloadd tmm0, [{to} + {w_stride}]",
        "tileloadd tmm1, [{to} + {w_stride} + 64]",
        "tileloadd tmm2, [{to2} + {w_stride}]",
        "tileloadd tmm3, [{to2} + {w_stride} + 64]",
        "2:",
        "tileloadd tmm4, [{x} + {x_stride}]",
        "tileloadd tmm6, [{w} + {w_stride}]",
        "tileloadd tmm7, [{w} + {w_stride} + 64]",
        "tdpbf16ps tmm0, tmm4, tmm6",
        "tileloadd tmm5, [{x2} + {x_stride}]",
        "tdpbf16ps tmm1, tmm4, tmm7",
        "tdpbf16ps tmm2, tmm5, tmm6",
        "tdpbf16ps tmm3, tmm5, tmm7",
        "add {x}, 64",
        "add {x2}, 64",
        "add {w}, {tile_bytes}",
        "dec {steps}",
        "jnz 2b",
        "tilestored [{to} + {w_stride}], tmm0",
        "tilestored [{to} + {w_stride} + 64], tmm1",
        "tilestored [{to2} + {w_stride}], tmm2",
        "tilestored [{to2} + {w_stride} + 64], tmm3",
        x = inout(reg) block.x => _,
        x2 = inout(reg) block.x.add(TILE_ROWS * block.x_stride) => _,
        x_stride = in(reg) 2 * block.x_stride,
        w = inout(reg) block.weights.add(half * 64) => _,
        w_stride = in(reg) PAIR_STRIDE,
        tile_bytes = const 16 * PAIR_STRIDE,
        steps = inout(reg) block.n_in / 32 => _,
        to = in(reg) block.sums.cast::<u8>().add(half * 128),
        to2 = in(reg) block.sums.add(TILE_ROWS).cast::<u8>().add(half * 128),
        options(nostack),
    );
}
