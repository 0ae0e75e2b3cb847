//! Whom the host trusts.

use std::sync::Arc;

use data_encoding::BASE64;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

/// The host's roots, those of a company that looks into TLS among them.
#[derive(Clone, Debug, Default)]
pub struct Trust(Vec<CertificateDer<'static>>);

impl Trust {
    /// The store of this host (`SSL_CERT_FILE` and `SSL_CERT_DIR` go before it). What cannot be read is left out:
    /// a root less is a connection refused, never one too many.
    pub fn of_this_host() -> Self {
        Self(rustls_native_certs::load_native_certs().certs)
    }

    /// These certificates alone.
    pub fn only(certificates: Vec<Vec<u8>>) -> Self {
        Self(certificates.into_iter().map(CertificateDer::from).collect())
    }

    /// The roots in PEM, as guests keep them.
    pub fn pem(&self) -> String {
        let mut pem = String::new();
        for certificate in &self.0 {
            pem.push_str("-----BEGIN CERTIFICATE-----\n");
            let text = BASE64.encode(certificate);
            for line in text.as_bytes().chunks(64) {
                pem.push_str(&String::from_utf8_lossy(line));
                pem.push('\n');
            }
            pem.push_str("-----END CERTIFICATE-----\n");
        }
        pem
    }

    /// A client that trusts them and offers these protocols.
    pub(crate) fn client(&self, protocols: &[&[u8]]) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.0.iter().cloned());
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }
}
