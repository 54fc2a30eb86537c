//! Generation, one sequence.

use super::{ModelRow, Row, llama, median_and_min};
use esker_eval::sample::largest;
use esker_kernels::{
    Result,
    device::Stream,
    peak::Peaks,
    tensor::{Arena, Class, DType},
};
use esker_model::{Decoder, Weights};
use std::time::Instant;

/// The one case.
const CASE: &str = "stories110M decode";
/// Tokens of the prompt.
const PROMPT: usize = 16;
/// Tokens of a sequence, the prompt among them.
const TOKENS: usize = 272;

/// Times generation in each of `dtypes`, about `seconds` each.
pub fn decode(
    s: &Stream,
    peaks: &Peaks,
    filter: &str,
    dtypes: &[DType],
    seconds: f64,
    each: &mut dyn FnMut(Row) -> bool,
) -> Result<()> {
    for &dtype in dtypes.iter().filter(|_| CASE.contains(filter)) {
        if !each(Row::Model(case(s, peaks, dtype, seconds)?)) {
            break;
        }
    }
    Ok(())
}

fn case(s: &Stream, peaks: &Peaks, dtype: DType, seconds: f64) -> Result<ModelRow> {
    let config = llama(32_000, 1024, 768, 12, 12, 2048);
    let layout = |arena: &mut Arena| {
        let weights = Weights::layout(arena.class(Class::Weights), &config, dtype);
        (weights, Decoder::layout(arena, &config, dtype, TOKENS, PROMPT))
    };
    let ((mut weights, mut decoder), _) = Arena::build(s, layout)?;
    {
        let mut drawn = Arena::build(s, |arena| Weights::layout(arena, &config, DType::F32))?.0;
        esker_model::init::draw(s, &config, &mut drawn, 1)?;
        weights.convert_from(s, &drawn)?;
    }
    decoder.ready(s, &config)?;
    let prompt: Vec<u32> = (0..PROMPT as u32).map(|i| 1 + i * 97).collect();
    let mut times = Vec::new();
    let begin = Instant::now();
    while times.len() < TOKENS - PROMPT || begin.elapsed().as_secs_f64() < seconds {
        decoder.reset();
        let mut next = largest(decoder.prefill(s, &config, &weights, &prompt)?).unwrap_or(0);
        while decoder.room() > 0 {
            let start = Instant::now();
            next = largest(decoder.step(s, &config, &weights, next)?).unwrap_or(0);
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let runs = times.len();
    let (median, min) = median_and_min(times);
    let params = config.params().total();
    // Forward alone: two a weight, and the scores of the tokens seen on average.
    let flops_per_token = 2.0 * params as f64 + 4.0 * (config.layers * config.q_width() * TOKENS / 2) as f64;
    let bytes: u64 = weights.each().map(|(_, t)| t.size_bytes() as u64).sum();
    Ok(ModelRow {
        bench: "decode",
        case: CASE.into(),
        dtype,
        threads: s.threads(),
        params,
        runs,
        median_ms: median * 1e3,
        min_ms: min * 1e3,
        tokens_per_s: 1.0 / median,
        flops_per_token,
        gflop_per_s: flops_per_token / median / 1e9,
        share_of_peak: flops_per_token / median / peaks.flops(dtype),
        bytes_per_token: Some(bytes),
        share_of_bandwidth: Some(bytes as f64 / median / peaks.read_bytes_per_s),
    })
}
