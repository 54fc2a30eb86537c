//! Which runs make the study.

use super::{Liars, Lie, Method, Setting};
use esker_kernels::ops::chunk_topk::{Codec, Mean};

/// Steps of each owner.
const STEPS: u64 = 1000;
/// Honest owners.
const OWNERS: u64 = 8;
/// Seeds of the comparison.
const SEEDS: [u64; 3] = [1, 2, 3];

/// Highest learning rates, each the best of those that [`tuning`] tries.
pub const LR_DDP: f64 = 4e-3;
/// See [`LR_DDP`].
pub const LR_DILOCO: f64 = 1e-3;
/// See [`LR_DDP`].
pub const LR_DEMO: f64 = 1e-3;
/// See [`LR_DDP`].
pub const LR_SPARSELOCO: f64 = 2e-3;
/// α of the mean over senders and over all.
const ALPHA: f64 = 1.0;

fn setting(method: Method, seed: u64, lr: f64) -> Setting {
    Setting { method, seed, lr, steps: STEPS, owners: OWNERS, liars: None }
}

fn diloco(inner_steps: u64) -> Method {
    Method::Diloco { inner_steps, outer_lr: 0.6, momentum: 0.9 }
}

fn demo() -> Method {
    Method::Demo { k: 32, decay: 0.999 }
}

/// The run in the middle of all sweeps.
#[derive(Clone, Copy)]
struct Sparse {
    inner_steps: u64,
    codec: Codec,
    k: usize,
    mean: Mean,
    alpha: f64,
    beta: f64,
}

const MIDDLE: Sparse =
    Sparse { inner_steps: 30, codec: Codec::Compact, k: 64, mean: Mean::Senders, alpha: ALPHA, beta: 0.95 };

impl Sparse {
    fn method(self) -> Method {
        let Sparse { inner_steps, codec, k, mean, alpha, beta } = self;
        Method::Sparseloco { inner_steps, codec, k, beta, mean, alpha }
    }
}

/// The comparison, then one sweep a factor.
pub fn sparseloco() -> Vec<Setting> {
    let mut all = Vec::new();
    for seed in SEEDS {
        all.push(setting(MIDDLE.method(), seed, LR_SPARSELOCO));
        all.push(setting(diloco(30), seed, LR_DILOCO));
        all.push(setting(Method::Ddp, seed, LR_DDP));
        all.push(setting(demo(), seed, LR_DEMO));
    }
    let mut sweep = |s: Sparse| all.push(setting(s.method(), 1, LR_SPARSELOCO));
    for codec in [Codec::Reference, Codec::Exact] {
        sweep(Sparse { codec, ..MIDDLE });
    }
    for alpha in [0.5, 0.7, 1.4] {
        sweep(Sparse { alpha, ..MIDDLE });
    }
    for alpha in [1.0, 2.0, 4.0] {
        sweep(Sparse { mean: Mean::Peers, alpha, ..MIDDLE });
    }
    for k in [16, 32, 128, 256, 512, 1024] {
        sweep(Sparse { k, ..MIDDLE });
    }
    for inner_steps in [15, 50, 100, 250] {
        sweep(Sparse { inner_steps, ..MIDDLE });
    }
    all
}

/// Learning rates around the chosen ones, one seed: what makes the comparison fair.
pub fn tuning() -> Vec<Setting> {
    let around = |method: Method, lr: f64| [0.5, 1.0, 2.0].map(|f| setting(method.clone(), 1, f * lr));
    [
        around(MIDDLE.method(), LR_SPARSELOCO),
        around(diloco(30), LR_DILOCO),
        around(Method::Ddp, LR_DDP),
        around(demo(), LR_DEMO),
    ]
    .concat()
}

/// Two liars beside eight honest owners, each lie with and without a validator.
pub fn liars() -> Vec<Setting> {
    let with = |lie: Option<Lie>, judged: bool| {
        let liars = Some(Liars { count: 2, lie, judged });
        Setting { liars, ..setting(MIDDLE.method(), 1, LR_SPARSELOCO) }
    };
    let judged = Lie::ALL.map(|lie| with(Some(lie), true));
    let unjudged = Lie::ALL.map(|lie| with(Some(lie), false));
    [vec![with(None, true)], judged.to_vec(), unjudged.to_vec()].concat()
}
