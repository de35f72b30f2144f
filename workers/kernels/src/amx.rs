//! Products of int8 matrices in tiles of 16 rows by 64 bytes (Intel's AMX), which do eight times the work of VNNI.
//!
//! The compiler has no stable functions for them, so they are written in assembly.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::LazyLock;

use crate::dynamic::HEIGHT;
use crate::level::Work;
use crate::linear::PANEL;
use crate::quantized::{DEPTH, Product};
use crate::simd::Simd;

/// Bytes of a row of a tile.
const ROW: usize = 64;
/// Tiles that sums are kept in: two by two.
const ROWS: usize = 2 * HEIGHT;

/// Whether the processor has tiles and the operating system lets this process use them.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| has_tiles() && may_use_tiles());
    *AVAILABLE
}

fn has_tiles() -> bool {
    const TILES: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    if __cpuid_count(0, 0).eax < 7 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    features & TILES != 0 && features & INT8 != 0
}

/// Tiles are 8 KiB more to be saved at each switch of threads: Linux wants to be asked.
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes what this process may do, nothing else.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}

/// The shapes of tiles, as the processor reads them.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All tiles whole.
static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [
        ROW as u16, ROW as u16, ROW as u16, ROW as u16, ROW as u16, ROW as u16, ROW as u16, ROW as u16, 0, 0, 0, 0, 0,
        0, 0, 0,
    ],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// A product whose sums are made in tiles.
pub(crate) struct Tiled<'a>(pub Product<'a>);

#[repr(C, align(64))]
struct Sums([[i32; PANEL]; ROWS]);

/// What the sums of all groups are together.
#[repr(C, align(64))]
struct Values([[f32; PANEL]; ROWS]);

impl Work for Tiled<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self(mut product) = self;
        let (depth, group, rows) = (product.linear.depth, product.linear.group, product.rows);
        let (mut sums, mut values) = (Sums([[0; PANEL]; ROWS]), Values([[0.0; PANEL]; ROWS]));
        // SAFETY: the level has tiles; rows are padded to tiles, panels to whole ones.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, readonly));
            for block in (0..rows).step_by(BLOCK) {
                let block = block..rows.min(block + BLOCK);
                for panel in product.columns.start / PANEL..product.columns.end.div_ceil(PANEL) {
                    product.at.0 = panel;
                    let weights = product.linear.panels.as_ptr().add(panel * depth * PANEL);
                    for row in block.clone().step_by(ROWS) {
                        let input = product.input.values.as_ptr().add(row * depth);
                        let height = ROWS.min(rows - row);
                        for first in (0..depth).step_by(group) {
                            let (input, weights) = (input.add(first * HEIGHT), weights.add(first * PANEL));
                            match height > HEIGHT {
                                true => two_by_two(input, input.add(HEIGHT * depth), weights, group, &mut sums),
                                false => one_by_two(input, weights, group, &mut sums),
                            }
                            for (r, (sums, values)) in sums.0.iter().zip(&mut values.0).take(height).enumerate() {
                                for column in (0..PANEL).step_by(2 * S::LANES) {
                                    product.at.1 = column;
                                    let from = sums.as_ptr().add(column);
                                    let sums = [S::load_sums(from), S::load_sums(from.add(S::LANES))];
                                    let [left, right] = product.scaled::<S>(sums, row + r, first / group);
                                    let to = values.as_mut_ptr().add(column);
                                    let (x, y) = (to, to.add(S::LANES));
                                    let (left, right) = match first {
                                        0 => (left, right),
                                        _ => (S::add(S::load(x), left), S::add(S::load(y), right)),
                                    };
                                    S::store(x, left);
                                    S::store(y, right);
                                }
                            }
                        }
                        for (r, values) in values.0[..height].iter().enumerate() {
                            for column in (0..PANEL).step_by(2 * S::LANES) {
                                product.at.1 = column;
                                let from = values.as_ptr().add(column);
                                product.finish::<S>([S::load(from), S::load(from.add(S::LANES))], row + r);
                            }
                        }
                    }
                }
            }
            asm!("tilerelease", options(nostack, nomem));
        }
    }
}

/// Rows that are taken through all panels together.
const BLOCK: usize = 256;

/// 32 rows by 32 columns.
#[inline(always)]
unsafe fn two_by_two(upper: *const u8, lower: *const u8, weights: *const i8, depth: usize, sums: &mut Sums) {
    // SAFETY: as promised by the caller; no tile is in use elsewhere on this thread.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            "tileloadd tmm6, [{weights} + {line}]",
            "tileloadd tmm4, [{upper} + {row}]",
            "tileloadd tmm7, [{weights} + {line} + 64]",
            "tdpbusd tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{lower} + {row}]",
            "tdpbusd tmm1, tmm4, tmm7",
            "tdpbusd tmm2, tmm5, tmm6",
            "tdpbusd tmm3, tmm5, tmm7",
            "add {upper}, 1024",
            "add {lower}, 1024",
            "add {weights}, 2048",
            "dec {count}",
            "jnz 2b",
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 64], tmm1",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 2112], tmm3",
            upper = inout(reg) upper => _,
            lower = inout(reg) lower => _,
            weights = inout(reg) weights => _,
            count = inout(reg) depth / DEPTH => _,
            row = in(reg) ROW,
            line = in(reg) 4 * PANEL,
            sums = in(reg) sums,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// 16 rows by 32 columns.
#[inline(always)]
unsafe fn one_by_two(input: *const u8, weights: *const i8, depth: usize, sums: &mut Sums) {
    // SAFETY: as promised by the caller; no tile is in use elsewhere on this thread.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1",
            "2:",
            "tileloadd tmm6, [{weights} + {line}]",
            "tileloadd tmm4, [{upper} + {row}]",
            "tileloadd tmm7, [{weights} + {line} + 64]",
            "tdpbusd tmm0, tmm4, tmm6",
            "tdpbusd tmm1, tmm4, tmm7",
            "add {upper}, 1024",
            "add {weights}, 2048",
            "dec {count}",
            "jnz 2b",
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 64], tmm1",
            upper = inout(reg) input => _,
            weights = inout(reg) weights => _,
            count = inout(reg) depth / DEPTH => _,
            row = in(reg) ROW,
            line = in(reg) 4 * PANEL,
            sums = in(reg) sums,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
