//! Products of bfloat16 matrices with AMX, the matrix unit of some x86 processors.
//!
//! A tile is 16 rows of 64 bytes. One instruction adds the product of a tile of activations, 16 rows x 32 inputs, and a
//! tile of weights, 32 inputs x 16 outputs (as pairs of inputs, see `matrix.rs`), to a tile of float32 sums. The order
//! of the sums within an instruction is that of the processor; it is the same for every row and any number of rows.

use crate::matrix::PANEL;
use std::arch::asm;

/// Rows of one call: two tiles.
pub const MAX_ROWS: usize = 32;
const TILE_ROWS: usize = 16;
/// Bytes from a pair of inputs to the next in packed weights.
const PAIR_STRIDE: usize = PANEL * 4;

/// The sums of up to 32 rows, row by row.
#[repr(C, align(64))]
pub struct Sums(pub [[f32; PANEL]; MAX_ROWS]);

impl Sums {
    /// Sums that are to be overwritten.
    pub fn new() -> Sums {
        Sums([[0.0; PANEL]; MAX_ROWS])
    }
}

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

impl TileConfig {
    fn new(rows: [usize; 8]) -> TileConfig {
        let mut config = TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (tile, rows) in rows.into_iter().enumerate() {
            config.row_bytes[tile] = 64;
            config.rows[tile] = rows as u8;
        }
        config
    }
}

/// Multiply `count` rows of activations, up to 32, by a panel of weights of `n_in` inputs, a multiple of 32.
///
/// # Safety
/// AMX works and `request` returned true; `x` has `count` rows of `n_in`, `weights` `n_in` times 64 elements.
pub unsafe fn multiply(x: *const u16, n_in: usize, count: usize, weights: *const u16, sums: &mut Sums) {
    let x_stride = 2 * n_in;
    let steps = n_in / 32;
    let to = sums.0.as_mut_ptr();
    if count <= TILE_ROWS {
        // Tiles 0 to 3: sums of 64 outputs; 4: activations; 5 to 7: weights.
        let config = TileConfig::new([count, count, count, count, count, 16, 16, 16]);
        asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
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
            "tilerelease",
            config = in(reg) &config,
            x = inout(reg) x => _,
            x_stride = in(reg) x_stride,
            w = inout(reg) weights => _,
            w_stride = in(reg) PAIR_STRIDE, // also the stride of the sums
            tile_bytes = const 16 * PAIR_STRIDE,
            steps = inout(reg) steps => _,
            to = in(reg) to,
            options(nostack),
        );
        return;
    }
    for half in 0..2 {
        // Tiles 0 to 3: sums of 2 x 16 rows and 2 x 16 outputs; 4 and 5: activations; 6 and 7: weights.
        let second = count - TILE_ROWS;
        let config = TileConfig::new([16, 16, second, second, 16, second, 16, 16]);
        asm!(
            "ldtilecfg [{config}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
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
            "tilerelease",
            config = in(reg) &config,
            x = inout(reg) x => _,
            x2 = inout(reg) x.add(TILE_ROWS * n_in) => _,
            x_stride = in(reg) x_stride,
            w = inout(reg) weights.add(half * 64) => _,
            w_stride = in(reg) PAIR_STRIDE,
            tile_bytes = const 16 * PAIR_STRIDE,
            steps = inout(reg) steps => _,
            to = in(reg) to.cast::<u8>().add(half * 128),
            to2 = in(reg) to.add(TILE_ROWS).cast::<u8>().add(half * 128),
            options(nostack),
        );
    }
}
