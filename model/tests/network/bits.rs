//! The same bits, whatever the threads, the micro-batch and the recompute.

use crate::*;
use esker_kernels::{device::Stream, tensor::DType};
use esker_model::{Config, Family, Recompute, init};

#[test]
fn a_step_has_the_same_bits_however_it_is_run() {
    for (family, tied) in [(Family::Llama, false), (Family::Qwen3, true)] {
        let cfg = odd(family, tied);
        same_bits(&cfg, DType::F32);
        same_bits(&cfg, DType::Bf16);
    }
}

fn drawn(s: &Stream, cfg: &Config, dtype: DType) -> esker_model::Weights {
    let mut master = weights(s, cfg, DType::F32);
    init::draw(s, cfg, &mut master, 5).unwrap();
    let mut w = weights(s, cfg, dtype);
    w.convert_from(s, &master).unwrap();
    w
}

fn same_bits(cfg: &Config, dtype: DType) {
    let w = drawn(&Stream::cpu(2).unwrap(), cfg, dtype);
    let rows = ids(1, 8, 38, cfg.vocab);
    for grain_rows in [1, 2] {
        let run = |threads, micro_rows, recompute| {
            step(cfg, &w, &rows, None, How { threads, micro_rows, grain_rows, dtype, recompute })
        };
        let want = run(1, 8, Recompute::None);
        assert!(
            want.nll.iter().all(|x| x.is_finite()) && want.grads.iter().all(|(_, g)| g.iter().all(|x| x.is_finite()))
        );
        for (threads, micro_rows, recompute) in [
            (1, 8, Recompute::None),
            (1, grain_rows, Recompute::None),
            (2, 4, Recompute::None),
            (3, 2, Recompute::None),
            (3, 8, Recompute::Block),
            (2, 2, Recompute::Block),
        ] {
            let got = run(threads, micro_rows, recompute);
            for ((name, got), (_, want)) in got.grads.iter().zip(&want.grads) {
                let same = got.iter().zip(want).all(|(g, w)| g.to_bits() == w.to_bits());
                assert!(
                    same,
                    "{name}: {threads} threads, {micro_rows} rows, {recompute:?}, {dtype}, off by {}",
                    relative(got, want)
                );
            }
            assert_eq!(got.bits(), want.bits());
        }
    }
}

/// Two documents in one row see nothing of each other: the losses of the second are those it has alone.
#[test]
fn documents_do_not_meet() {
    let cfg = odd(Family::Llama, true);
    let w = drawn(&Stream::cpu(2).unwrap(), &cfg, DType::F32);
    let row = ids(3, 1, 38, cfg.vocab);
    let alone = vec![row[0][16..].to_vec()];
    let first = vec![(0..37).map(|i| if i < 16 { 0 } else { 16 }).collect()];
    let together = step(&cfg, &w, &row, Some(&first), How::PLAIN).nll;
    let alone = step(&cfg, &w, &alone, None, How::PLAIN).nll;
    assert!(relative(&together[16..], &alone) < 1e-5);
    let unmarked = step(&cfg, &w, &row, None, How::PLAIN).nll;
    assert!(relative(&unmarked[16..], &alone) > 1e-3);
}
