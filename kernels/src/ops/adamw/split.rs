//! Masters in two halves, which cost two bytes beside the weights that ops read instead of four.
//!
//! high: bf16, the master rounded to nearest, ties upwards in its bits
//! low:  16 bits, what high lacks, as a signed number of steps: bits(master) = high · 2^16 + low
//!
//! So nothing is lost, and an update has the bits of [`super::step`]'s on the joined master.
//! Source: ours; keeping the low half beside the weights is what Apex calls the remainder of a master.

use super::{Hyper, cpu};
use crate::{
    Result,
    device::Stream,
    tensor::{DType, Tensor},
};

/// Tensors of [`step`].
#[derive(Debug)]
pub struct Step<'a> {
    /// `[len]` bf16: what ops read
    pub high: &'a mut Tensor,
    /// `[len]` 16 bits each, in a tensor of bf16: what the master has beyond it
    pub low: &'a mut Tensor,
    /// `[len]` f32: the gradient; left at zero if `zero_grad`
    pub g: &'a mut Tensor,
    /// `[len]` f32: mean of gradients
    pub m: &'a mut Tensor,
    /// `[len]` f32: mean of squared gradients
    pub v: &'a mut Tensor,
}

/// The two halves of a master.
pub fn parts(master: f32) -> (u16, u16) {
    let bits = master.to_bits();
    ((bits.wrapping_add(0x8000) >> 16) as u16, bits as u16)
}

/// The master of two halves.
pub fn join(high: u16, low: u16) -> f32 {
    f32::from_bits((u32::from(high) << 16).wrapping_add(i32::from(low as i16) as u32))
}

/// Leaves the halves of `whole` in `high` and `low`, both of 16 bits a number; on the host.
pub fn part_all(whole: &[f32], high: &mut Tensor, low: &mut Tensor) {
    let high: &mut [u16] = bytemuck::cast_slice_mut(high.bytes_mut());
    let low: &mut [u16] = bytemuck::cast_slice_mut(low.bytes_mut());
    for (&whole, (high, low)) in whole.iter().zip(high.iter_mut().zip(low)) {
        (*high, *low) = parts(whole);
    }
}

/// Leaves the masters of two halves in `whole`; on the host.
pub fn join_all(high: &Tensor, low: &Tensor, whole: &mut [f32]) {
    let (high, low): (&[u16], &[u16]) = (bytemuck::cast_slice(high.bytes()), bytemuck::cast_slice(low.bytes()));
    for (whole, (&high, &low)) in whole.iter_mut().zip(high.iter().zip(low)) {
        *whole = join(high, low);
    }
}

/// Updates the first `len` elements.
pub fn step(s: &Stream, len: usize, a: Step<'_>, h: Hyper) -> Result<()> {
    for (name, t, dtype) in [
        ("high", &*a.high, DType::Bf16),
        ("low", &*a.low, DType::Bf16),
        ("g", &*a.g, DType::F32),
        ("m", &*a.m, DType::F32),
        ("v", &*a.v, DType::F32),
    ] {
        assert!(t.len() >= len, "adamw: {name} has {} of {len}", t.len());
        assert_eq!(t.dtype(), dtype, "adamw: dtype of {name}");
    }
    match s {
        Stream::Cpu(_) => on_host(len, a, h),
        Stream::Gpu(gpu) => super::gpu::step_split(gpu, len, a, h)?,
    }
    Ok(())
}

fn on_host(len: usize, a: Step<'_>, h: Hyper) {
    let f = h.factors();
    let (high, low): (&mut [u16], &mut [u16]) =
        (bytemuck::cast_slice_mut(a.high.bytes_mut()), bytemuck::cast_slice_mut(a.low.bytes_mut()));
    let (g, m, v) = (a.g.f32_mut(), a.m.f32_mut(), a.v.f32_mut());
    for i in 0..len {
        let w;
        (w, m[i], v[i]) = cpu::element(f, join(high[i], low[i]), g[i], m[i], v[i]);
        (high[i], low[i]) = parts(w);
        if h.zero_grad {
            g[i] = 0.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{harness::draw, ops::adamw};

    #[test]
    fn halves_join_to_the_number_they_were() {
        for bits in (0..=u32::MAX).step_by(65_521).chain([0x3f80_8000, 0x3f81_8000, 0x8000_8000, 1, 0xffff]) {
            let x = f32::from_bits(bits);
            if x.is_finite() {
                let (high, low) = parts(x);
                assert_eq!(join(high, low).to_bits(), bits, "{bits:#x}");
                let (near, far) = (f32::from_bits(u32::from(high) << 16), (bits >> 16) << 16);
                assert!(!near.is_finite() || (near - x).abs() <= (f32::from_bits(far + 0x1_0000) - x).abs());
            }
        }
    }

    /// On the host and on the simulator: the bits of whole masters.
    #[test]
    fn an_update_has_the_bits_of_whole_masters() {
        let len = 1003;
        let h = Hyper {
            lr: 1e-2,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            t: 3,
            scale: 0.5,
            zero_grad: true,
        };
        for s in [Stream::cpu(1).unwrap(), Stream::sim(1).unwrap()] {
            let t = |seed: u64| {
                let mut t = Tensor::alone(&s, DType::F32, [len]).unwrap();
                t.set(&draw(seed, len).iter().map(|x| if seed == 4 { x * x } else { *x }).collect::<Vec<_>>());
                t
            };
            let half = || Tensor::alone(&s, DType::Bf16, [len]).unwrap();
            let (mut w, mut g, mut m, mut v) = (t(1), t(2), t(3), t(4));
            adamw::step(&s, len, adamw::Step { w: &mut w, g: &mut g, m: &mut m, v: &mut v, out: None }, h).unwrap();
            let (mut high, mut low) = (half(), half());
            part_all(&draw(1, len), &mut high, &mut low);
            let (mut g2, mut m2, mut v2) = (t(2), t(3), t(4));
            let a = Step { high: &mut high, low: &mut low, g: &mut g2, m: &mut m2, v: &mut v2 };
            step(&s, len, a, h).unwrap();
            let mut whole = vec![0.0; len];
            join_all(&high, &low, &mut whole);
            for i in 0..len {
                assert_eq!(whole[i].to_bits(), w.f32()[i].to_bits(), "element {i}");
            }
            assert_eq!((m.bytes(), v.bytes(), g.bytes()), (m2.bytes(), v2.bytes(), g2.bytes()));
        }
    }
}
