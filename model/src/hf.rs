//! A model as a folder in Hugging Face's layout, in and out.
//!
//! `config.json` says the shape (see [`Card`]), `model.safetensors` holds the weights, or
//! `model.safetensors.index.json` names the files that do. Loading takes every tensor of the network exactly once and
//! leaves none over; what does not fit is named with its file before anything is read. Projections of queries and keys
//! are in the half-split order of rotation, as transformers has them.

pub use crate::card::Card;
use crate::{
    card::read_object,
    config::ConfigError,
    safetensors::{self, Entry, NAME_BYTES_MAX, Reader, replace},
    weights::Weights,
};
use esker_kernels::tensor::{DType, Tensor};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::{Path, PathBuf},
};

/// A folder or a file that cannot be read as a model, or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HfError {
    /// The file system said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// "read" or "write".
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A folder without weights that can be read.
    #[error(
        "{} holds neither model.safetensors nor model.safetensors.index.json; save the model with safe_serialization=True, or name the folder that holds them",
        dir.display()
    )]
    NoWeights {
        /// The folder.
        dir: PathBuf,
    },
    /// A file that is not what its name says.
    #[error("{}: {why}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A value of `config.json` that cannot be.
    #[error("{}: {key} = {got}: expected {want}", file.display())]
    Key {
        /// The file.
        file: PathBuf,
        /// Key.
        key: &'static str,
        /// What it says.
        got: String,
        /// What it may say.
        want: String,
    },
    /// A network that differs from those built here.
    #[error("{}: {key} asks for {what}, which is not built; the llama and qwen3 families without it are", file.display())]
    Unsupported {
        /// The file.
        file: PathBuf,
        /// Key.
        key: &'static str,
        /// What it asks for.
        what: &'static str,
    },
    /// Numbers of `config.json` that make no network.
    #[error("{}: {source} (keys as in a run's file)", file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// Which number.
        source: ConfigError,
    },
    /// One name twice.
    #[error("{}: tensor {tensor} is there twice", file.display())]
    Duplicate {
        /// The file of the second one.
        file: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// Tensors of the network that no file has.
    #[error("{}: {} missing: {}; is config.json of the same model?", path.display(), count(names.len()), few(names))]
    Missing {
        /// File or folder.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// Tensors that the network has no place for.
    #[error("{}: {} without a place in the network: {}; is config.json of the same model?", path.display(), count(names.len()), few(names))]
    Unknown {
        /// File or folder.
        path: PathBuf,
        /// Their names.
        names: Vec<String>,
    },
    /// A tensor of another shape than config.json gives it.
    #[error("{}: tensor {tensor} has shape {got}, config.json makes it {want}", file.display())]
    Shape {
        /// The file.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// In the file.
        got: String,
        /// In the network.
        want: String,
    },
    /// A tensor whose numbers cannot be read.
    #[error("{}: tensor {tensor} holds {got}; expected {want}: convert it first", file.display())]
    Dtype {
        /// The file.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// In the file.
        got: String,
        /// What can be read.
        want: &'static str,
    },
    /// A head beside a tied embedding that is not the embedding.
    #[error(
        "{}: lm_head.weight differs from the embedding although config.json says tie_word_embeddings = true; set it to false, or drop the tensor",
        file.display()
    )]
    UntiedHead {
        /// The file of the head.
        file: PathBuf,
    },
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Name in its folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// What `config.json` and `generation_config.json` say; the config is checked.
pub fn read_card(dir: &Path) -> Result<Card, HfError> {
    Card::read(dir)
}

/// Reads the weights of the folder `dir` into `w`, converted to its dtypes.
pub fn load(dir: &Path, w: &mut Weights) -> Result<(), HfError> {
    let whole = dir.join("model.safetensors");
    if whole.exists() {
        return load_file(&whole, w);
    }
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        return Err(HfError::NoWeights { dir: dir.into() });
    }
    fill(&index, open_index(dir, &index)?, w)
}

/// Reads one safetensors file with the names of a model's weights into `w`: weights, gradients, moments.
pub fn load_file(file: &Path, w: &mut Weights) -> Result<(), HfError> {
    fill(file, vec![Reader::open(file)?], w)
}

/// Writes the folder `dir`, made when missing: the card in both spellings of config.json, and the weights as `dtype` (f32
/// or bf16). Each file is written aside, synced and renamed. Returns what was written.
pub fn save(dir: &Path, card: &Card, w: &Weights, dtype: DType) -> Result<Vec<Saved>, HfError> {
    assert_ne!(dtype, DType::U32, "hf: weights as u32");
    fs::create_dir_all(dir).map_err(|source| HfError::Io { path: dir.into(), action: "write", source })?;
    let name = "model.safetensors";
    let bytes = safetensors::write(&dir.join(name), w.each(), Some(dtype), &[("format", "pt")])?;
    let mut saved = vec![Saved { name: name.into(), bytes }];
    for (name, text) in [("config.json", card.config_json(dtype)), ("generation_config.json", card.generation_json())] {
        replace(&dir.join(name), |file| file.write_all(text.as_bytes()))?;
        saved.push(Saved { name: name.into(), bytes: text.len() as u64 });
    }
    Ok(saved)
}

/// Writes any tensors to a safetensors file, aside, synced and renamed; floats as `dtype` when one is given. Returns its
/// size in bytes.
pub fn save_file(
    file: &Path,
    tensors: &[(String, &Tensor)],
    dtype: Option<DType>,
    metadata: &[(&str, &str)],
) -> Result<u64, HfError> {
    safetensors::write(file, tensors.iter().map(|(name, t)| (name, *t)), dtype, metadata)
}

/// Reads a safetensors file into `tensors`: exactly those, each of its shape. Returns the file's metadata.
pub fn load_tensors(file: &Path, tensors: &mut [(String, &mut Tensor)]) -> Result<Vec<(String, String)>, HfError> {
    let mut reader = Reader::open(file)?;
    let metadata = std::mem::take(&mut reader.metadata);
    take(file, vec![reader], tensors.iter_mut().map(|(name, t)| (name.clone(), &mut **t)).collect())?;
    Ok(metadata)
}

/// The metadata of a safetensors file, of which only the header is read.
pub fn read_metadata(file: &Path) -> Result<Vec<(String, String)>, HfError> {
    Ok(Reader::open(file)?.metadata)
}

/// What a file's index says is where.
fn open_index(dir: &Path, index: &Path) -> Result<Vec<Reader>, HfError> {
    let bad = |why: String| HfError::Format { file: index.into(), why };
    let object = read_object(index)?;
    let Some(serde_json::Value::Object(map)) = object.get("weight_map") else {
        return Err(bad("expected an object \"weight_map\"".into()));
    };
    let mut files: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, file) in map {
        if tensor.len() > NAME_BYTES_MAX || file.as_str().is_some_and(|f| f.len() > NAME_BYTES_MAX) {
            return Err(bad(format!("a name in weight_map is longer than {NAME_BYTES_MAX} bytes")));
        }
        let file = file.as_str().ok_or_else(|| bad(format!("weight_map[{tensor:?}] is not a file name")))?;
        // A name that leaves the folder is not followed.
        let plain = Path::new(file).file_name().and_then(|n| n.to_str()) == Some(file);
        if !plain || file.contains(char::is_control) {
            return Err(bad(format!("weight_map[{tensor:?}] = {file:?} is not the name of a file in this folder")));
        }
        files.entry(file).or_default().insert(tensor);
    }
    let mut readers = Vec::new();
    for (file, tensors) in files {
        let reader = Reader::open(&dir.join(file))?;
        let held: BTreeSet<&str> = reader.entries.iter().map(|e| e.name.as_str()).collect();
        let lost = |a: &BTreeSet<&str>, b: &BTreeSet<&str>| -> Vec<String> {
            a.difference(b).map(|n| n.to_string()).collect()
        };
        let (missing, unknown) = (lost(&tensors, &held), lost(&held, &tensors));
        if !missing.is_empty() {
            return Err(HfError::Missing { path: reader.path().into(), names: missing });
        }
        if !unknown.is_empty() {
            return Err(HfError::Unknown { path: reader.path().into(), names: unknown });
        }
        readers.push(reader);
    }
    Ok(readers)
}

/// Reads all of `w` from `readers`; a tied head that is there too must be the embedding.
fn fill(path: &Path, mut readers: Vec<Reader>, w: &mut Weights) -> Result<(), HfError> {
    if w.head.is_none() {
        drop_tied_head(&mut readers)?;
    }
    take(path, readers, w.each_mut().map(|(name, t)| (name.to_string(), t)).collect())
}

/// Matches names, then shapes and dtypes, then reads.
fn take(path: &Path, mut readers: Vec<Reader>, wanted: Vec<(String, &mut Tensor)>) -> Result<(), HfError> {
    let mut held: BTreeMap<String, (usize, Entry)> = BTreeMap::new();
    for (i, reader) in readers.iter_mut().enumerate() {
        for e in std::mem::take(&mut reader.entries) {
            // Tables of wavelengths that old files carry; they follow from config.json.
            if e.name.ends_with("rotary_emb.inv_freq") {
                continue;
            }
            let name = e.name.clone();
            if let Some((_, twice)) = held.insert(name, (i, e)) {
                return Err(HfError::Duplicate { file: reader.path().into(), tensor: twice.name });
            }
        }
    }
    let missing: Vec<String> = wanted.iter().filter(|(n, _)| !held.contains_key(n)).map(|(n, _)| n.clone()).collect();
    if !missing.is_empty() {
        return Err(HfError::Missing { path: path.into(), names: missing });
    }
    let mut plan = Vec::with_capacity(wanted.len());
    for (name, t) in wanted {
        let (i, e) = held.remove(&name).expect("hf: a name twice in one network");
        readers[i].fits(&e, t)?;
        plan.push((i, e, t));
    }
    if !held.is_empty() {
        return Err(HfError::Unknown { path: path.into(), names: held.into_keys().collect() });
    }
    plan.into_iter().try_for_each(|(i, e, t)| readers[i].read(&e, t))
}

fn drop_tied_head(readers: &mut [Reader]) -> Result<(), HfError> {
    let find = |readers: &[Reader], name: &str| {
        let place = |r: &Reader| r.entries.iter().position(|e| e.name == name);
        readers.iter().enumerate().find_map(|(i, r)| place(r).map(|j| (i, j)))
    };
    let Some((i, j)) = find(readers, "lm_head.weight") else { return Ok(()) };
    let Some((k, l)) = find(readers, "model.embed_tokens.weight") else { return Ok(()) };
    let (head, embed) = (readers[i].entries[j].clone(), readers[k].entries[l].clone());
    let mut other = readers[k].again()?;
    if !readers[i].same(&head, &mut other, &embed)? {
        return Err(HfError::UntiedHead { file: readers[i].path().into() });
    }
    readers[i].entries.remove(j);
    Ok(())
}

fn count(n: usize) -> String {
    if n == 1 { "1 tensor".into() } else { format!("{n} tensors") }
}

/// The first few of many names.
fn few(names: &[String]) -> String {
    let shown = names.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > 3 { shown + ", .." } else { shown }
}
