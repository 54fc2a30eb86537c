//! Writing a shard: once from its first byte to its last, then the header.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::header::{HEADER_BYTES, Header, TokenType};
use super::tree::Tree;
use super::{ShardError, VERSION};

/// What every shard of one packing has in common.
#[derive(Debug, Clone, Copy)]
pub struct ShardSpec {
    pub vocab_size: u32,
    /// The id that closes each document; the caller pushes it as part of the document.
    pub eos: Option<u32>,
    pub tokenizer_hash: [u8; 32],
}

/// Writes a shard document by document. Memory: 16 bytes a document, 32 a MiB, and
/// one buffer.
///
/// The file grows under `NAME.tmp`; [`ShardWriter::finish`] syncs and renames it. A writer
/// dropped before that removes what it wrote.
#[derive(Debug)]
pub struct ShardWriter {
    path: PathBuf,
    aside: PathBuf,
    file: Option<BufWriter<File>>,
    tree: Tree,
    header: Header,
    index: Vec<(u64, u64)>,
}

impl ShardWriter {
    pub fn create(path: &Path, spec: ShardSpec) -> Result<ShardWriter, ShardError> {
        let named = path.to_path_buf();
        if spec.vocab_size == 0 {
            let want = "1 or more".into();
            return Err(ShardError::Field { path: named, field: "vocabulary", got: 0, want });
        }
        if let Some(id) = spec.eos.filter(|&id| id >= spec.vocab_size) {
            let want = format!("an id below the vocabulary of {}", spec.vocab_size);
            return Err(ShardError::Field { path: named, field: "end mark", got: id.into(), want });
        }
        let mut aside = path.as_os_str().to_owned();
        aside.push(".tmp");
        let aside = PathBuf::from(aside);
        let io = |action| {
            let path = aside.clone();
            move |source| ShardError::Io { path, action, source }
        };
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&aside).map_err(io("create"))?);
        file.write_all(&[0; HEADER_BYTES]).map_err(io("write"))?;
        let header = Header {
            version: VERSION,
            token_type: TokenType::for_vocab(spec.vocab_size),
            vocab_size: spec.vocab_size,
            max_token: 0,
            eos: spec.eos,
            tokens: 0,
            documents: 0,
            text_bytes: 0,
            tokenizer_hash: spec.tokenizer_hash,
            body_digest: [0; 32],
        };
        Ok(ShardWriter { path: named, aside, file: Some(file), tree: Tree::new(), header, index: Vec::new() })
    }

    /// Tokens written so far.
    pub fn tokens(&self) -> u64 {
        self.header.tokens
    }

    /// Documents written so far.
    pub fn documents(&self) -> u64 {
        self.header.documents
    }

    /// Appends one document with its end mark, made of `text_bytes` bytes of text. A document
    /// without tokens leaves nothing, so its text must be empty too.
    pub fn push(&mut self, tokens: &[u32], text_bytes: u64) -> Result<(), ShardError> {
        if tokens.is_empty() {
            assert_eq!(text_bytes, 0, "shard: a document with text has tokens");
            return Ok(());
        }
        let max = self.header.vocab_size - 1;
        if let Some(i) = tokens.iter().position(|&id| id > max) {
            let at = self.header.tokens + i as u64;
            return Err(ShardError::Token { path: self.path.clone(), at, id: tokens[i], max });
        }
        let mut bytes = [0u8; 4096];
        for part in tokens.chunks(1024) {
            let used = match self.header.token_type {
                TokenType::U16 => {
                    for (b, &id) in bytes.chunks_exact_mut(2).zip(part) {
                        b.copy_from_slice(&(id as u16).to_le_bytes());
                    }
                    part.len() * 2
                }
                TokenType::U32 => {
                    for (b, &id) in bytes.chunks_exact_mut(4).zip(part) {
                        b.copy_from_slice(&id.to_le_bytes());
                    }
                    part.len() * 4
                }
            };
            self.write(&bytes[..used])?;
        }
        let largest = tokens.iter().copied().max().unwrap_or(0);
        self.header.max_token = self.header.max_token.max(largest);
        self.header.tokens += tokens.len() as u64;
        self.header.documents += 1;
        self.header.text_bytes += text_bytes;
        self.index.push((self.header.tokens, self.header.text_bytes));
        Ok(())
    }

    /// Writes index, leaves and header, syncs, renames, and returns the header of the finished file.
    pub fn finish(mut self) -> Result<Header, ShardError> {
        let payload = self.header.tokens * self.header.token_type.bytes();
        let pad = (payload.next_multiple_of(8) - payload) as usize;
        self.write(&[0; 8][..pad])?;
        for (end, text_end) in std::mem::take(&mut self.index) {
            self.write(&end.to_le_bytes())?;
            self.write(&text_end.to_le_bytes())?;
        }
        let (digest, leaves) = std::mem::replace(&mut self.tree, Tree::new()).finish();
        self.header.body_digest = digest;
        let io = |path: &Path, action| {
            let path = path.to_path_buf();
            move |source| ShardError::Io { path, action, source }
        };
        let file = self.file.as_mut().expect("open until finished");
        file.write_all(leaves.as_flattened()).map_err(io(&self.aside, "write"))?;
        file.seek(SeekFrom::Start(0)).map_err(io(&self.aside, "seek in"))?;
        file.write_all(&self.header.to_bytes()).map_err(io(&self.aside, "write"))?;
        file.flush().map_err(io(&self.aside, "write"))?;
        file.get_ref().sync_all().map_err(io(&self.aside, "sync"))?;
        std::fs::rename(&self.aside, &self.path).map_err(io(&self.path, "rename into place"))?;
        // From here nothing is left to remove.
        self.file = None;
        sync_parent(&self.path).map_err(io(&self.path, "sync the folder of"))?;
        Ok(self.header.clone())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ShardError> {
        self.tree.update(bytes);
        let file = self.file.as_mut().expect("open until finished");
        file.write_all(bytes).map_err(|source| ShardError::Io { path: self.aside.clone(), action: "write", source })
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nobody is left to hear of a failure, and a stale .tmp is overwritten next time.
            let _ = std::fs::remove_file(&self.aside);
        }
    }
}

/// Makes a rename in the folder of `path` survive a power cut.
pub(crate) fn sync_parent(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}
