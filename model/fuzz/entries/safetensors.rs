use super::network;
use esker_kernels::tensor::DType;
use esker_model::hf;

/// Loads the bytes as the weights of a network of 100 numbers, once as f32 and once as bf16.
pub fn run(bytes: &[u8]) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(text_of)?;
    let path = dir.path().join("fuzz.safetensors");
    std::fs::write(&path, bytes).map_err(text_of)?;
    for dtype in [DType::F32, DType::Bf16] {
        let mut w = network::weights(dtype);
        hf::load_file(&path, &mut w).map_err(text_of)?;
    }
    Ok(())
}

fn text_of(error: impl std::fmt::Display) -> String {
    error.to_string()
}
