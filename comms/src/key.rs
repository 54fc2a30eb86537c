//! Who somebody is: an Ed25519 key pair. The public half is the peer's id, in TLS and under every message.
//!
//! ```text
//! a signature R, S of message M holds under key A where
//!   S < ℓ                                    so that nobody makes a second signature out of one
//!   neither A nor R is of small order        such a key, or such an R, fits more than one message
//!   bytes of S·B − SHA-512(R, A, M)·A = R    without the cofactor, and so R is spelt in the only way
//! ```
//!
//! This is what is called strict, so that all peers agree on which signatures hold. The first and the last are `ring`'s,
//! the second stands here.
//! Sources: RFC 8032; Chalkias et al. 2020, "Taming the many EdDSAs".

use crate::hash::{hex, hex_text};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
        let r = signature.0.first_chunk().expect("key: 64 bytes begin with 32");
        !small_order(&self.0)
            && !small_order(r)
            && UnparsedPublicKey::new(&ED25519, self.0).verify(message, &signature.0).is_ok()
    }

    /// The first eight digits, for people.
    pub fn short(&self) -> String {
        hex(&self.0[..4])
    }
}

/// Whether a point, as it is spelt, is one of the eight whose order divides eight. Its sign does not matter to that, and
/// two of their y are also spelt with p added.
fn small_order(point: &[u8; 32]) -> bool {
    /// y = 0, 1, p − 1, those of order 8, and p, p + 1; little-endian.
    const Y: [[u8; 32]; 7] = [
        [0; 32],
        ends(1, 0, 0),
        ends(0xec, 0xff, 0x7f),
        [
            0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf,
            0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
        ],
        [
            0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
            0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
        ],
        ends(0xed, 0xff, 0x7f),
        ends(0xee, 0xff, 0x7f),
    ];
    let mut y = *point;
    y[31] &= 0x7f;
    Y.contains(&y)
}

/// A number by its lowest byte, those between, and its highest.
const fn ends(first: u8, between: u8, last: u8) -> [u8; 32] {
    let mut bytes = [between; 32];
    (bytes[0], bytes[31]) = (first, last);
    bytes
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
pub struct Key {
    seed: [u8; 32],
    /// What follows from the seed.
    pair: Arc<Ed25519KeyPair>,
}

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
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("key: a seed has 32 bytes");
        Key { seed, pair: Arc::new(pair) }
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
        let about = file.metadata().map_err(io)?;
        if !about.is_file() {
            return Err(KeyError::NotAKey { path: path.into() });
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = about.permissions().mode() & 0o777;
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
        file.write_all(format!("{}\n", hex(&self.seed)).as_bytes())?;
        file.sync_all()
    }

    /// The public half.
    pub fn id(&self) -> PeerId {
        PeerId(self.pair.public_key().as_ref().try_into().expect("key: a public key has 32 bytes"))
    }

    /// Signs `message`. What is signed carries its domain, run and type: see [`crate::wire`].
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.pair.sign(message).as_ref().try_into().expect("key: a signature has 64 bytes"))
    }

    /// The secret as PKCS #8 version 1 (RFC 8410), the form in which TLS takes it.
    pub fn pkcs8(&self) -> Vec<u8> {
        const HEAD: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        [&HEAD[..], &self.seed].concat()
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

    /// What `verify_strict` of another implementation says, under which signatures were made before.
    fn strictly(id: &PeerId, message: &[u8], signature: &Signature) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        ed25519_dalek::VerifyingKey::from_bytes(&id.0).is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
    }

    /// p = 2²⁵⁵ − 19 and ℓ, the order of the base point; little-endian.
    const P: [u8; 32] = ends(0xed, 0xff, 0x7f);
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];

    /// a + b in 32 bytes.
    fn plus(a: &[u8; 32], b: &[u8; 32]) -> [u8; 32] {
        let (mut sum, mut carry) = ([0; 32], 0);
        for i in 0..32 {
            let here = u16::from(a[i]) + u16::from(b[i]) + carry;
            (sum[i], carry) = (here as u8, here >> 8);
        }
        sum
    }

    #[test]
    fn points_that_are_close_to_small_are_told_as_by_others() {
        let key = Key::from_seed([7; 32]);
        let mut points: Vec<[u8; 32]> = vec![key.id().0];
        // Every y near 0 and near p, spelt in every way, and those of order 8.
        for small in 0..64 {
            let small = ends(small, 0, 0);
            points.extend([small, plus(&P, &small), plus(&ends(0xe0, 0xff, 0x7f), &small)]);
        }
        for order_8 in [
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        ] {
            points.push(crate::hash::unhex(order_8).unwrap());
        }
        let honest = key.sign(b"m");
        let mut refused = std::collections::BTreeSet::new();
        for mut point in points {
            for _ in 0..2 {
                point[31] ^= 0x80;
                let dalek = ed25519_dalek::VerifyingKey::from_bytes(&point);
                let weak = dalek.is_ok_and(|key| key.is_weak());
                assert_eq!(small_order(&point), weak, "{point:02x?}");
                refused.extend(weak.then_some(point));
                for r in [honest.0[..32].to_vec(), point.to_vec(), ends(1, 0, 0).to_vec()] {
                    for s in [[0; 32], ends(1, 0, 0), ORDER] {
                        let signature = Signature([r.clone(), s.to_vec()].concat().try_into().unwrap());
                        for id in [PeerId(point), key.id()] {
                            assert_eq!(
                                id.verify(b"m", &signature),
                                strictly(&id, b"m", &signature),
                                "{id} {signature}"
                            );
                        }
                    }
                }
            }
        }
        // Seven y, each with two signs.
        assert_eq!(refused.len(), 14);
    }

    #[test]
    fn a_signature_has_one_spelling() {
        let key = Key::from_seed([9; 32]);
        let honest = key.sign(b"m");
        let s: [u8; 32] = honest.0[32..].try_into().unwrap();
        let other = Signature([&honest.0[..32], &plus(&s, &ORDER)].concat().try_into().unwrap());
        assert!(key.id().verify(b"m", &honest) && !key.id().verify(b"m", &other));
        let mut bare = honest;
        bare.0[63] |= 0x80;
        assert!(!key.id().verify(b"m", &bare));
    }

    proptest::proptest! {
        #[test]
        fn keys_and_verdicts_are_those_of_others(
            seed: [u8; 32],
            message in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            (at, bit) in (0usize..64, 0u8..8),
            other: [u8; 32],
        ) {
            use ed25519_dalek::Signer;
            let (key, dalek) = (Key::from_seed(seed), ed25519_dalek::SigningKey::from_bytes(&seed));
            let signature = key.sign(&message);
            assert_eq!(key.id().0, dalek.verifying_key().to_bytes());
            assert_eq!(signature.0, dalek.sign(&message).to_bytes());
            assert!(key.id().verify(&message, &signature) && strictly(&key.id(), &message, &signature));
            let mut flipped = signature;
            flipped.0[at] ^= 1 << bit;
            for id in [key.id(), PeerId(other)] {
                assert_eq!(id.verify(&message, &flipped), strictly(&id, &message, &flipped));
            }
        }
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
