//! On the host: a sum a chunk, written side by side into the shared scratch, then added in order.

use crate::{
    ops::cast::element::per_level,
    pool::{Pool, SHARED_BYTES},
    simd::Level,
};

/// Elements of a chunk.
const CHUNK: usize = 1 << 16;
/// Lanes of a chunk's sum.
const LANES: usize = 32;

pub(super) fn sum_squares(pool: &Pool, level: Level, t: &[f32]) -> f64 {
    let chunks = t.len().div_ceil(CHUNK);
    assert!(chunks <= SHARED_BYTES / size_of::<f64>(), "global_norm: {} elements", t.len());
    pool.with_shared(|scratch| {
        let sums: &mut [f64] = &mut bytemuck::cast_slice_mut(scratch)[..chunks];
        pool.chunks(sums, 1, |i, sum, _| sum[0] = chunk(level, &t[i * CHUNK..t.len().min((i + 1) * CHUNK)]));
        sums.iter().sum()
    })
}

per_level! {
    fn chunk[](t: &[f32]) -> f64 {
        let mut lanes = [0.0; LANES];
        let mut blocks = t.chunks_exact(LANES);
        for block in &mut blocks {
            for l in 0..LANES {
                lanes[l] += f64::from(block[l]) * f64::from(block[l]);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(blocks.remainder()) {
            *lane += f64::from(*x) * f64::from(*x);
        }
        let mut half = LANES / 2;
        while half > 0 {
            for l in 0..half {
                lanes[l] += lanes[l + half];
            }
            half /= 2;
        }
        lanes[0]
    }
}
