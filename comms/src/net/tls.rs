//! Who is at the other end: TLS 1.3 with raw Ed25519 public keys on both sides (RFC 7250), no certificates.
//!
//! A key is sent as its 44-byte SubjectPublicKeyInfo:
//!
//! | bytes | |
//! | --- | --- |
//! | 0..12 | `30 2a 30 05 06 03 2b 65 70 03 21 00`: Ed25519 by its object identifier |
//! | 12..44 | the public key, which is the peer's id |
//!
//! Who dials says which id it expects, or takes what it gets and learns it; who accepts learns the id and asks the
//! gate about it. Tickets and early data are off: a session resumed by the name of a server would skip the comparison
//! of keys, and all our servers bear one name. Sources: RFC 7250, RFC 8410, RFC 8446.

use std::sync::{Arc, Mutex};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureAlgorithm, SignatureScheme};

use crate::key::{Key, PeerId};

/// The protocol spoken on a control connection; the number is the protocol's, not the software's.
pub const ALPN_CONTROL: &[u8] = b"esker/1";
/// The same protocol's bulk connections.
pub const ALPN_BULK: &[u8] = b"esker-bulk/1";
/// A server name is required by the handshake; it is not sent and means nothing.
pub(super) const NAME: &str = "esker";

const SPKI_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The 44 bytes that stand for a peer's key in a handshake.
pub fn spki(id: &PeerId) -> [u8; 44] {
    let mut out = [0; 44];
    out[..12].copy_from_slice(&SPKI_HEAD);
    out[12..].copy_from_slice(&id.0);
    out
}

/// The key in 44 bytes from the wire; `None` for any other algorithm, form or length.
pub fn peer_of_spki(bytes: &[u8]) -> Option<PeerId> {
    let key = bytes.strip_prefix(&SPKI_HEAD)?;
    Some(PeerId(key.try_into().ok()?))
}

/// What a process needs to shake hands: made once from its key.
pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    certified: Arc<CertifiedKey>,
}

impl Tls {
    pub fn new(key: Arc<Key>) -> Tls {
        let own = CertificateDer::from(spki(&key.id()).to_vec());
        let certified = Arc::new(CertifiedKey::new(vec![own], Arc::new(OwnKey(key))));
        Tls { provider: Arc::new(rustls::crypto::ring::default_provider()), certified }
    }

    /// A configuration for one dial. `shown` receives the id that the other end presents, even when it is refused.
    pub fn client(
        &self,
        alpn: &[u8],
        expect: Option<PeerId>,
        shown: &Arc<Mutex<Option<PeerId>>>,
    ) -> Arc<QuicClientConfig> {
        let verifier = Verifier { provider: self.provider.clone(), expect, shown: shown.clone() };
        let mut config = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring speaks TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.certified.clone())));
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Arc::new(QuicClientConfig::try_from(config).expect("ring has the initial suite of QUIC"))
    }

    pub fn server(&self) -> Arc<QuicServerConfig> {
        let verifier = Verifier { provider: self.provider.clone(), expect: None, shown: Arc::new(Mutex::new(None)) };
        let mut config = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring speaks TLS 1.3")
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.certified.clone())));
        config.alpn_protocols = vec![ALPN_CONTROL.to_vec(), ALPN_BULK.to_vec()];
        config.send_tls13_tickets = 0;
        Arc::new(QuicServerConfig::try_from(config).expect("ring has the initial suite of QUIC"))
    }
}

/// Signs handshakes with the process's key. TLS puts a context string of its own before what is signed, so that no
/// signature here is one of a protocol message.
struct OwnKey(Arc<Key>);

impl std::fmt::Debug for OwnKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OwnKey({:?})", self.0.id())
    }
}

impl SigningKey for OwnKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ED25519).then(|| Box::new(OwnKey(self.0.clone())) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(spki(&self.0.id()).to_vec()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for OwnKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.0.sign(message).0.to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    expect: Option<PeerId>,
    shown: Arc<Mutex<Option<PeerId>>>,
}

impl Verifier {
    fn check(&self, spki: &CertificateDer<'_>, more: &[CertificateDer<'_>]) -> Result<(), Error> {
        let id = peer_of_spki(spki).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if !more.is_empty() {
            return Err(Error::InvalidCertificate(CertificateError::BadEncoding));
        }
        *self.shown.lock().expect("no panic under this lock") = Some(id);
        match self.expect {
            Some(want) if want != id => {
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
            _ => Ok(()),
        }
    }
}

/// The part of a verifier that rustls asks of dialler and acceptor in the same words: Ed25519 under raw keys, and nothing
/// else. QUIC has no TLS 1.2, so that is never asked for; it is refused all the same.
macro_rules! raw_keys {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("TLS 1.2 is not spoken here".into()))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            spki: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let (spki, known) =
                (SubjectPublicKeyInfoDer::from(spki.as_ref()), &self.provider.signature_verification_algorithms);
            verify_tls13_signature_with_raw_key(message, &spki, signed, known)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end, more).map(|()| ServerCertVerified::assertion())
    }

    raw_keys!();
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end, more).map(|()| ClientCertVerified::assertion())
    }

    raw_keys!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_form() {
        let id = PeerId([7; 32]);
        assert_eq!(peer_of_spki(&spki(&id)), Some(id));
        assert_eq!(peer_of_spki(&spki(&id)[..43]), None);
        let mut longer = spki(&id).to_vec();
        longer.push(0);
        assert_eq!(peer_of_spki(&longer), None);
        let mut other = spki(&id);
        other[8] = 0x6e; // X25519
        assert_eq!(peer_of_spki(&other), None);
    }
}
