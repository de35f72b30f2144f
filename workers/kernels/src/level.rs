//! Which vector units the processor has, and how work is run on them.
//!
//! A kernel is written once over [`Simd`] and compiled for each level; which one runs is chosen when the program starts,
//! so that one binary is right for every processor.

#[cfg(target_arch = "aarch64")]
use crate::neon::{MIXED, Neon, PLAIN, SIGNED};
use crate::portable::Portable;
use crate::simd::Simd;
#[cfg(target_arch = "x86_64")]
use crate::{amx, avx2::Avx2, avx512::Avx512};

/// A set of instructions that this processor has: there is no way to a level that it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// What every processor of the platform has.
    Portable,
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// With products of signed bytes.
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    /// With products of unsigned and signed bytes.
    #[cfg(target_arch = "aarch64")]
    NeonMixed,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// With VNNI, as servers have it since 2019.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 and int8 products of matrix tiles, as Xeons have them since 2023.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Level {
    /// All that this processor has, the best last.
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self(Kind::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            let has_avx2 =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            let has_avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            let found = [(has_avx2, Kind::Avx2), (has_avx2 && has_avx512, Kind::Avx512)];
            levels.extend(found.into_iter().filter(|(has, _)| *has).map(|(_, kind)| Self(kind)));
            if has_avx2 && has_avx512 && amx::is_available() {
                levels.push(Self(Kind::Amx));
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected;
            let has_dot = is_aarch64_feature_detected!("dotprod");
            let has_mixed = has_dot && is_aarch64_feature_detected!("i8mm");
            let found = [
                (is_aarch64_feature_detected!("neon"), Kind::Neon),
                (has_dot, Kind::NeonDot),
                (has_mixed, Kind::NeonMixed),
            ];
            levels.extend(found.into_iter().filter(|(has, _)| *has).map(|(_, kind)| Self(kind)));
        }
        levels
    }

    pub fn best() -> Self {
        *Self::available().last().expect("the portable level is everywhere")
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDot => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonMixed => "neon-i8mm",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => "amx",
        }
    }

    /// Whether products of int8 matrices are computed in tiles.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_tiles(self) -> bool {
        self.0 == Kind::Amx
    }

    pub(crate) fn run<W: Work>(self, work: W) -> W::Output {
        // SAFETY: a level is only made where the processor has its instructions; what the work reads and writes is its
        // own promise.
        unsafe {
            match self.0 {
                Kind::Portable => work.run::<Portable>(),
                // NEON is what the compiler takes for granted on arm64; what goes beyond is in assembly.
                #[cfg(target_arch = "aarch64")]
                Kind::Neon => work.run::<Neon<PLAIN>>(),
                #[cfg(target_arch = "aarch64")]
                Kind::NeonDot => work.run::<Neon<SIGNED>>(),
                #[cfg(target_arch = "aarch64")]
                Kind::NeonMixed => work.run::<Neon<MIXED>>(),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx2 => avx2(work),
                #[cfg(target_arch = "x86_64")]
                Kind::Avx512 | Kind::Amx => avx512(work),
            }
        }
    }
}

/// Something to be computed with whatever vectors there are.
pub(crate) trait Work {
    type Output;

    /// Must be `#[inline(always)]`, and so must be all that it calls and that uses `S`: it takes on the instructions of
    /// the function it is inlined into.
    ///
    /// # Safety
    /// The processor has the instructions of `S`, and the work's own pointers are valid.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<W: Work>(work: W) -> W::Output {
    // SAFETY: as promised by the caller.
    unsafe { work.run::<Avx2>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn avx512<W: Work>(work: W) -> W::Output {
    // SAFETY: as promised by the caller.
    unsafe { work.run::<Avx512>() }
}
