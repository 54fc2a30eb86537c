//! A file of an export: it grows under another name and takes its own when it is whole.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{FormatError, Int, beside};
use crate::shard::sync_parent;

#[derive(Debug)]
pub(super) struct Out {
    path: PathBuf,
    aside: PathBuf,
    file: Option<BufWriter<File>>,
    buffer: Vec<u8>,
    length: u64,
}

impl Out {
    /// A file that is there already is refused.
    pub fn create(path: &Path) -> Result<Out, FormatError> {
        if path.exists() {
            return Err(FormatError::refused(path, "is there already; choose another folder, or remove it"));
        }
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(FormatError::io(dir, "create"))?;
        }
        let aside = beside(path, ".tmp");
        let file = File::create(&aside).map_err(FormatError::io(&aside, "create"))?;
        let file = Some(BufWriter::with_capacity(1 << 20, file));
        Ok(Out { path: path.into(), aside, file, buffer: Vec::new(), length: 0 })
    }

    fn file(&mut self) -> &mut BufWriter<File> {
        self.file.as_mut().expect("open until finished")
    }

    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self.file().write_all(bytes).map_err(FormatError::io(&self.aside.clone(), "write"))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    pub fn ids(&mut self, int: Int, ids: &[u32]) -> Result<(), FormatError> {
        for part in ids.chunks(1 << 14) {
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.clear();
            let fits = int.write(part, &mut buffer);
            fits.map_err(|id| FormatError::Wide { path: self.path.clone(), id, int })?;
            self.bytes(&buffer)?;
            self.buffer = buffer;
        }
        Ok(())
    }

    /// Writes again what stands at byte `at`.
    pub fn at(&mut self, at: u64, bytes: &[u8]) -> Result<(), FormatError> {
        let path = self.aside.clone();
        let file = self.file();
        let write = |file: &mut BufWriter<File>| {
            file.seek(SeekFrom::Start(at))?;
            file.write_all(bytes)?;
            file.seek(SeekFrom::End(0))
        };
        write(file).map(drop).map_err(FormatError::io(&path, "write"))
    }

    /// Appends one gzip stream.
    pub fn gz(
        &mut self,
        fill: impl FnOnce(&mut flate2::write::GzEncoder<&mut BufWriter<File>>) -> std::io::Result<()>,
    ) -> Result<(), FormatError> {
        let path = self.aside.clone();
        let write = || {
            let mut gz = flate2::write::GzEncoder::new(
                self.file.as_mut().expect("open until finished"),
                flate2::Compression::default(),
            );
            fill(&mut gz)?;
            gz.finish()?.stream_position()
        };
        self.length = write().map_err(FormatError::io(&path, "write"))?;
        Ok(())
    }

    /// Syncs and renames; the path and the length in bytes.
    pub fn finish(mut self) -> Result<(PathBuf, u64), FormatError> {
        let (path, aside) = (self.path.clone(), self.aside.clone());
        let file = self.file();
        file.flush().map_err(FormatError::io(&aside, "write"))?;
        file.get_ref().sync_all().map_err(FormatError::io(&aside, "sync"))?;
        std::fs::rename(&aside, &path).map_err(FormatError::io(&path, "rename into place"))?;
        self.file = None;
        sync_parent(&path).map_err(FormatError::io(&path, "sync the folder of"))?;
        Ok((path, self.length))
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // Nobody is left to hear of a failure, and a stale .tmp is overwritten next time.
            let _ = std::fs::remove_file(&self.aside);
        }
    }
}
