use super::network;
use esker_kernels::tensor::DType;
use esker_model::hf;

/// Reads the bytes as the index of a folder whose one other file is a valid one.
pub fn run(bytes: &[u8]) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(text_of)?;
    let valid = include_bytes!("../corpus/safetensors/valid");
    std::fs::write(dir.path().join("part.safetensors"), valid).map_err(text_of)?;
    std::fs::write(dir.path().join("model.safetensors.index.json"), bytes).map_err(text_of)?;
    let mut w = network::weights(DType::F32);
    hf::load(dir.path(), &mut w).map_err(text_of)
}

fn text_of(error: impl std::fmt::Display) -> String {
    error.to_string()
}
