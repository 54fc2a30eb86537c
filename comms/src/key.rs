//! Who somebody is: an Ed25519 key pair. The public half is the peer's id, in TLS and under every message.
//!
//! Verification is `verify_strict` (no small-order keys, no malleable signatures), so that all peers agree on which
//! signatures hold. Sources: RFC 8032; Chalkias et al. 2020, "Taming the many EdDSAs".

use crate::hash::{hex, hex_text};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// A peer: its Ed25519 public key. The order of ids is the order of folds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 32]);

hex_text!(PeerId, 32);

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl PeerId {
    /// Whether `signature` under `message` was made by this peer's key.
    pub fn verify(&self, message: &[u8], signature: &Signature) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&self.0) else { return false };
        key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(&signature.0)).is_ok()
    }

    /// The first eight digits, for people.
    pub fn short(&self) -> String {
        hex(&self.0[..4])
    }
}

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature(pub [u8; 64]);

hex_text!(Signature, 64);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0[..4]))
    }
}

/// Both halves of a key. Never printed.
#[derive(Clone)]
pub struct Key(SigningKey);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.id())
    }
}

/// Why a key could not be loaded or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file could not be read or written.
    #[error("key file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a key.
    #[error(
        "key file {path} does not hold 64 lower-case hex digits and a newline; move it away to have a new one made"
    )]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
    /// Others may read the secret.
    #[error("key file {path} can be read by others (mode {mode:03o}); run: chmod 600 {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The system gave no random bytes.
    #[error("the system's random source failed")]
    Random,
}

impl Key {
    /// A new key from the system's random source.
    pub fn generate() -> Result<Key, KeyError> {
        let mut seed = [0; 32];
        let random = rustls::crypto::ring::default_provider().secure_random;
        random.fill(&mut seed).map_err(|_| KeyError::Random)?;
        Ok(Key::from_seed(seed))
    }

    /// The key of a 32-byte secret, as RFC 8032 derives it.
    pub fn from_seed(seed: [u8; 32]) -> Key {
        Key(SigningKey::from_bytes(&seed))
    }

    /// The key in `path`, made there at the first start: mode 0600, written aside and linked into place, so that of
    /// two processes that start together one makes it and both use it.
    pub fn load_or_create(path: &Path) -> Result<Key, KeyError> {
        let io = |source| KeyError::Io { path: path.into(), source };
        match std::fs::File::open(path) {
            Ok(file) => Key::read(path, file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let key = Key::generate()?;
                if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                    std::fs::create_dir_all(parent).map_err(io)?;
                }
                let aside = path.with_extension(format!("new-{}", std::process::id()));
                let placed = key.write_new(&aside).and_then(|()| std::fs::hard_link(&aside, path));
                let _ = std::fs::remove_file(&aside);
                match placed {
                    Ok(()) => Ok(key),
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                        Key::read(path, std::fs::File::open(path).map_err(io)?)
                    }
                    Err(e) => Err(io(e)),
                }
            }
            Err(e) => Err(io(e)),
        }
    }

    fn read(path: &Path, file: std::fs::File) -> Result<Key, KeyError> {
        let io = |source| KeyError::Io { path: path.into(), source };
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(KeyError::Open { path: path.into(), mode });
            }
        }
        let mut text = String::new();
        match file.take(66).read_to_string(&mut text) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(KeyError::NotAKey { path: path.into() }),
            Err(e) => return Err(io(e)),
        }
        let digits = text.strip_suffix('\n').unwrap_or(&text);
        let seed = crate::hash::unhex(digits).map_err(|_| KeyError::NotAKey { path: path.into() })?;
        Ok(Key::from_seed(seed))
    }

    fn write_new(&self, path: &Path) -> io::Result<()> {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path)?;
        file.write_all(format!("{}\n", hex(self.0.as_bytes())).as_bytes())?;
        file.sync_all()
    }

    /// The public half.
    pub fn id(&self) -> PeerId {
        PeerId(self.0.verifying_key().to_bytes())
    }

    /// Signs `message`. What is signed carries its domain, run and type: see [`crate::wire`].
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }

    /// The secret as PKCS #8 version 1 (RFC 8410), the form in which TLS takes it.
    pub fn pkcs8(&self) -> Vec<u8> {
        const HEAD: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        [&HEAD[..], self.0.as_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_rfc_8032() {
        // RFC 8032, 7.1, test 2.
        let seed = crate::hash::unhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb").unwrap();
        let key = Key::from_seed(seed);
        assert_eq!(key.id().to_string(), "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
        let signature = key.sign(&[0x72]);
        assert!(signature.to_string().starts_with("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"));
        assert!(key.id().verify(&[0x72], &signature));
        assert!(!key.id().verify(&[0x73], &signature));
        // The identity point would verify anything, were it let in.
        let mut weak = [0; 32];
        weak[0] = 1;
        assert!(!PeerId(weak).verify(b"", &Signature([0; 64])));
    }

    #[test]
    fn a_key_file_is_made_once_and_kept_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/key");
        let key = Key::load_or_create(&path).unwrap();
        assert_eq!(Key::load_or_create(&path).unwrap().id(), key.id());
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        std::fs::write(&path, "00\n").unwrap();
        assert!(matches!(Key::load_or_create(&path), Err(KeyError::NotAKey { .. })));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
            assert!(matches!(Key::load_or_create(&path), Err(KeyError::Open { mode: 0o644, .. })));
        }
    }
}
