use super::network;
use esker_kernels::tensor::DType;
use esker_model::gguf::Gguf;

/// Reads the bytes as a GGUF file: the network, the tokenizer, and the weights where they are small.
pub fn run(bytes: &[u8]) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(text_of)?;
    let file = dir.path().join("model.gguf");
    std::fs::write(&file, bytes).map_err(text_of)?;
    let mut gguf = Gguf::open(&file).map_err(text_of)?;
    gguf.tokenizer_json().map_err(text_of)?;
    gguf.tokenizer_config_json().map_err(text_of)?;
    let config = gguf.card().config.clone();
    // What a header says that holds together, the file's own length bears out.
    assert!(config.params().total() < 8 * bytes.len() as u64);
    gguf.load(&mut network::weights_of(&config, DType::F32)).map_err(text_of)
}

fn text_of(error: impl std::fmt::Display) -> String {
    error.to_string()
}
