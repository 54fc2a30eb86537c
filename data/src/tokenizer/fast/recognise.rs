//! Is a tokenizer.json of a composition that the fast path knows?
//!
//! | normalizer | pre-tokenizer | symbols |
//! | --- | --- | --- |
//! | none, NFC | `ByteLevel` with its pattern | GPT-2, GPT-NeoX: bytes |
//! | none, NFC | `Digits(individual)`, `ByteLevel` with its pattern | SmolLM2: bytes |
//! | none, NFC | `Split` by GPT-2's or cl100k's pattern, `ByteLevel` without | Llama 3, Qwen, dolma2: bytes |
//! | none, NFC | `ByteLevel` without its pattern | bytes, text in one piece |
//! | `Replace` space by U+2581 | none, or `Split` at spaces, which are gone | Gemma: characters, else bytes |
//!
//! The model is a BPE without dropout, affixes or unknown tokens; a template, where there is one,
//! puts fixed ids around the text. Whatever differs in any key that could matter is not
//! recognised, and the `tokenizers` crate does the work. It has loaded the file before, so what it
//! refuses has been refused.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::{Value, json};
use tokenizers::{AddedToken, NormalizedString};

use super::added::Added;
use super::classes::{Classes, SPACE};
use super::merges::Merges;
use super::pairs::{BAR, Pairs};
use super::split::Pattern;
use super::table::Table;
use super::{Cut, Fast, Frame, NO_ID, Symbols, Whole};
use crate::tokenizer::byte_char;

#[derive(Deserialize)]
struct File {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: String,
    dropout: Option<f64>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// Old files write a merge as one text with a space, newer ones as two.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

/// Patterns that are known by their text.
const PATTERNS: [(&str, Pattern); 3] = [
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", Pattern::Gpt2 { digits: false }),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Pattern::Cl100k { digits: 3 },
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Pattern::Cl100k { digits: 1 },
    ),
];

/// The fast path for `json`, which `loaded` was made from; nothing where it is not recognised.
pub fn recognise(json: &[u8], loaded: &tokenizers::Tokenizer) -> Option<Fast> {
    let file: File = serde_json::from_slice(json).ok()?;
    let model = &file.model;
    let plain = |affix: &Option<String>| affix.as_deref().unwrap_or("").is_empty();
    let ids: HashSet<u32> = model.vocab.values().copied().collect();
    if model.kind != "BPE"
        || model.dropout.is_some_and(|p| p != 0.0)
        || !plain(&model.continuing_subword_prefix)
        || !plain(&model.end_of_word_suffix)
        || model.vocab.contains_key("")
        || ids.len() != model.vocab.len()
    {
        return None;
    }
    let bars = Some(json!({"type": "Replace", "pattern": {"String": " "}, "content": BAR.to_string()}));
    let merges = merges(model)?;
    let of_bars = file.normalizer == bars;
    let nfc = !of_bars && is_nfc(file.normalizer.as_ref())?;
    let (cut, symbols) = if of_bars {
        cut_at_spaces(file.pre_tokenizer.as_ref())?;
        characters(model)?
    } else {
        (Cut::Pattern(pattern(file.pre_tokenizer.as_ref()?)?), bytes(model)?)
    };
    let (raw, normal) = added(loaded, nfc)?;
    // What bars do to such a token's own text is not worth knowing.
    if of_bars && normal.is_some() {
        return None;
    }
    let whole = model.ignore_merges.then(|| Whole::new(&model.vocab));
    if of_bars && whole.is_some() {
        return None;
    }
    Some(Fast {
        raw,
        nfc,
        normal,
        cut,
        symbols,
        whole,
        merges: Merges::new(&merges),
        frame: frame(file.post_processor.as_ref())?,
        classes: Classes::get(),
        idle: Default::default(),
    })
}

/// Merges by rank as ids: left, right, product.
fn merges(model: &Model) -> Option<Vec<(u32, u32, u32)>> {
    let mut product = String::new();
    // A line with a version is no merge to the crate, and does not count.
    let counts = |m: &&Merge| !matches!(m, Merge::Text(t) if t.starts_with("#version"));
    model
        .merges
        .iter()
        .filter(counts)
        .map(|merge| {
            let (left, right) = halves(merge)?;
            product.clear();
            product.push_str(left);
            product.push_str(right);
            let id = |text: &str| model.vocab.get(text).copied();
            Some((id(left)?, id(right)?, id(&product)?))
        })
        .collect()
}

fn halves(merge: &Merge) -> Option<(&str, &str)> {
    match merge {
        Merge::Pair(left, right) => Some((left, right)),
        Merge::Text(text) => text.split_once(' ').filter(|(_, right)| !right.contains(' ')),
    }
}

/// Whether NFC is asked for; nothing where something else is.
fn is_nfc(normalizer: Option<&Value>) -> Option<bool> {
    match normalizer {
        None => Some(false),
        Some(n) if *n == json!({"type": "NFC"}) => Some(true),
        Some(n) if *n == json!({"type": "Sequence", "normalizers": [{"type": "NFC"}]}) => Some(true),
        Some(n) if *n == json!({"type": "Sequence", "normalizers": []}) => Some(false),
        Some(_) => None,
    }
}

/// The pattern that a pre-tokenizer of bytes amounts to.
fn pattern(pre: &Value) -> Option<Pattern> {
    if let Some(own) = byte_level(pre) {
        return Some(if own { Pattern::Gpt2 { digits: false } } else { Pattern::Whole });
    }
    if pre["type"] != "Sequence" {
        return None;
    }
    match pre["pretokenizers"].as_array()?.as_slice() {
        [only] => byte_level(only).map(|own| if own { Pattern::Gpt2 { digits: false } } else { Pattern::Whole }),
        [first, last] if *first == json!({"type": "Digits", "individual_digits": true}) => {
            byte_level(last)?.then_some(Pattern::Gpt2 { digits: true })
        }
        [first, last] if first["type"] == "Split" => {
            // The patterns leave nothing out, so it is one whether what lies between matches is
            // cut off or taken away.
            let kept = first["behavior"] == "Isolated" && first["invert"] == false;
            let taken = first["behavior"] == "Removed" && first["invert"] == true;
            let text = first["pattern"]["Regex"].as_str()?;
            let known = PATTERNS.iter().find(|(pattern, _)| *pattern == text);
            known.filter(|_| (kept || taken) && byte_level(last) == Some(false)).map(|(_, pattern)| *pattern)
        }
        _ => None,
    }
}

/// Whether a `ByteLevel` uses its own pattern; nothing where it is none, or adds a space.
fn byte_level(pre: &Value) -> Option<bool> {
    let plain = pre["type"] == "ByteLevel" && pre["add_prefix_space"] == false;
    plain.then(|| pre.get("use_regex").is_none_or(|own| *own == true))
}

/// Behind the normalizer there are no spaces left to split at.
fn cut_at_spaces(pre: Option<&Value>) -> Option<()> {
    let Some(pre) = pre else { return Some(()) };
    (pre["type"] == "Split" && pre["pattern"] == json!({"String": " "}) && pre["invert"] == false).then_some(())
}

/// Bytes as symbols. One that has no id is dropped, unless an unknown token takes its place.
fn bytes(model: &Model) -> Option<Symbols> {
    let ids: [u32; 256] = std::array::from_fn(|b| {
        let c = byte_char(b as u8).encode_utf8(&mut [0; 4]).to_string();
        model.vocab.get(c.as_str()).copied().unwrap_or(NO_ID)
    });
    let whole = !ids.contains(&NO_ID);
    (whole || (model.unk_token.is_none() && !model.byte_fallback)).then(|| Symbols::Bytes(Box::new(ids)))
}

/// Characters as symbols, and where texts of them may be cut.
fn characters(model: &Model) -> Option<(Cut, Symbols)> {
    let mut fallback = Box::new([0; 256]);
    for (b, id) in fallback.iter_mut().enumerate() {
        *id = *model.vocab.get(format!("<{b:#04X}>").as_str())?;
    }
    if !model.byte_fallback {
        return None;
    }
    let one = |text: &str| text.chars().next().filter(|c| c.len_utf8() == text.len());
    let singles: Vec<_> = model.vocab.iter().filter_map(|(text, &id)| Some((one(text)?, id))).collect();
    let mut known = Table::with_room(singles.len());
    for (c, id) in singles {
        known.insert(c.into(), id.into());
    }
    let mut products = HashSet::new();
    for merge in &model.merges {
        let (left, right) = halves(merge)?;
        // A byte's name is longer than the byte; merges of bytes would not be seen in pairs.
        let byte = |half| model.vocab.get(half).is_some_and(|id| fallback.contains(id));
        if byte(left) || byte(right) {
            return None;
        }
        products.insert([left, right].concat());
    }
    let pairs = Pairs::new(products.iter().map(String::as_str));
    Some((Cut::Pairs(pairs), Symbols::Characters { known, fallback }))
}

/// Added tokens that are found before and behind the normalizer.
fn added(loaded: &tokenizers::Tokenizer, nfc: bool) -> Option<(Option<Added>, Option<Added>)> {
    let tokens = loaded.get_added_tokens_decoder();
    let space = |c: Option<char>| c.is_some_and(|c| Classes::get().of(c.into()) == SPACE);
    let strips = tokens.values().any(|t| t.lstrip || t.rstrip);
    let blank = |t: &AddedToken| space(t.content.chars().next()) || space(t.content.chars().next_back());
    // Stripped space that is a token of its own: the crate's answer hangs on the order of things.
    if strips && tokens.values().any(blank) {
        return None;
    }
    let (mut raw, mut normal) = (Vec::new(), Vec::new());
    for (&id, token) in &tokens {
        if !token.normalized {
            raw.push((token.content.clone(), id, token.clone()));
            continue;
        }
        let mut text = NormalizedString::from(token.content.as_str());
        if nfc {
            text.nfc();
        }
        normal.push((text.get().to_string(), id, token.clone()));
    }
    Some((Added::new(&raw), Added::new(&normal)))
}

/// The ids that a post-processor puts around a text.
fn frame(post: Option<&Value>) -> Option<Frame> {
    let Some(post) = post else { return Some(Frame::default()) };
    match post["type"].as_str()? {
        "ByteLevel" => Some(Frame::default()),
        "TemplateProcessing" => template(post),
        "Sequence" => {
            let parts = post["processors"].as_array()?;
            let mut frames = parts.iter().filter(|p| p["type"] != "ByteLevel").map(|p| frame(Some(p)));
            let only = frames.next().unwrap_or(Some(Frame::default()));
            only.filter(|_| frames.next().is_none())
        }
        _ => None,
    }
}

fn template(post: &Value) -> Option<Frame> {
    let mut frame = Frame::default();
    let mut seen = false;
    for piece in post["single"].as_array()? {
        if piece.pointer("/Sequence/id").is_some_and(|id| id == "A") {
            if std::mem::replace(&mut seen, true) {
                return None;
            }
            continue;
        }
        let name = piece.pointer("/SpecialToken/id")?.as_str()?;
        let side = if seen { &mut frame.after } else { &mut frame.before };
        for id in post["special_tokens"].get(name)?["ids"].as_array()? {
            side.push(u32::try_from(id.as_u64()?).ok()?);
        }
    }
    seen.then_some(frame)
}
