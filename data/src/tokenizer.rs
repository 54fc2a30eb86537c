//! Text to ids and back: built-in bytes, or any Hugging Face tokenizer.json.
//!
//! *Bytes* has 257 ids: 0..=255 are the bytes of UTF-8, 256 ends a document. It is also a
//! tokenizer.json ([`Tokenizer::json`]): byte-level BPE without merges, so that a model trained
//! on bytes loads elsewhere.
//!
//! A file is read by the `tokenizers` crate. Byte-level BPE of the common kinds and Gemma's are then
//! encoded by code of our own (`tokenizer/fast.rs`) with the same ids; all else by the crate. Before
//! that the file is looked at: size, ids, the
//! parts that panic, take memory without bound or draw at random in that crate are refused or
//! switched off (`tokenizer/inspect.rs` says which). Truncation and padding are switched off always: a corpus is
//! neither cut nor filled.
//!
//! [`Tokenizer::train_bpe`] learns a byte-level BPE (Sennrich, Haddow & Birch 2016; the split
//! into words is GPT-2's pattern) as that crate does: pairs by count, ties by id, so the file is
//! the same bytes on any number of threads.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, NormalizerWrapper, TokenizerImpl};

use crate::brief;

mod fast;
mod inspect;
mod stream;

pub use inspect::MAX_JSON_BYTES;
pub use stream::TextStream;

use inspect::{caught, inspect};

/// What ends a document in *Bytes* and in what [`Tokenizer::train_bpe`] makes.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// The id of [`END_OF_TEXT`] in *Bytes*.
pub const BYTES_EOS: u32 = 256;

/// Why a tokenizer could not be read, made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    #[error("{path}: cannot read: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{name}: {bytes} bytes, more than the {max} a tokenizer.json may have")]
    TooLarge { name: String, bytes: u64, max: u64 },
    #[error("{name}: no tokenizer.json this build can read: {reason}")]
    Parse { name: String, reason: String },
    #[error("{name}: key `{key}`: {reason}")]
    Field { name: String, key: String, reason: String },
    #[error("{name}: token {token:?} is not in the vocabulary; give one that is")]
    NoSuchToken { name: String, token: String },
    #[error("{name}: cannot {action}: {reason}")]
    Use { name: String, action: &'static str, reason: String },
    #[error("{name}: id {id} is not in the vocabulary of {vocab_size}")]
    Id { name: String, id: u32, vocab_size: u32 },
    #[error(
        "a vocabulary of {got} is too small to train: 256 bytes and {END_OF_TEXT} make 257; ask for {min} or more and at most {max}"
    )]
    VocabSize { got: u32, min: u32, max: u32 },
}

/// What a text's special tokens are to an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// Spelt out in the text, they are those tokens.
    Tokens,
    /// The same, and the tokenizer's own template stands around the text.
    Prompt,
    /// What spells one is text like any other: a document of a corpus cannot end itself.
    Document,
}

/// A tokenizer of either kind. Cheap to share by reference between threads.
#[derive(Debug, Clone)]
pub enum Tokenizer {
    /// Ids are bytes, and 256 ends a document.
    Bytes,
    /// A tokenizer.json.
    Json(Box<Json>),
}

/// A tokenizer.json, loaded. Made by [`Tokenizer::from_json`] and friends.
#[derive(Debug, Clone)]
pub struct Json {
    name: String,
    inner: tokenizers::Tokenizer,
    json: Vec<u8>,
    hash: [u8; 32],
    vocab_size: u32,
    eos: Option<u32>,
    bos: Option<u32>,
    /// Bytes of text behind each id where the decoder is byte-level; special tokens 0.
    piece_bytes: Option<Vec<u32>>,
    /// Our own encoder, where the file is of a kind it knows.
    fast: Option<Arc<fast::Fast>>,
    /// `inner`, for which special tokens are text; made when it is first needed.
    ordinary: OnceLock<Box<tokenizers::Tokenizer>>,
}

impl Tokenizer {
    /// The built-in bytes.
    pub fn bytes() -> Tokenizer {
        Tokenizer::Bytes
    }

    /// Reads `path`, a tokenizer.json or a folder that holds one. The end and start marks come
    /// from a tokenizer_config.json beside it, else from the names that models give them.
    pub fn from_file(path: &Path) -> Result<Tokenizer, TokenizerError> {
        let path = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
        let name = path.display().to_string();
        let json = inspect::read_bounded(&path)?;
        let mut tokenizer = Tokenizer::from_json(&json, &name)?;
        let config = path.with_file_name("tokenizer_config.json");
        if let Tokenizer::Json(t) = &mut tokenizer
            && config.is_file()
        {
            let marks = inspect::marks(&inspect::read_bounded(&config)?, &config)?;
            for (mark, slot) in [(marks.eos, &mut t.eos), (marks.bos, &mut t.bos)] {
                if let Some(token) = mark {
                    let id = t.inner.token_to_id(&token);
                    let name = config.display().to_string();
                    *slot = Some(id.ok_or(TokenizerError::NoSuchToken { name, token })?);
                }
            }
        }
        Ok(tokenizer)
    }

    /// Reads the bytes of a tokenizer.json; `name` is what errors call it.
    pub fn from_json(json: &[u8], name: &str) -> Result<Tokenizer, TokenizerError> {
        if json == bytes_json() {
            return Ok(Tokenizer::Bytes);
        }
        let found = inspect(json, name)?;
        let parse = |reason| TokenizerError::Parse { name: name.into(), reason };
        let text = std::str::from_utf8(json).map_err(|e| parse(e.to_string()))?;
        // Not `from_bytes`, whose whole reader would be compiled anew in this crate.
        let mut inner: tokenizers::Tokenizer = caught(|| text.parse()).map_err(parse)?.map_err(|e| parse(brief(e)))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| parse(brief(e)))?;

        let vocab = inner.get_vocab(true);
        let largest = vocab.values().copied().max();
        let largest = largest.ok_or_else(|| parse("the vocabulary is empty".into()))?;
        inspect::check_id(largest.into(), "model.vocab", name)?;
        let vocab_size = largest + 1;
        let known = |names: &[&str]| names.iter().find_map(|n| inner.token_to_id(n));
        let eos = known(&[END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>"]);
        let bos = known(&["<s>", "<|begin_of_text|>", "<bos>"]);
        let piece_bytes = found.byte_level.then(|| {
            let special = inner.get_added_tokens_decoder();
            let mut bytes = vec![0; vocab_size as usize];
            for (token, &id) in &vocab {
                // A byte-level token spells each byte as one character; an added one is plain.
                bytes[id as usize] = match special.get(&id) {
                    Some(t) if t.special => 0,
                    Some(_) => token.len() as u32,
                    None => token.chars().count() as u32,
                };
            }
            bytes
        });
        let fast = fast::recognise(json, &inner);
        let fast = fast.filter(|f| f.largest_framed().is_none_or(|id| id < vocab_size)).map(Arc::new);
        Ok(Tokenizer::Json(Box::new(Json {
            name: name.into(),
            inner,
            json: json.to_vec(),
            hash: *blake3::hash(json).as_bytes(),
            vocab_size,
            eos,
            bos,
            piece_bytes,
            fast,
            ordinary: OnceLock::new(),
        })))
    }

    /// Learns a byte-level BPE of `vocab_size` ids from `texts`: id 0 is [`END_OF_TEXT`], then
    /// the 256 bytes, then merges of pairs seen twice or more. A small corpus may yield fewer
    /// ids than asked for: [`Tokenizer::vocab_size`] tells.
    pub fn train_bpe<S: Into<String>>(
        texts: impl Iterator<Item = S> + Send,
        vocab_size: u32,
    ) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::learn(&mut texts.map(S::into), vocab_size)
    }

    /// [`Tokenizer::train_bpe`], compiled here once, as fast as this crate is, whoever calls it.
    fn learn(texts: &mut (dyn Iterator<Item = String> + Send), vocab_size: u32) -> Result<Tokenizer, TokenizerError> {
        const NAME: &str = "trained BPE";
        let (min, max) = (257, 1 << 20);
        if !(min <= vocab_size && vocab_size <= max) {
            return Err(TokenizerError::VocabSize { got: vocab_size, min, max });
        }
        let fault = |e: tokenizers::Error| TokenizerError::Use { name: NAME.into(), action: "train", reason: brief(e) };
        let mut trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocab_size as usize)
            .min_frequency(2)
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let level = ByteLevel::new(false, true, true);
        let mut model = Trainee::new(BPE::default());
        model.with_pre_tokenizer(Some(level)).with_decoder(Some(level));
        model.train(&mut trainer, texts).map_err(fault)?;
        let json = model.to_string(true).map_err(fault)?;
        Tokenizer::from_json(json.as_bytes(), NAME)
    }

    /// The same tokenizer with another end mark.
    pub fn with_eos(self, token: &str) -> Result<Tokenizer, TokenizerError> {
        let missing = |name: &str| TokenizerError::NoSuchToken { name: name.into(), token: token.into() };
        match self {
            Tokenizer::Bytes if token == END_OF_TEXT => Ok(Tokenizer::Bytes),
            Tokenizer::Bytes => Err(missing("bytes")),
            Tokenizer::Json(mut t) => {
                t.eos = Some(t.inner.token_to_id(token).ok_or_else(|| missing(&t.name))?);
                Ok(Tokenizer::Json(t))
            }
        }
    }

    /// Ids of `text`, nothing added. In *Bytes* the text is bytes alone; in a file, special
    /// tokens spelt out in the text are recognised as that tokenizer recognises them.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// Adds the ids of `text` to `ids`, as [`Tokenizer::encode`] gives them. Nothing is allocated a
    /// document where the file is of a kind that this crate encodes by itself; many threads may
    /// call at once, each with a cache of at most 13 MB. On an error `ids` is as it was.
    pub fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        match self {
            Tokenizer::Bytes => ids.extend(text.bytes().map(u32::from)),
            Tokenizer::Json(t) => t.encode(text, Reading::Tokens, ids)?,
        }
        Ok(())
    }

    /// Adds the ids of a corpus's document to `ids`: as [`Tokenizer::encode_into`], save that special
    /// tokens spelt out in it are text, as OLMo's dolma and tiktoken's `encode_ordinary` have it.
    pub fn encode_document(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        match self {
            Tokenizer::Bytes => self.encode_into(text, ids),
            Tokenizer::Json(t) => t.encode(text, Reading::Document, ids),
        }
    }

    /// Ids of `text` with what the tokenizer's own template puts around it: the start mark of a
    /// Llama, nothing in GPT-2. This is how evaluation and generation feed a model.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match self {
            Tokenizer::Bytes => self.encode(text),
            Tokenizer::Json(t) => {
                let mut ids = Vec::new();
                t.encode(text, Reading::Prompt, &mut ids)?;
                Ok(ids)
            }
        }
    }

    /// Ids of `text` from the `tokenizers` crate, whatever the kind of file: the oracle that
    /// [`Tokenizer::encode`], [`Tokenizer::encode_prompt`] and [`Tokenizer::encode_document`] are held
    /// against. Slow.
    pub fn encode_by_crate(&self, text: &str, reading: Reading) -> Result<Vec<u32>, TokenizerError> {
        match self {
            Tokenizer::Bytes => self.encode(text),
            Tokenizer::Json(t) => t.encode_by_crate(text, reading),
        }
    }

    /// Whether [`Tokenizer::encode`] does without the `tokenizers` crate.
    pub fn is_fast(&self) -> bool {
        match self {
            Tokenizer::Bytes => true,
            Tokenizer::Json(t) => t.fast.is_some(),
        }
    }

    /// Text of `ids`. Bytes that are no UTF-8 (a character cut in two) become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let vocab_size = self.vocab_size();
        if let Some(&id) = ids.iter().find(|&&id| id >= vocab_size) {
            return Err(TokenizerError::Id { name: self.name().into(), id, vocab_size });
        }
        match self {
            Tokenizer::Bytes => {
                let mut bytes = Vec::with_capacity(ids.len());
                for &id in ids {
                    match u8::try_from(id) {
                        Ok(b) => bytes.push(b),
                        Err(_) if skip_special => {}
                        Err(_) => bytes.extend_from_slice(END_OF_TEXT.as_bytes()),
                    }
                }
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Tokenizer::Json(t) => t.decode(ids, skip_special),
        }
    }

    /// Decodes ids as they come, for a terminal: see [`TextStream`].
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }

    /// The largest id and one: rows that an embedding must have.
    pub fn vocab_size(&self) -> u32 {
        match self {
            Tokenizer::Bytes => 257,
            Tokenizer::Json(t) => t.vocab_size,
        }
    }

    /// The id that ends a document.
    pub fn eos(&self) -> Option<u32> {
        match self {
            Tokenizer::Bytes => Some(BYTES_EOS),
            Tokenizer::Json(t) => t.eos,
        }
    }

    /// The id that starts a prompt, where the tokenizer has one.
    pub fn bos(&self) -> Option<u32> {
        match self {
            Tokenizer::Bytes => None,
            Tokenizer::Json(t) => t.bos,
        }
    }

    /// blake3 of [`Tokenizer::json`]: shards and checkpoints carry it.
    pub fn hash(&self) -> [u8; 32] {
        match self {
            Tokenizer::Bytes => *blake3::hash(bytes_json()).as_bytes(),
            Tokenizer::Json(t) => t.hash,
        }
    }

    /// The tokenizer.json, as read or made.
    pub fn json(&self) -> &[u8] {
        match self {
            Tokenizer::Bytes => bytes_json(),
            Tokenizer::Json(t) => &t.json,
        }
    }

    /// UTF-8 bytes of text that `ids` stand for, special tokens counting nothing. Exact for
    /// bytes and byte-level BPE, also where ids cut a character; else the length of the decoded
    /// text.
    pub fn bytes_of(&self, ids: &[u32]) -> Result<u64, TokenizerError> {
        let vocab_size = self.vocab_size();
        let name = self.name();
        let bad = |id| TokenizerError::Id { name: name.into(), id, vocab_size };
        match self {
            Tokenizer::Bytes => match ids.iter().find(|&&id| id > BYTES_EOS) {
                Some(&id) => Err(bad(id)),
                None => Ok(ids.iter().filter(|&&id| id < 256).count() as u64),
            },
            Tokenizer::Json(t) => match &t.piece_bytes {
                Some(table) => ids.iter().try_fold(0, |sum, &id| {
                    let bytes = table.get(id as usize).ok_or_else(|| bad(id))?;
                    Ok(sum + u64::from(*bytes))
                }),
                None => Ok(self.decode(ids, true)?.len() as u64),
            },
        }
    }

    /// What errors call this tokenizer.
    pub fn name(&self) -> &str {
        match self {
            Tokenizer::Bytes => "bytes",
            Tokenizer::Json(t) => &t.name,
        }
    }
}

impl Json {
    fn encode(&self, text: &str, reading: Reading, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let before = ids.len();
        if !self.fast.as_ref().is_some_and(|fast| fast.encode(text, reading, ids)) {
            ids.truncate(before);
            ids.extend(self.encode_by_crate(text, reading)?);
        }
        Ok(())
    }

    fn encode_by_crate(&self, text: &str, reading: Reading) -> Result<Vec<u32>, TokenizerError> {
        let fault = |reason| TokenizerError::Use { name: self.name.clone(), action: "encode", reason };
        let tokenizer = match reading {
            Reading::Tokens | Reading::Prompt => &self.inner,
            Reading::Document => self.ordinary.get_or_init(|| {
                let mut tokenizer = self.inner.clone();
                tokenizer.set_encode_special_tokens(true);
                Box::new(tokenizer)
            }),
        };
        let encoding = caught(|| tokenizer.encode_fast(text, reading == Reading::Prompt))
            .map_err(fault)?
            .map_err(|e| fault(brief(e)))?;
        let ids = encoding.get_ids();
        if let Some(&id) = ids.iter().find(|&&id| id >= self.vocab_size) {
            // A template may name an id of its own.
            let (name, vocab_size) = (self.name.clone(), self.vocab_size);
            return Err(TokenizerError::Id { name, id, vocab_size });
        }
        Ok(ids.to_vec())
    }

    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        let fault = |reason| TokenizerError::Use { name: self.name.clone(), action: "decode", reason };
        caught(|| self.inner.decode(ids, skip_special)).map_err(fault)?.map_err(|e| fault(brief(e)))
    }
}

/// Byte-level BPE before it is learnt: no normalizer, no template.
type Trainee = TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>;

/// The tokenizer.json of *Bytes*: GPT-2's characters for bytes, each with the byte as its id.
fn bytes_json() -> &'static [u8] {
    static JSON: OnceLock<Vec<u8>> = OnceLock::new();
    JSON.get_or_init(|| {
        let vocab: serde_json::Map<String, serde_json::Value> =
            (0..=255u8).map(|b| (byte_char(b).to_string(), b.into())).collect();
        let level = |extra: serde_json::Value| {
            serde_json::json!({
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": extra
            })
        };
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [{
                "id": BYTES_EOS, "content": END_OF_TEXT, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true
            }],
            "normalizer": null, "pre_tokenizer": level(false.into()), "post_processor": null,
            "decoder": level(true.into()),
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null,
                "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": []
            }
        });
        serde_json::to_vec(&json).expect("plain values")
    })
}

/// GPT-2's visible stand-in for a byte: itself where Latin-1 prints it, else the next free
/// character from U+0100 on.
fn byte_char(b: u8) -> char {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if plain(b) {
        return b.into();
    }
    let before = (0..b).filter(|&x| !plain(x)).count() as u32;
    char::from_u32(0x100 + before).expect("below U+0200")
}
