use esker_kernels::{
    device::Stream,
    tensor::{Arena, Class, DType},
};
use esker_model::{Config, Family, Rope, Weights};
use std::sync::LazyLock;

static STREAM: LazyLock<Stream> = LazyLock::new(|| Stream::cpu(1).expect("a thread"));

/// Memory for the network that `corpus/safetensors/valid` holds.
pub fn weights(dtype: DType) -> Weights {
    weights_of(&config(), dtype)
}

/// Memory for another network.
pub fn weights_of(config: &Config, dtype: DType) -> Weights {
    let layout = |arena: &mut Arena| Weights::layout(arena.class(Class::Weights), config, dtype);
    Arena::build(&STREAM, layout).expect("a page").0
}

fn config() -> Config {
    let (vocab, context, hidden, layers, heads, kv_heads, head_dim, ffn) = (5, 8, 4, 1, 1, 1, 2, 3);
    let (family, norm_eps, tied, init_std) = (Family::Llama, 1e-5, true, 0.02);
    let rope = Rope { theta: 10000.0, scaling: None };
    Config { family, vocab, context, hidden, layers, heads, kv_heads, head_dim, ffn, norm_eps, tied, init_std, rope }
}
