//! Accepts TLS from browsers and other programs with an ordinary certificate, such as one of a public authority.
//!
//! Does not: ask the peer for a certificate; the HTTP API asks for a key.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::certificate_file::modified;

/// Why a certificate or its key cannot be used for HTTPS.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    /// A file cannot be read, or is not PEM.
    #[error("cannot read {}: {reason}; name a PEM file", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Its fault.
        reason: String,
    },
    /// Certificate and key do not fit together.
    #[error(
        "the certificate {} and the key {} cannot be used together: {reason}",
        certificate.display(), key.display()
    )]
    Pair {
        /// The file with the certificate and those of the authorities above it.
        certificate: PathBuf,
        /// The file with the key.
        key: PathBuf,
        /// Their fault.
        reason: String,
    },
}

/// When the files were last changed; `None` if that cannot be read.
#[derive(Debug, PartialEq, Eq)]
struct Changed {
    certificate: Option<SystemTime>,
    key: Option<SystemTime>,
}

/// The files' times of change, and the configuration made of them.
#[derive(Debug)]
struct Loaded {
    changed: Changed,
    config: Arc<ServerConfig>,
}

/// The accepting side of HTTPS. Replaced files are used for the next connection.
#[derive(Debug)]
pub struct Https {
    certificate: PathBuf,
    key: PathBuf,
    loaded: Mutex<Loaded>,
}

impl Https {
    /// Reads a certificate, with those of the authorities above it, and its key from PEM files.
    ///
    /// # Errors
    /// [`HttpsError`].
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, HttpsError> {
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        let loaded = Mutex::new(Loaded {
            changed: Changed { certificate: modified(&certificate), key: modified(&key) },
            config: config(&certificate, &key)?,
        });
        Ok(Self { certificate, key, loaded })
    }

    /// Shakes hands with a browser or another program. The caller limits the time.
    ///
    /// # Errors
    /// The peer's or the connection's fault.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<HttpsStream> {
        TlsAcceptor::from(self.config()).accept(stream).await.map(HttpsStream)
    }

    fn config(&self) -> Arc<ServerConfig> {
        let mut loaded = self.loaded.lock();
        let changed = Changed { certificate: modified(&self.certificate), key: modified(&self.key) };
        if changed != loaded.changed {
            // Each change is tried only once; half of a pair is tried again when the other half comes.
            loaded.changed = changed;
            match config(&self.certificate, &self.key) {
                Ok(config) => {
                    tracing::info!(path = %self.certificate.display(), "the certificate of HTTP was renewed");
                    loaded.config = config;
                }
                Err(error) => tracing::warn!(%error, "the new certificate of HTTP is not used"),
            }
        }
        Arc::clone(&loaded.config)
    }
}

/// An encrypted connection.
#[derive(Debug)]
pub struct HttpsStream(TlsStream<TcpStream>);

impl AsyncRead for HttpsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for HttpsStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

fn config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, HttpsError> {
    let file = |path: &Path, reason: String| HttpsError::File { path: path.to_owned(), reason };
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| file(certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(file(certificate, "it holds no certificate".to_owned()));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| file(key, error.to_string()))?;
    let pair = |error: rustls::Error| HttpsError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        reason: error.to_string(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
