//! What conformance checks and the bench times.

use super::{
    Codec, Compress, Delta, Fold, Grid, Mean, Spec, Update, compress, fold, record::check, reference, sum_squares,
};
use crate::{
    Result,
    device::Stream,
    harness::{Op, Output, Work, draw, wide},
    tensor::{DType, Tensor},
};

/// The op, for the harness.
#[derive(Debug)]
pub struct ChunkTopk;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum What {
    /// With a and θ.
    Compress,
    /// On what `e` holds.
    InPlace,
    /// The mean of so many peers.
    Fold { peers: usize, mean: Mean },
    /// Σ d² of one peer's update.
    Norm,
}

/// One call.
#[derive(Clone)]
pub struct Case {
    /// `[rows, cols]`, or `[len]` where `rows` is 0.
    pub rows: usize,
    pub cols: usize,
    pub spec: Spec,
    pub what: What,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Case { rows, cols, spec, what } = self;
        write!(f, "{what:?} rows {rows} cols {cols} k {} {:?}", spec.k, spec.codec)
    }
}

impl Case {
    fn grid(&self) -> Grid {
        if self.rows == 0 { Grid::vector(self.cols) } else { Grid::matrix(self.rows, self.cols) }
    }

    fn peers(&self) -> usize {
        if let What::Fold { peers, .. } = self.what { peers } else { 1 }
    }

    /// Whether updates are read, not written.
    fn reads(&self) -> bool {
        matches!(self.what, What::Fold { .. } | What::Norm)
    }
}

/// Peers of the largest fold.
const PEERS_MAX: usize = 8;
const BETA: f32 = 0.95;
const ALPHA: f32 = 0.7;

/// Tensors of a case. `e` of each peer is drawn apart; a fold takes the updates made of them.
#[derive(Debug)]
pub struct Ready {
    e: Tensor,
    anchor: Tensor,
    theta: Tensor,
    updates: Vec<Tensor>,
    sum: f64,
}

impl Op for ChunkTopk {
    const NAME: &'static str = "chunk_topk";
    type Case = Case;
    type Ready = Ready;

    fn conform_cases() -> Vec<Case> {
        let mut cases = Vec::new();
        let shapes = [(0, 1), (1, 1), (0, 100), (3, 5), (64, 64), (65, 130), (0, 9000), (200, 64), (33, 700)];
        for (i, (rows, cols)) in shapes.into_iter().enumerate() {
            for codec in [Codec::Compact, Codec::Reference, Codec::Exact] {
                let k = [64, 128, 32, 4096, 700, 1][i % 6];
                let spec = Spec { k, codec };
                let case = |what| Case { rows, cols, spec, what };
                let mean = if i % 2 == 0 { Mean::Peers } else { Mean::Senders };
                let fold = What::Fold { peers: [1, 2, 3, 4, 0][i % 5], mean };
                cases.extend([What::Compress, What::InPlace, fold, What::Norm].map(case));
            }
        }
        cases
    }

    fn bench_cases() -> Vec<Case> {
        let spec = |k, codec| Spec { k, codec };
        let fold = |peers| What::Fold { peers, mean: Mean::Peers };
        // 100 M parameters in one matrix and in one vector, as designs of the field are timed; then a model's matrices.
        // To fold nothing is the bare pass over weights that every fold makes: what updates cost is seen beside it.
        [
            (0, 100_000_000, spec(64, Codec::Compact), What::InPlace),
            (24_576, 4096, spec(64, Codec::Compact), What::InPlace),
            (24_576, 4096, spec(64, Codec::Reference), What::InPlace),
            (8192, 4096, spec(64, Codec::Compact), What::Compress),
            (8192, 4096, spec(128, Codec::Compact), What::Compress),
            (8192, 4096, spec(64, Codec::Compact), fold(0)),
            (8192, 4096, spec(64, Codec::Compact), fold(1)),
            (8192, 4096, spec(64, Codec::Compact), fold(8)),
        ]
        .map(|(rows, cols, spec, what)| Case { rows, cols, spec, what })
        .into()
    }

    fn work(case: &Case) -> Work {
        let (n, grid) = (case.grid().len() as f64, case.grid());
        let update = grid.update_bytes(case.spec) as f64;
        // In place, a value sent dirties a line of sixteen.
        let touched = (16.0 * case.spec.k as f64 / 4096.0).min(1.0);
        let bytes = match case.what {
            What::Compress => 16.0 * n + update,
            What::InPlace => (4.0 + 4.0 * touched) * n + update,
            What::Fold { peers, .. } => 12.0 * n + peers as f64 * update,
            What::Norm => update,
        };
        Work { flops: 3.0 * n, bytes, arithmetic: DType::F32 }
    }

    fn prepare(s: &Stream, case: &Case, seed: u64) -> Result<Ready> {
        let (n, grid) = (case.grid().len(), case.grid());
        let f32 = || Tensor::alone(s, DType::F32, [n]);
        let mut ready = Ready { e: f32()?, anchor: f32()?, theta: f32()?, updates: Vec::new(), sum: 0.0 };
        ready.anchor.set(&anchor(case, seed));
        for peer in 0..case.peers() {
            let [e, theta] = drawn(case, seed, peer);
            ready.e.set(&e);
            ready.theta.set(&theta);
            ready.updates.push(Tensor::alone(s, DType::U32, [grid.update_words(case.spec)])?);
            if case.reads() {
                send(s, case, &mut ready, peer)?;
            }
        }
        Ok(ready)
    }

    fn run(s: &Stream, case: &Case, r: &mut Ready) -> Result<()> {
        match case.what {
            What::Fold { mean, .. } => {
                // On the stack: an op must not allocate, so neither may its case.
                let all = r.updates.first().map(|first| {
                    let update = |i| Update { update: r.updates.get(i).unwrap_or(first), factor: factor(i) };
                    std::array::from_fn::<_, PEERS_MAX, _>(update)
                });
                let updates = all.as_ref().map_or(&[][..], |all| &all[..r.updates.len()]);
                let a = Fold { updates, mean, alpha: ALPHA, anchor: &mut r.anchor, theta: &mut r.theta };
                fold(s, case.grid(), case.spec, a)
            }
            What::Norm => {
                r.sum = sum_squares(s, case.grid(), case.spec, &r.updates[0])?;
                Ok(())
            }
            _ => send(s, case, r, 0),
        }
    }

    fn outputs(_: &Stream, case: &Case, r: &Ready) -> Result<Vec<Output>> {
        Ok(match case.what {
            What::Fold { .. } => vec![
                Output { name: "anchor", values: wide(r.anchor.f32()) },
                Output { name: "theta", values: wide(r.theta.f32()) },
            ],
            What::Norm => vec![Output { name: "sum of squares", values: vec![r.sum] }],
            _ => {
                let bytes = &r.updates[0].bytes()[..case.grid().update_bytes(case.spec)];
                check(case.grid(), case.spec, bytes).expect("an update of our own passes");
                vec![
                    Output { name: "e", values: wide(r.e.f32()) },
                    Output { name: "update", values: bytes.iter().map(|&b| f64::from(b)).collect() },
                ]
            }
        })
    }

    fn reference(case: &Case, seed: u64) -> Vec<Output> {
        let grid = case.grid();
        let (mut sent, mut left, mut anchor) = (Vec::new(), Vec::new(), anchor(case, seed));
        for peer in 0..case.peers() {
            let [mut e, theta] = drawn(case, seed, peer);
            let (beta, from) = if case.what == What::InPlace { (1.0, &theta) } else { (BETA, &anchor) };
            sent.push(reference::compress(grid, case.spec, beta, &mut e, from, &theta));
            left = e;
        }
        if let What::Fold { mean, .. } = case.what {
            let updates: Vec<(&[u8], f32)> = sent.iter().enumerate().map(|(i, u)| (&u[..], factor(i))).collect();
            reference::fold(grid, case.spec, &updates, mean, ALPHA, &mut anchor);
            return vec![
                Output { name: "anchor", values: wide(&anchor) },
                Output { name: "theta", values: wide(&anchor) },
            ];
        }
        if case.what == What::Norm {
            let sum = reference::dense(grid, case.spec, &sent[0]).iter().flatten().map(|&d| f64::from(d).powi(2)).sum();
            return vec![Output { name: "sum of squares", values: vec![sum] }];
        }
        vec![
            Output { name: "e", values: wide(&left) },
            Output { name: "update", values: sent[0].iter().map(|&b| f64::from(b)).collect() },
        ]
    }

    fn tolerance(case: &Case) -> f64 {
        // To the bit; only the sum of squares is added up in another order.
        if case.what == What::Norm { 1e-12 } else { 0.0 }
    }
}

/// The clip of peer `i`.
fn factor(i: usize) -> f32 {
    1.0 - 0.1 * i as f32
}

fn send(s: &Stream, case: &Case, r: &mut Ready, peer: usize) -> Result<()> {
    let delta = Delta { anchor: &r.anchor, theta: &r.theta };
    let delta = if case.what == What::InPlace { None } else { Some(delta) };
    let a = Compress { e: &mut r.e, delta, update: &mut r.updates[peer], beta: BETA };
    assert!(compress(s, case.grid(), case.spec, a)?, "finite numbers make a finite update");
    Ok(())
}

/// The weights from which all peers begin.
fn anchor(case: &Case, seed: u64) -> Vec<f32> {
    draw(seed + 1, case.grid().len())
}

/// e and theta of a peer.
fn drawn(case: &Case, seed: u64, peer: usize) -> [Vec<f32>; 2] {
    [0, 2].map(|of| draw(seed + 10 * peer as u64 + of, case.grid().len()))
}

#[cfg(test)]
mod tests {
    use super::super::{clip_factors, cpu, fold};
    use super::*;
    use crate::{harness, simd};

    #[test]
    fn conforms() {
        harness::conform_on_host::<ChunkTopk>();
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let s = Stream::cpu(2).unwrap();
        let pool = s.host();
        for case in ChunkTopk::conform_cases().into_iter().filter(|c| c.what == What::Compress) {
            let once = |level| {
                let mut r = ChunkTopk::prepare(&s, &case, 5).unwrap();
                let delta = Some(Delta { anchor: &r.anchor, theta: &r.theta });
                let a = Compress { e: &mut r.e, delta, update: &mut r.updates[0], beta: BETA };
                cpu::compress(pool, level, case.grid(), case.spec, a);
                ChunkTopk::outputs(&s, &case, &r).unwrap()
            };
            let portable = once(simd::Level::Portable);
            for level in simd::Level::ALL.into_iter().filter(|&l| l <= simd::detected()) {
                for (a, b) in once(level).iter().zip(&portable) {
                    assert_eq!(a.values, b.values, "{case:?}: {} at {}", a.name, level.name());
                }
            }
        }
    }

    #[test]
    fn every_level_folds_to_the_same_bits() {
        let s = Stream::cpu(2).unwrap();
        let mut cases = ChunkTopk::conform_cases();
        let what = What::Fold { peers: PEERS_MAX, mean: Mean::Senders };
        cases.push(Case { rows: 128, cols: 192, spec: Spec { k: 64, codec: Codec::Compact }, what });
        for case in cases {
            let What::Fold { mean, .. } = case.what else { continue };
            let mut r = ChunkTopk::prepare(&s, &case, 6).unwrap();
            let mut once = |level| {
                let start = draw(1, case.grid().len());
                r.anchor.set(&start);
                let updates: Vec<Update<'_>> =
                    r.updates.iter().enumerate().map(|(i, update)| Update { update, factor: factor(i) }).collect();
                let a = Fold { updates: &updates, mean, alpha: ALPHA, anchor: &mut r.anchor, theta: &mut r.theta };
                fold::fold(s.host(), level, case.grid(), case.spec, a);
                assert_eq!(r.anchor.f32(), r.theta.f32());
                r.theta.f32().to_vec()
            };
            let portable = once(simd::Level::Portable);
            for level in simd::Level::ALL.into_iter().filter(|&l| l <= simd::detected()) {
                assert_eq!(once(level), portable, "{case:?} at {}", level.name());
            }
        }
    }

    #[test]
    fn records_lie_one_after_another() {
        for shape in [&[1][..], &[4096], &[10_000], &[64, 64], &[65, 64], &[64, 65], &[200, 333], &[1, 1]] {
            for codec in [Codec::Compact, Codec::Reference, Codec::Exact] {
                let (grid, spec) = (Grid::of(shape), Spec { k: 64, codec });
                let mut at = spec.head_bytes();
                for i in 0..grid.chunks() {
                    assert_eq!(grid.record_at(spec, i), at, "{shape:?} chunk {i}");
                    at += spec.record_bytes(grid.tile(i).len());
                }
                assert_eq!(grid.update_bytes(spec), at);
            }
        }
    }

    /// With k the whole chunk, nothing quantised and nothing carried over, a round is plain averaging, to the bit.
    #[test]
    fn everything_sent_exactly_is_plain_averaging() {
        let s = Stream::cpu(2).unwrap();
        let spec = Spec { k: 4096, codec: Codec::Exact };
        let case = Case { rows: 70, cols: 90, spec, what: What::Compress };
        let (start, peers) = (anchor(&case, 4), [0, 1, 2].map(|p| drawn(&case, 4, p)));
        let mut updates = Vec::new();
        for [_, theta] in &peers {
            let mut r = ChunkTopk::prepare(&s, &case, 4).unwrap();
            r.e.set(&vec![0.0; r.e.len()]);
            r.anchor.set(&start);
            r.theta.set(theta);
            send(&s, &case, &mut r, 0).unwrap();
            assert!(r.e.f32().iter().all(|&e| e == 0.0), "nothing is left over");
            updates.push(r.updates.remove(0));
        }
        let mut r = ChunkTopk::prepare(&s, &case, 4).unwrap();
        let updates: Vec<Update<'_>> = updates.iter().map(|update| Update { update, factor: 1.0 }).collect();
        let (anchor, theta) = (&mut r.anchor, &mut r.theta);
        fold(&s, case.grid(), spec, Fold { updates: &updates, mean: Mean::Peers, alpha: 1.0, anchor, theta }).unwrap();
        for (j, got) in r.theta.f32().iter().enumerate() {
            let a = start[j];
            let mean = peers.iter().fold(0.0, |sum, p| sum + (a - p[1][j])) / 3.0;
            assert_eq!(got.to_bits(), (a - mean).to_bits());
        }
    }

    #[test]
    fn what_is_left_and_what_was_sent_are_what_was_there() {
        let s = Stream::cpu(1).unwrap();
        let spec = Spec { k: 64, codec: Codec::Compact };
        let case = Case { rows: 130, cols: 70, spec, what: What::Compress };
        let mut r = ChunkTopk::prepare(&s, &case, 9).unwrap();
        let before: Vec<f32> =
            (0..r.e.len()).map(|i| BETA * r.e.f32()[i] + (r.anchor.f32()[i] - r.theta.f32()[i])).collect();
        send(&s, &case, &mut r, 0).unwrap();
        let bytes = &r.updates[0].bytes()[..case.grid().update_bytes(spec)];
        for (i, d) in reference::dense(case.grid(), spec, bytes).into_iter().enumerate() {
            assert_eq!(r.e.f32()[i].to_bits(), (before[i] - d.unwrap_or(0.0)).to_bits());
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_seen() {
        let s = Stream::cpu(1).unwrap();
        for codec in [Codec::Compact, Codec::Reference, Codec::Exact] {
            let case = Case { rows: 70, cols: 70, spec: Spec { k: 64, codec }, what: What::InPlace };
            let mut r = ChunkTopk::prepare(&s, &case, 1).unwrap();
            r.e.f32_mut()[77] = f32::NAN;
            let a = Compress { e: &mut r.e, delta: None, update: &mut r.updates[0], beta: BETA };
            assert!(!compress(&s, case.grid(), case.spec, a).unwrap(), "{codec:?}");
        }
    }

    #[test]
    fn the_clip_cuts_to_the_lower_median() {
        assert_eq!(clip_factors(&[1.0, 2.0, 4.0, 100.0]), [1.0, 1.0, 0.5, 0.02]);
        assert_eq!(clip_factors(&[3.0]), [1.0]);
        assert_eq!(clip_factors(&[]), [0f32; 0]);
    }

    /// 200 values of one vector, all sent.
    #[test]
    fn the_reference_codec_agrees_with_the_golden() {
        #[derive(serde::Deserialize)]
        struct Golden {
            values: Vec<f32>,
            shift: f32,
            levels: [f32; 4],
            codes: Vec<usize>,
        }
        let g: Golden = serde_json::from_str(include_str!("golden.json")).unwrap();
        let grid = Grid::vector(g.values.len());
        let mut e = g.values.clone();
        let zero = vec![0.0; e.len()];
        let bytes = reference::compress(grid, Spec { k: 4096, codec: Codec::Reference }, 1.0, &mut e, &zero, &zero);
        let got = reference::dense(grid, Spec { k: 4096, codec: Codec::Reference }, &bytes);
        for ((v, d), code) in g.values.iter().zip(got).zip(&g.codes) {
            let want = g.levels[*code] + g.shift;
            assert!((d.unwrap() - want).abs() <= 1e-6 * want.abs().max(1.0), "{v} -> {d:?}, not {want}");
        }
    }
}
