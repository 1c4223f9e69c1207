//! A client that trusts authorities of the operator's besides the public ones.

use clickhouse::Client;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore, crypto};
use std::sync::Arc;
use std::time::Duration;

/// As long as the client keeps a connection by itself: the server closes one that was idle for three seconds.
const IDLE: Duration = Duration::from_secs(2);
/// How often an idle connection is asked whether the server is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// None: there is no certificate in `pem`, or one that is none.
pub(crate) fn trusting(pem: &[u8]) -> Option<Client> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let public = roots.len();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.ok()?).ok()?;
    }
    if roots.len() == public {
        return None;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().ok()?.with_root_certificates(roots).with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.enforce_http(false);
    let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().wrap_connector(tcp);
    Some(Client::with_http_client(Http::builder(TokioExecutor::new()).pool_idle_timeout(IDLE).build(connector)))
}
