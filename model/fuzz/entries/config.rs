use esker_kernels::tensor::{Arena, Class, DType};
use esker_model::{Weights, hf};

/// Reads the bytes as a config.json; what passes is small enough to count with.
pub fn run(bytes: &[u8]) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(text_of)?;
    std::fs::write(dir.path().join("config.json"), bytes).map_err(text_of)?;
    let card = hf::read_card(dir.path()).map_err(text_of)?;
    let params = card.config.params().total();
    assert!(card.config.flops_per_token(card.config.context) >= params as f64);
    if card.config.layers <= 64 && params < 1 << 40 {
        let measured = Weights::layout(Arena::measure().class(Class::Weights), &card.config, DType::F32);
        assert_eq!(measured.len() as u64, params);
    }
    Ok(())
}

fn text_of(error: impl std::fmt::Display) -> String {
    error.to_string()
}
