//! Rounding by the definition: of the two bf16 around a number, the nearer; of two equally near, the even one.

use half::bf16;

/// `x` rounded to bf16, found among all by bisection of their order: no bit is shifted here.
pub fn round(x: f32) -> f64 {
    if x.is_nan() || x.is_infinite() || x == 0.0 {
        return f64::from(x);
    }
    let size = f64::from(x).abs();
    // Past the largest finite value the grid goes on as if exponents had no end: 2^128 stands for infinity.
    let value = |i: u16| if i == 0x7f80 { 2f64.powi(128) } else { f64::from(bf16::from_bits(i).to_f32()) };
    let (mut below, mut above) = (0u16, 0x7f80u16);
    while above - below > 1 {
        let middle = below + (above - below) / 2;
        if value(middle) <= size { below = middle } else { above = middle }
    }
    let (down, up) = (size - value(below), value(above) - size);
    let nearest = if down < up || (down == up && below.is_multiple_of(2)) { below } else { above };
    f64::from(bf16::from_bits(nearest).to_f32()).copysign(f64::from(x))
}

/// `to_i += from_i`.
pub fn add(from: &[f64], to: &mut [f64]) {
    for i in 0..to.len() {
        to[i] += from[i];
    }
}
