//! A tokenizer.json from the tables of a GGUF file.
//!
//! *gpt2* is byte-level BPE: the tokens, the merges in order, and a name for how text is split into words before. *llama*
//! is SentencePiece's BPE with a score a token and bytes for what has none; a merge makes a token of two others, and of the
//! possible ones that with the best score goes first, so the merges in the order of their tokens' scores do the same.
//!
//! | name of the split | words |
//! | ----------------- | ----- |
//! | smollm            | each digit alone, then GPT-2's pattern |
//! | gpt-2, default    | GPT-2's pattern |
//! | llama-bpe         | Llama 3's pattern; a word that is a token is not merged |
//! | qwen2             | Qwen 2's pattern, after NFC |
//!
//! Types of tokens: 1 normal, 2 unknown, 3 control, 4 made by the user, 5 unused, 6 a byte. Control tokens and those of
//! users are found in the text before it is split.
//! Source: the names and types are those of llama.cpp (src/llama-vocab.cpp); the patterns those that the models' own
//! tokenizer.json hold; merges from scores as in transformers' conversion of SentencePiece models.

use super::file::{File, Value};
use crate::hf::HfError;
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;

/// Llama 3's words, with digits by up to three; Qwen 2 has them one by one.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Longest piece of a SentencePiece vocabulary that merges are looked for in.
const PIECE_MAX: usize = 256;

/// Types of tokens.
const UNKNOWN: f32 = 2.0;
const CONTROL: f32 = 3.0;
const USERS: f32 = 4.0;
const BYTE: f32 = 6.0;

/// The tables.
struct Tables<'a> {
    file: &'a File,
    tokens: &'a [String],
    types: &'a [f32],
    ids: HashMap<&'a str, u32>,
}

/// The text of a tokenizer.json; `None` where the file has no tokenizer.
pub(super) fn json(file: &File) -> Result<Option<String>, HfError> {
    let Some(tables) = Tables::new(file)? else { return Ok(None) };
    let all = match file.get("tokenizer.ggml.model") {
        Some(Value::Text(model)) if model == "gpt2" => tables.byte_level()?,
        Some(Value::Text(model)) if model == "llama" => tables.sentence_piece()?,
        other => {
            let other = other.map_or_else(|| "nothing".into(), Value::to_string);
            return Err(file.bad(format!("tokenizer.ggml.model = {other}: gpt2 and llama can be read")));
        }
    };
    Ok(Some(all.to_string()))
}

/// The text of a tokenizer_config.json.
pub(super) fn config_json(file: &File, context: usize) -> Result<String, HfError> {
    let mut all = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": false,
    });
    if let Some(tables) = Tables::new(file)? {
        for (mark, key) in
            [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
        {
            if let Some(id) = tables.mark(key)? {
                all[mark] = json!(tables.tokens[id]);
            }
        }
    }
    if let Some(Value::Text(template)) = file.get("tokenizer.chat_template") {
        all["chat_template"] = json!(template);
    }
    Ok(serde_json::to_string_pretty(&all).expect("gguf: json of plain values") + "\n")
}

impl<'a> Tables<'a> {
    fn new(file: &'a File) -> Result<Option<Tables<'a>>, HfError> {
        let tokens: &[String] = match file.get("tokenizer.ggml.tokens") {
            None => return Ok(None),
            Some(Value::Texts(tokens)) if !tokens.is_empty() => tokens,
            Some(other) => return Err(file.bad(format!("tokenizer.ggml.tokens = {other}: expected a list of texts"))),
        };
        let numbers =
            |key: &str| match file.get(key) {
                None => Ok(&[][..]),
                Some(Value::Numbers(all)) if all.len() == tokens.len() => Ok(&all[..]),
                Some(other) => Err(file
                    .bad(format!("{key} = {other}: expected a list of a number for each of {} tokens", tokens.len()))),
            };
        let types = numbers("tokenizer.ggml.token_type")?;
        let mut ids = HashMap::new();
        for (id, token) in (0u32..).zip(tokens) {
            if let Some(twice) = ids.insert(token.as_str(), id) {
                return Err(file.bad(format!("tokenizer.ggml.tokens: tokens {twice} and {id} are the same")));
            }
        }
        Ok(Some(Tables { file, tokens, types, ids }))
    }

    /// The id of a mark as bos or eos.
    fn mark(&self, name: &str) -> Result<Option<usize>, HfError> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match self.file.whole(&key)? {
            Some(id) if id >= self.tokens.len() as u64 => {
                Err(self.file.bad(format!("{key} = {id}, and there are {} tokens", self.tokens.len())))
            }
            id => Ok(id.map(|id| id as usize)),
        }
    }

    fn flag(&self, name: &str) -> Option<bool> {
        match self.file.get(&format!("tokenizer.ggml.{name}")) {
            Some(Value::Bool(flag)) => Some(*flag),
            _ => None,
        }
    }

    fn kind(&self, id: usize) -> f32 {
        self.types.get(id).copied().unwrap_or(1.0)
    }

    fn byte_level(&self) -> Result<Json, HfError> {
        let merges: &[String] = match self.file.get("tokenizer.ggml.merges") {
            Some(Value::Texts(merges)) => merges,
            _ => return Err(self.file.bad("tokenizer.ggml.merges: expected a list of texts".into())),
        };
        for (i, merge) in merges.iter().enumerate() {
            let known = |part: &str| self.ids.contains_key(part);
            let fits = merge.split_once(' ').is_some_and(|(a, b)| known(a) && known(b) && known(&format!("{a}{b}")));
            if !fits {
                return Err(self
                    .file
                    .bad(format!("tokenizer.ggml.merges: merge {i} does not make a token of two others")));
            }
        }
        let split = match self.file.get("tokenizer.ggml.pre") {
            None => "default",
            Some(Value::Text(split)) => split.as_str(),
            Some(other) => return Err(self.file.bad(format!("tokenizer.ggml.pre = {other}: expected a name"))),
        };
        let level = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let words = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let sequence = |first: Json, regex: bool| json!({"type": "Sequence", "pretokenizers": [first, level(regex)]});
        let (before, normalizer) = match split {
            "default" | "gpt-2" => (level(true), Json::Null),
            "smollm" => (sequence(json!({"type": "Digits", "individual_digits": true}), true), Json::Null),
            "llama-bpe" => (sequence(words(LLAMA3), false), Json::Null),
            "qwen2" => (sequence(words(QWEN2), false), json!({"type": "NFC"})),
            _ => {
                return Err(self.file.bad(format!(
                    "tokenizer.ggml.pre = {split:?}: default, gpt-2, smollm, llama-bpe and qwen2 can be read; take tokenizer.json from the model's Hugging Face folder"
                )));
            }
        };
        let model = json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": split == "llama-bpe",
            "vocab": self.vocabulary(),
            "merges": merges,
        });
        self.whole((normalizer, before, self.template(false)?, level(true)), model)
    }

    fn sentence_piece(&self) -> Result<Json, HfError> {
        let scores: &[f32] = match self.file.get("tokenizer.ggml.scores") {
            Some(Value::Numbers(scores)) if scores.len() == self.tokens.len() => scores,
            _ => return Err(self.file.bad("tokenizer.ggml.scores: expected a list of a number for each token".into())),
        };
        let space = self.flag("add_space_prefix").unwrap_or(true);
        let mut steps = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"})];
        let mut back = vec![
            json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if space {
            steps.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
            back.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = (0..self.tokens.len()).find(|&id| self.kind(id) == UNKNOWN).map(|id| &self.tokens[id]);
        let model = json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": self.vocabulary(),
            "merges": self.merges(scores),
        });
        let normalizer = json!({"type": "Sequence", "normalizers": steps});
        let decoder = json!({"type": "Sequence", "decoders": back});
        self.whole((normalizer, Json::Null, self.template(true)?, decoder), model)
    }

    /// Every way to make a token of two others, the best score first; of one token's in the order of their parts.
    fn merges(&self, scores: &[f32]) -> Vec<String> {
        let mut all: Vec<(f32, u32, u32, u32)> = Vec::new();
        let plain = |id: usize| ![UNKNOWN, CONTROL, BYTE].contains(&self.kind(id));
        for (id, token) in self.tokens.iter().enumerate().filter(|(id, t)| plain(*id) && t.len() <= PIECE_MAX) {
            for (at, _) in token.char_indices().skip(1) {
                let (a, b) = token.split_at(at);
                if let (Some(&a), Some(&b)) = (self.ids.get(a), self.ids.get(b))
                    && plain(a as usize)
                    && plain(b as usize)
                {
                    all.push((scores[id], id as u32, a, b));
                }
            }
        }
        all.sort_by(|x, y| y.0.total_cmp(&x.0).then((x.1, x.2, x.3).cmp(&(y.1, y.2, y.3))));
        let token = |id: u32| &self.tokens[id as usize];
        all.into_iter().map(|(_, _, a, b)| format!("{} {}", token(a), token(b))).collect()
    }

    fn vocabulary(&self) -> Map<String, Json> {
        (0u32..).zip(self.tokens).map(|(id, token)| (token.clone(), json!(id))).collect()
    }

    /// What puts the start mark in front of a text and the end mark behind, where the file says so.
    fn template(&self, start: bool) -> Result<Json, HfError> {
        let bos = self.mark("bos")?.filter(|_| self.flag("add_bos_token").unwrap_or(start));
        let eos = self.mark("eos")?.filter(|_| self.flag("add_eos_token").unwrap_or(false));
        if bos.is_none() && eos.is_none() {
            return Ok(Json::Null);
        }
        let token = |id: usize, text: u32| json!({"SpecialToken": {"id": self.tokens[id], "type_id": text}});
        let around = |name: &str, text: u32| {
            let first = bos.map(|id| token(id, text));
            let middle = Some(json!({"Sequence": {"id": name, "type_id": text}}));
            let last = eos.map(|id| token(id, text));
            [first, middle, last].into_iter().flatten().collect::<Vec<_>>()
        };
        let special: Map<String, Json> = [bos, eos]
            .into_iter()
            .flatten()
            .map(|id| {
                let token = &self.tokens[id];
                (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}))
            })
            .collect();
        let (single, pair) = (around("A", 0), [around("A", 0), around("B", 1)].concat());
        Ok(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}))
    }

    fn whole(
        &self,
        (normalizer, before, after, decoder): (Json, Json, Json, Json),
        model: Json,
    ) -> Result<Json, HfError> {
        let added: Vec<Json> = (0..self.tokens.len())
            .filter(|&id| [UNKNOWN, CONTROL, USERS].contains(&self.kind(id)) && !self.tokens[id].is_empty())
            .map(|id| {
                json!({
                    "id": id,
                    "content": self.tokens[id],
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": self.kind(id) != USERS,
                })
            })
            .collect();
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": before,
            "post_processor": after,
            "decoder": decoder,
            "model": model,
        }))
    }
}
