//! The certificate authority of one machine, for the hosts of its secrets: only this machine's guest trusts it, its
//! key never leaves this process, and it ends with the machine.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cabana_egress::DomainName;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;

/// An authority could not be made, or could not vouch for a host.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// By the library of certificates.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// By the library of TLS.
    #[error("cannot use a certificate: {0}")]
    Tls(#[from] rustls::Error),
}

/// The authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    known: Mutex<HashMap<DomainName, Arc<ServerConfig>>>,
}

impl Authority {
    pub(crate) fn new() -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "Cabana, for this machine alone");
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem, known: Mutex::default() })
    }

    /// What the guest has to trust.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// How to be this host. HTTP/1 alone is offered (RFC 7301), since its heads are what is rewritten.
    pub(crate) fn server(&self, host: &DomainName) -> Result<Arc<ServerConfig>, AuthorityError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = known.get(host) {
            return Ok(Arc::clone(config));
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![host.to_string()])?;
        params.distinguished_name.push(DnType::CommonName, "Cabana");
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = Arc::new(config);
        // Hosts of wildcards are the guest's choice: their number has a limit.
        if known.len() >= 1024 {
            known.clear();
        }
        known.insert(host.clone(), Arc::clone(&config));
        Ok(config)
    }
}
