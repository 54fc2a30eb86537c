//! The journal as a file: read, cut where a kill cut it, refused where it is damaged, kept short, appended to and synced.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::NodeError;
use crate::RunSpec;
use crate::round::Record;
use crate::round::journal::{compact, damaged, recover};

/// A journal is written anew once it is this long and twice as long as when it was last written anew.
const BYTES: u64 = 32 << 20;

pub(super) struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl Journal {
    /// Opens the journal in `dir` and gives its records. Those that no longer matter, before `round`, are left out of
    /// the file; the new file takes the old one's place in one step.
    pub fn open(dir: &Path, spec: &RunSpec, round: u64) -> Result<(Journal, Vec<Record>), NodeError> {
        let path = dir.join("journal");
        let fault = |source| NodeError::Journal { path: path.clone(), source };
        std::fs::create_dir_all(dir).map_err(fault)?;
        let bytes = match std::fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(fault)?,
        };
        let (records, whole) = recover(spec, &bytes);
        if damaged(spec, &bytes[whole..]) {
            return Err(NodeError::Damaged { path, at: whole });
        }
        let records = compact(spec, records, round);
        let aside = dir.join("journal.new");
        let write = || {
            let mut file = File::create(&aside)?;
            let mut bytes = 0;
            for record in &records {
                let record = record.encode();
                bytes += record.len() as u64;
                file.write_all(&record)?;
            }
            file.sync_all()?;
            std::fs::rename(&aside, &path)?;
            File::open(dir)?.sync_all()?;
            Ok((OpenOptions::new().append(true).open(&path)?, bytes))
        };
        let (file, bytes) = write().map_err(fault)?;
        Ok((Journal { path, file, bytes, bytes_max: BYTES.max(2 * bytes) }, records))
    }

    /// Appends a record; it is durable when this returns.
    pub fn append(&mut self, record: &Record) -> Result<(), NodeError> {
        let record = record.encode();
        self.bytes += record.len() as u64;
        let write = self.file.write_all(&record).and_then(|()| self.file.sync_data());
        write.map_err(|source| NodeError::Journal { path: self.path.clone(), source })
    }

    /// Leaves out what no longer matters, before `round`, where the file has grown long: a process may run for months.
    pub fn shorten(&mut self, spec: &RunSpec, round: u64) -> Result<(), NodeError> {
        if self.bytes > self.bytes_max {
            let dir = self.path.parent().expect("a journal is in a folder").to_owned();
            *self = Journal::open(&dir, spec, round)?.0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hash;
    use crate::wire::{Ballot, Canonical, Phase, Sealed};
    use std::sync::Arc;

    #[test]
    fn a_long_journal_is_made_short_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let spec = crate::spec::tests::spec(1);
        let bytes = include_bytes!("../../fuzz/corpus/manifest/valid-00");
        let sealed = |round| {
            let mut sealed = Sealed::decode(bytes).unwrap();
            sealed.manifest.round = round;
            sealed.hash = sealed.manifest.hash();
            Record::Sealed(Arc::new(sealed))
        };
        let (mut journal, records) = Journal::open(dir.path(), &spec, 0).unwrap();
        assert!(records.is_empty());
        journal.bytes_max = 100_000;
        let mut longest = 0;
        for round in 0..400 {
            journal.append(&sealed(round)).unwrap();
            journal.shorten(&spec, u64::saturating_sub(round, 10)).unwrap();
            journal.bytes_max = journal.bytes_max.min(100_000);
            longest = longest.max(std::fs::metadata(dir.path().join("journal")).unwrap().len());
        }
        assert!((90_000..110_000).contains(&longest), "{longest}");
        let rounds = |records: &[Record]| {
            let round = |r: &Record| if let Record::Sealed(s) = r { s.manifest.round } else { panic!("{r:?}") };
            records.iter().map(round).collect::<Vec<u64>>()
        };
        let (_, records) = Journal::open(dir.path(), &spec, 390).unwrap();
        assert_eq!(rounds(&records), (390..400).collect::<Vec<u64>>());
    }

    /// Damage in the middle once cost a validator all that it had signed behind it, in silence.
    #[test]
    fn a_cut_is_the_end_and_damage_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (spec, path) = (crate::spec::tests::spec(1), dir.path().join("journal"));
        let ballot = |attempt| {
            let manifest = Some(Hash::NONE);
            Record::Ballot(Ballot { round: 3, attempt, phase: Phase::Sign, manifest })
        };
        let open = || Journal::open(dir.path(), &spec, 0);
        let (mut journal, _) = open().unwrap();
        (0..3).for_each(|attempt| journal.append(&ballot(attempt)).unwrap());
        let whole = std::fs::read(&path).unwrap();
        let each = whole.len() / 3;
        // A kill, or a loss of power that leaves zeros: the last record was never heard of.
        for end in [&whole[..2 * each + 1], &whole[..3 * each - 1], &[&whole[..2 * each], &[0; 900]].concat()] {
            std::fs::write(&path, end).unwrap();
            assert_eq!(open().unwrap().1, [ballot(0), ballot(1)]);
            assert_eq!(std::fs::read(&path).unwrap().len(), 2 * each, "the rest is cut");
        }
        for at in [each + 9, each + 30, 2] {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            std::fs::write(&path, &damaged).unwrap();
            match open() {
                Err(e) => assert!(e.to_string().contains("journal") && e.to_string().contains("damaged"), "{e}"),
                Ok((_, records)) => panic!("byte {at}: {} records are left", records.len()),
            }
            assert_eq!(std::fs::read(&path).unwrap(), damaged, "left as it was");
        }
    }
}
