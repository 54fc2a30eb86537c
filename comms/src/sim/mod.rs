use crate::*;
/// x
pub fn spec(validators: &[PeerId]) -> RunSpec {
    let mut validators = validators.to_vec();
    validators.sort();
    RunSpec {
        name: "sim".into(),
        protocol: Protocol { min: PROTOCOL, max: PROTOCOL },
        model: Hash::of(b"model"),
        data: Hash::of(b"data"),
        genesis: Hash::NONE,
        tensors: vec![Shape { rows: 4, cols: 512 }, Shape { rows: 1, cols: 1024 }],
        inner: Inner { steps: 30, windows: 8, tokens: 1 << 16 },
        outer: Outer {
            tile: 1024,
            k: 16,
            codec: Codec::Ours,
            mean: Mean::Peers,
            beta: 0.95,
            alpha: vec![Knot { round: 0, alpha: 1.0 }],
        },
        blob_bytes: 1,
        delay: 0,
        times: Times { train_ms: 60_000, grace_ms: 5_000, collect_ms: 20_000, attempt_ms: 5_000, retry_ms: 2_000 },
        quorum: (validators.len() * 2 / 3 + 1) as u16,
        validators,
        admission: Admission::Open,
        limits: Limits {
            rounds: 1 << 30,
            slots: 2048,
            contributors: 64,
            peers_min: 1,
            probation_rounds: 0,
            behind_rounds: 8,
            checkpoint_rounds: 5,
            norm_ratio: 10.0,
            overlap_max: 0.4,
        },
        seed: 1,
    }
}
