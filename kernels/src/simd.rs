//! Which vector instructions the CPU has, found once.
//!
//! An op's fast version picks its path from [`level`]; `ESKER_SIMD` lowers the choice (never raises it), so that every
//! path can be checked on one machine. Between levels a result agrees within tolerance only; at one level, to the bit.

use std::sync::OnceLock;

/// Sets of instructions, each with those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the language gives on every machine.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with dot products of bf16 pairs.
    Avx512Bf16,
}

impl Level {
    /// All levels, lowest first.
    pub const ALL: [Level; 4] = [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16];

    /// The name that `ESKER_SIMD` takes.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Avx512Bf16 => "avx512bf16",
        }
    }
}

/// The level that ops use: the CPU's own, or what `ESKER_SIMD` lowers it to.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let own = detected();
        match std::env::var("ESKER_SIMD") {
            Ok(name) => Level::ALL.into_iter().find(|l| l.name() == name).map_or(own, |wanted| wanted.min(own)),
            Err(_) => own,
        }
    })
}

/// Asks for the line at `at` to come to L1. Nothing is read, so any address will do.
#[inline(always)]
pub(crate) fn fetch_near<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is allowed, and SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// As [`fetch_near`], to L2.
#[inline(always)]
pub(crate) fn fetch_far<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The level of this CPU.
pub fn detected() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            // No CPU has the former without these; a virtual machine may show so.
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("popcnt");
        if avx512 && is_x86_feature_detected!("avx512bf16") {
            return Level::Avx512Bf16;
        }
        if avx512 {
            return Level::Avx512;
        }
        if avx2 {
            return Level::Avx2;
        }
    }
    Level::Portable
}
