//! A look at a tokenizer.json before the `tokenizers` crate builds from it.
//!
//! That crate trusts its input in many places. Refused here: a file over [`MAX_JSON_BYTES`]; ids
//! of 2^24 and above (a vocabulary is a table somewhere); random merges (`dropout`); a
//! `Precompiled` normalizer and a `BPEDecoder`, a `Strip` decoder from the end, pieces of length
//! 0, a prefix within BPE, parts that are no objects: all of these panic in there; templates that
//! name what they do not define; patterns that match nothing everywhere, and long strings that
//! are put in again and again. No model that we know of needs one of them. The rest the crate
//! checks itself, and what still panics is caught at this boundary.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::TokenizerError;
use crate::brief;

/// The largest tokenizer.json that is read. Gemma 3's, with 262,144 tokens, has 33 MB.
pub const MAX_JSON_BYTES: u64 = 128 << 20;
/// Ids lie below it.
const MAX_ID: u64 = 1 << 24;
/// Strings that are put into a text again and again stay below it.
const MAX_PIECE_BYTES: usize = 1 << 10;

/// What the look found.
pub(super) struct Found {
    /// The decoder turns characters back into bytes one by one.
    pub byte_level: bool,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f64>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
}

pub(super) fn inspect(json: &[u8], name: &str) -> Result<Found, TokenizerError> {
    let bytes = json.len() as u64;
    if bytes > MAX_JSON_BYTES {
        return Err(TokenizerError::TooLarge { name: name.into(), bytes, max: MAX_JSON_BYTES });
    }
    let file: File = serde_json::from_slice(json).map_err(|e| TokenizerError::Parse {
        name: name.into(),
        reason: format!("{}; give the tokenizer.json of a Hugging Face model", brief(e)),
    })?;
    let refuse = |key: &str, reason: &str| {
        Err(TokenizerError::Field { name: name.into(), key: key.into(), reason: reason.into() })
    };
    if let Some(p) = file.model.dropout
        && p != 0.0
    {
        return refuse("model.dropout", &format!("{p} would draw merges at random; expected null: set it to null"));
    }
    let kind = file.model.kind.as_deref();
    if !matches!(kind, None | Some("BPE" | "WordPiece" | "WordLevel" | "Unigram")) {
        return refuse("model.type", "expected BPE, WordPiece, WordLevel or Unigram");
    }
    for (key, piece) in [
        ("model.continuing_subword_prefix", &file.model.continuing_subword_prefix),
        ("model.end_of_word_suffix", &file.model.end_of_word_suffix),
    ] {
        if piece.as_ref().is_some_and(|p| p.len() > MAX_PIECE_BYTES) {
            return refuse(key, "expected at most 1024 bytes");
        }
    }
    // The crate cuts the second half of a merge by the prefix's length, whatever that half is.
    if kind != Some("WordPiece") && file.model.continuing_subword_prefix.as_ref().is_some_and(|p| !p.is_empty()) {
        return refuse("model.continuing_subword_prefix", "only WordPiece may have one; expected null");
    }
    for (i, token) in file.added_tokens.iter().enumerate() {
        check_id(token.id, &format!("added_tokens[{i}].id"), name)?;
        if token.content.is_empty() {
            return refuse(&format!("added_tokens[{i}].content"), "expected a text, found none");
        }
    }
    for (key, part) in [
        ("normalizer", &file.normalizer),
        ("pre_tokenizer", &file.pre_tokenizer),
        ("post_processor", &file.post_processor),
        ("decoder", &file.decoder),
    ] {
        if let Some(part) = part {
            if !part.is_object() {
                return refuse(key, "expected null or an object with a `type`");
            }
            check_part(part, key).map_err(|(key, reason)| TokenizerError::Field {
                name: name.into(),
                key: brief(key),
                reason: brief(reason),
            })?;
        }
    }
    let byte_level = file.decoder.as_ref().is_some_and(|d| d["type"] == "ByteLevel");
    Ok(Found { byte_level })
}

/// Walks one part of the pipeline; a fault is (key, reason). Depth is bounded by the JSON reader.
fn check_part(part: &Value, key: &str) -> Result<(), (String, String)> {
    let fault = |sub: &str, reason: &str| Err((format!("{key}{sub}"), reason.to_string()));
    match part {
        Value::Array(items) => {
            if ["normalizers", "pretokenizers", "processors", "decoders"].iter().any(|k| key.ends_with(k))
                && !items.iter().all(Value::is_object)
            {
                return fault("", "expected a list of objects, each with a `type`");
            }
            for (i, item) in items.iter().enumerate() {
                check_part(item, &format!("{key}[{i}]"))?;
            }
        }
        Value::Object(map) => {
            if map.get("type").is_some_and(|t| t == "Precompiled") {
                return fault(
                    ".type",
                    "a Precompiled normalizer is not read; convert the tokenizer to one with \
                     named normalizers (NFKC, Replace), as newer files have",
                );
            }
            if map.get("type").is_some_and(|t| t == "Strip") && map.get("stop").is_some_and(|s| *s != 0) {
                return fault(".stop", "only 0 is read: strip from the end in a normalizer instead");
            }
            if map.get("type").is_some_and(|t| t == "BPEDecoder") {
                return fault(".type", "a BPEDecoder is not read; expected ByteLevel, Metaspace or a Sequence");
            }
            if map.get("type").is_some_and(|t| t == "FixedLength") && map.get("length").is_some_and(|l| *l == 0) {
                return fault(".length", "expected 1 or more");
            }
            for (sub, value) in map {
                match (sub.as_str(), value) {
                    ("String" | "Regex", Value::String(s)) if s.is_empty() => {
                        return fault(&format!(".{sub}"), "an empty pattern matches everywhere; expected a text");
                    }
                    ("content" | "prepend" | "replacement" | "suffix" | "prefix", Value::String(s))
                        if s.len() > MAX_PIECE_BYTES =>
                    {
                        return fault(&format!(".{sub}"), "expected at most 1024 bytes");
                    }
                    _ => check_part(value, &format!("{key}.{sub}"))?,
                }
            }
            if map.get("type").is_some_and(|t| t == "TemplateProcessing") {
                check_template(map).map_err(|reason| (key.to_string(), reason))?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Every special token that a template names must be among those it defines, by few ids.
fn check_template(map: &serde_json::Map<String, Value>) -> Result<(), String> {
    let empty = serde_json::Map::new();
    let defined = map.get("special_tokens").and_then(Value::as_object).unwrap_or(&empty);
    for (name, token) in defined {
        let ids = token.get("ids").and_then(Value::as_array).map_or(0, Vec::len);
        let tokens = token.get("tokens").and_then(Value::as_array).map_or(0, Vec::len);
        if ids != tokens || ids > 64 {
            return Err(format!(
                "special_tokens[{name:?}] has {ids} ids and {tokens} tokens; expected as many, at most 64"
            ));
        }
    }
    for side in ["single", "pair"] {
        let pieces = map.get(side).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if pieces.len() > 64 {
            return Err(format!("`{side}` has {} pieces, expected at most 64", pieces.len()));
        }
        for piece in pieces {
            if side == "single" && piece.pointer("/Sequence/id").is_some_and(|id| id != "A") {
                return Err("`single` has one sequence, \"A\"".into());
            }
            if let Some(id) = piece.pointer("/SpecialToken/id").and_then(Value::as_str)
                && !defined.contains_key(id)
            {
                return Err(format!("`{side}` names {id:?}, which `special_tokens` does not define"));
            }
        }
    }
    Ok(())
}

pub(super) fn check_id(id: u64, key: &str, name: &str) -> Result<(), TokenizerError> {
    if id < MAX_ID {
        return Ok(());
    }
    let reason = format!("id {id} is not below 2^24; expected the ids of one vocabulary");
    Err(TokenizerError::Field { name: name.into(), key: key.into(), reason })
}

/// The whole file, but never more than [`MAX_JSON_BYTES`] of it.
pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    let io = |source| TokenizerError::Io { path: path.to_path_buf(), source };
    let file = std::fs::File::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    file.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_JSON_BYTES {
        let name = path.display().to_string();
        let bytes = std::fs::metadata(path).map_err(io)?.len();
        return Err(TokenizerError::TooLarge { name, bytes, max: MAX_JSON_BYTES });
    }
    Ok(bytes)
}

/// Start and end marks of a tokenizer_config.json.
pub(super) struct Marks {
    pub eos: Option<String>,
    pub bos: Option<String>,
}

pub(super) fn marks(json: &[u8], path: &Path) -> Result<Marks, TokenizerError> {
    /// A name, or an object that spells the token out.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Mark {
        Name(String),
        Token { content: String },
    }
    #[derive(Deserialize)]
    struct Config {
        eos_token: Option<Mark>,
        bos_token: Option<Mark>,
    }
    let config: Config = serde_json::from_slice(json)
        .map_err(|e| TokenizerError::Parse { name: path.display().to_string(), reason: brief(e) })?;
    let text = |mark: Option<Mark>| {
        mark.map(|m| match m {
            Mark::Name(s) | Mark::Token { content: s } => s,
        })
    };
    Ok(Marks { eos: text(config.eos_token), bos: text(config.bos_token) })
}

/// Runs a call into the `tokenizers` crate; a panic in there becomes an error. The files are
/// other people's and the crate indexes by what they say, so this is the one place where a
/// panic is taken for a fault of the input. Nothing of ours is left half-changed: the calls
/// take `&self`, or build a value that is dropped.
pub(super) fn caught<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        brief(format!("the tokenizers crate gave up: {text}"))
    })
}
