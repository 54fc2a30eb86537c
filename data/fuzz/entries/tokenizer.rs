use esker_data::Tokenizer;

/// Reads the bytes as a tokenizer.json, encodes a few texts with it and decodes them.
pub fn run(bytes: &[u8]) -> Result<(), String> {
    let tokenizer = Tokenizer::from_json(bytes, "fuzz").map_err(text_of)?;
    for text in ["", " Hello,  wörld!\n\n123 <s>日本🏞</s>", "\0\u{2581}a\u{301}"] {
        let _ = tokenizer.encode_prompt(text);
        let Ok(ids) = tokenizer.encode(text) else { continue };
        assert!(ids.iter().all(|&id| id < tokenizer.vocab_size()));
        let _ = tokenizer.decode(&ids, false);
        let _ = tokenizer.bytes_of(&ids);
        let mut stream = tokenizer.stream();
        for id in ids {
            let _ = stream.push(id);
        }
        let _ = stream.finish();
    }
    Ok(())
}

fn text_of(error: impl std::fmt::Display) -> String {
    error.to_string()
}
