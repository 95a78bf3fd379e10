//! Downloads one file into `<target>.part`, and resumes an earlier download found there.
//!
//! The process that downloads holds a lock on the part file; the kernel releases it however the process ends.
//! An extended attribute of the part records its URL and version, and the server is asked to resume that
//! version only (`If-Range`). A part without the attribute is resumed only if the caller checks a sum
//! afterwards; otherwise the download starts again.
//!
//! Does not: check sums, or give the file its final name.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::header::{self, HeaderMap};
use reqwest::{Client, Proxy, Response, StatusCode, Url};
use rustix::fs::{FlockOperation, XattrFlags};

use super::proxy::{self, Chosen};
use super::{Environment, OnProgress};

/// Interval of the progress lines in the log.
const LOG_EVERY: Duration = Duration::from_secs(3);
/// Idle timeout: a server that sends nothing for this long is given up.
const STALLED: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(30);
/// Longest delay until a request to stop is noticed while no bytes arrive.
const TICK: Duration = Duration::from_millis(200);
const CHUNK_BYTES: usize = 1 << 20;
const VERSION: &str = "user.lamagrid.version";
const VERSION_BYTES: usize = 4096;

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DownloadError {
    /// The caller stopped it.
    #[error("it was stopped")]
    Stopped,
    /// The download failed; the text includes the remedy, if there is one.
    #[error("{0}")]
    Failed(String),
    /// A local file could not be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The locked part file of a download.
#[derive(Debug)]
pub(super) struct Part {
    file: File,
    path: PathBuf,
}

impl Part {
    /// Locks the part of `target`, waiting for its owner; `None` if that owner has completed the target meanwhile.
    pub(super) fn take(target: &Path, on_progress: OnProgress<'_>) -> Result<Option<Self>, DownloadError> {
        sweep(target);
        let path = beside(target, ".part");
        let before = identity(target);
        let mut has_waited = false;
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    if !has_waited {
                        tracing::info!(path = %path.display(), "another process fetches this file: waiting for it");
                    }
                    has_waited = true;
                    if on_progress(file.metadata()?.len(), None).is_break() {
                        return Err(DownloadError::Stopped);
                    }
                    std::thread::sleep(TICK);
                    continue;
                }
                // The file system has no locks: two downloads may run at once, and the sum detects a mixed file.
                Err(rustix::io::Errno::NOLCK | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
            // The previous owner may have renamed or removed the opened file.
            let is_current = identity(&path)
                .is_some_and(|now| file.metadata().is_ok_and(|own| (own.dev(), own.ino()) == now));
            if !is_current {
                continue;
            }
            let part = Self { file, path };
            let now = identity(target);
            if has_waited && now.is_some() && now != before {
                part.give_up();
                return Ok(None);
            }
            return Ok(Some(part));
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes downloaded so far.
    pub(super) fn len(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Gives the complete file its final name.
    pub(super) fn rename(self, name: &Path) -> io::Result<()> {
        let _ = rustix::fs::fremovexattr(&self.file, VERSION); // only parts need it
        self.file.sync_all()?;
        std::fs::rename(&self.path, name)
    }

    /// Releases the part; keeps its bytes for resuming, but deletes an empty file.
    pub(super) fn give_up(self) {
        if self.len() == 0 {
            // Ignored: an empty part is harmless, and the caller reports the failed download.
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Downloads the rest of `url`. `has_sum` says whether the caller checks the complete file. Returns
    /// whether bytes of an earlier download were resumed.
    pub(super) fn fetch(
        &mut self,
        url: &str,
        has_sum: bool,
        environment: &Environment,
        on_progress: OnProgress<'_>,
    ) -> Result<bool, DownloadError> {
        if let Some(path) = url.strip_prefix("file://") {
            return self.copy(File::open(path)?, url, on_progress).map(|()| false);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let resumed = runtime.block_on(self.download(url, has_sum, environment, on_progress));
        runtime.shutdown_background(); // a name lookup may still be running
        resumed
    }

    /// Deletes the downloaded bytes, to start again.
    pub(super) fn empty(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0)).map(drop)
    }

    fn copy(
        &mut self,
        mut source: File,
        url: &str,
        on_progress: OnProgress<'_>,
    ) -> Result<(), DownloadError> {
        self.empty()?;
        let mut sink = Sink::new(&mut self.file, url, 0, Some(source.metadata()?.len()), on_progress);
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match source.read(&mut chunk)? {
                0 => return sink.check_length(),
                n => sink.write(&chunk[..n])?,
            }
        }
    }

    async fn download(
        &mut self,
        url: &str,
        has_sum: bool,
        environment: &Environment,
        on_progress: OnProgress<'_>,
    ) -> Result<bool, DownloadError> {
        let parsed =
            Url::parse(url).map_err(|error| DownloadError::Failed(format!("it is no URL: {error}")))?;
        let web = Web::new(&parsed, environment)?;
        let mut here = self.len();
        let version = self.version().and_then(|text| {
            let (of, version) = text.split_once('\n')?;
            Some((of == url, version.to_owned()))
        });
        let validator = match &version {
            Some((true, version)) => Some(version.as_str()).filter(|version| !version.is_empty()),
            // A part of another URL is not resumed. A part without the attribute is resumed if a sum is checked.
            Some((false, _)) | None => None,
        };
        if validator.is_none() && !(has_sum && version.as_ref().is_none_or(|(same, _)| *same)) {
            here = 0;
        }
        let mut answer = web.get(here, validator, self.len(), on_progress).await?;
        let range = content_range(answer.headers());
        let is_whole =
            answer.status() == StatusCode::RANGE_NOT_SATISFIABLE && range == Some((None, Some(here)));
        if is_whole {
            return Ok(true);
        }
        let goes_on = answer.status() == StatusCode::PARTIAL_CONTENT
            && matches!(range, Some((Some(at), _)) if at == here);
        if here > 0 && !goes_on && answer.status() != StatusCode::OK {
            answer = web.get(0, None, 0, on_progress).await?;
        }
        let status = answer.status();
        let from = match (status, goes_on) {
            (StatusCode::PARTIAL_CONTENT, true) => here,
            (StatusCode::OK, _) => 0,
            _ => {
                return Err(DownloadError::Failed(format!(
                    "the server answered {status}{}",
                    web.by(answer.url())
                )));
            }
        };
        if from == 0 {
            self.empty()?;
            self.remember(url, answer.headers());
        } else {
            tracing::info!(url, path = %self.path.display(), mib = from >> 20, "going on with an earlier download");
            self.file.seek(SeekFrom::Start(from))?;
        }
        let whole = answer.content_length().map(|rest| from + rest);
        tracing::info!(url, path = %self.path.display(), bytes = whole, "fetching a model file");
        let mut sink = Sink::new(&mut self.file, url, from, whole, on_progress);
        loop {
            let silent = Instant::now();
            let chunk = attended(answer.chunk(), || {
                if silent.elapsed() >= STALLED {
                    return Err(DownloadError::Failed(format!("no byte came for {} s", STALLED.as_secs())));
                }
                sink.report_progress()
            });
            match chunk.await?.map_err(|error| web.failure(error))? {
                Some(bytes) => sink.write(&bytes)?,
                None => break,
            }
        }
        sink.check_length()?;
        Ok(from > 0)
    }

    /// The URL and version of which this is a part, from the extended attribute.
    fn version(&self) -> Option<String> {
        let mut value = [0; VERSION_BYTES];
        let len = rustix::fs::fgetxattr(&self.file, VERSION, &mut value).ok()?;
        String::from_utf8(value.get(..len)?.to_vec()).ok()
    }

    /// Records the URL and its version: a strong ETag, or else the date of the last change.
    fn remember(&self, url: &str, headers: &HeaderMap) {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let strong = text(header::ETAG).filter(|tag| !tag.starts_with("W/"));
        let version = strong.or_else(|| text(header::LAST_MODIFIED)).unwrap_or_default();
        let value = format!("{url}\n{version}");
        // Ignored if the file system has no attributes: the sum decides, or the next download starts again.
        let _ = rustix::fs::fsetxattr(&self.file, VERSION, value.as_bytes(), XattrFlags::empty());
    }
}

/// Writes downloaded bytes to the part file, reports progress and logs it.
struct Sink<'a, 'b> {
    file: &'a mut File,
    url: &'a str,
    done: u64,
    whole: Option<u64>,
    on_progress: OnProgress<'b>,
    logged: Instant,
}

impl<'a, 'b> Sink<'a, 'b> {
    fn new(
        file: &'a mut File,
        url: &'a str,
        done: u64,
        whole: Option<u64>,
        on_progress: OnProgress<'b>,
    ) -> Self {
        Self { file, url, done, whole, on_progress, logged: Instant::now() }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        self.file.write_all(bytes)?;
        self.done += bytes.len() as u64;
        if self.logged.elapsed() >= LOG_EVERY {
            self.logged = Instant::now();
            let percent =
                self.whole.filter(|whole| *whole > 0).map(|whole| self.done.saturating_mul(100) / whole);
            tracing::info!(url = self.url, mib = self.done >> 20, percent, "fetching a model file");
        }
        self.report_progress()
    }

    fn report_progress(&mut self) -> Result<(), DownloadError> {
        match (self.on_progress)(self.done, self.whole) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(DownloadError::Stopped),
        }
    }

    fn check_length(&self) -> Result<(), DownloadError> {
        match self.whole {
            Some(whole) if whole != self.done => {
                let text = format!("the connection ended after {} of {whole} bytes", self.done);
                Err(DownloadError::Failed(text))
            }
            _ => Ok(()),
        }
    }
}

/// The HTTP client with this process's proxy settings.
struct Web {
    url: Url,
    client: Client,
    environment: Environment,
}

impl Web {
    fn new(url: &Url, environment: &Environment) -> Result<Self, DownloadError> {
        let chosen = environment.clone();
        let env = move |name: &str| chosen.get(name);
        // Checked early for a clear error. Each request chooses its proxy itself, because redirects may change scheme or host.
        proxy::choose(url, &env).map_err(|error| DownloadError::Failed(error.to_string()))?;
        let by_variable = move |url: &Url| proxy::choose(url, &env).ok().flatten().map(|chosen| chosen.url);
        let client = Client::builder()
            .proxy(Proxy::custom(by_variable))
            .connect_timeout(CONNECT)
            .user_agent(concat!("lamagrid/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| {
                DownloadError::Failed(format!(
                    "TLS cannot be set up: {}{}",
                    chain(&error),
                    authorities(environment)
                ))
            })?;
        Ok(Self { url: url.clone(), client, environment: environment.clone() })
    }

    /// Requests the bytes from offset `from` on.
    async fn get(
        &self,
        from: u64,
        version: Option<&str>,
        done: u64,
        on_progress: OnProgress<'_>,
    ) -> Result<Response, DownloadError> {
        let mut request = self.client.get(self.url.clone()).header(header::ACCEPT_ENCODING, "identity");
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
            request = version
                .into_iter()
                .fold(request, |request, version| request.header(header::IF_RANGE, version));
        }
        let began = Instant::now();
        let answer = attended(request.send(), || {
            if began.elapsed() >= STALLED {
                let text = format!("no answer came for {} s{}", STALLED.as_secs(), self.by(&self.url));
                return Err(DownloadError::Failed(text));
            }
            match on_progress(done, None) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(DownloadError::Stopped),
            }
        });
        answer.await?.map_err(|error| self.failure(error))
    }

    /// Names the proxy through which a URL is fetched, for messages; empty without a proxy.
    fn by(&self, url: &Url) -> String {
        match proxy::choose(url, &|name: &str| self.environment.get(name)) {
            Ok(Some(chosen)) => format!(" (through {})", Chosen::describe(&chosen)),
            Ok(None) | Err(_) => String::new(),
        }
    }

    fn failure(&self, error: reqwest::Error) -> DownloadError {
        let url = error.url().cloned().unwrap_or_else(|| self.url.clone());
        let reason = chain(&error.without_url());
        let by = self.by(&url);
        let about =
            if reason.contains("certificate") { authorities(&self.environment) } else { String::new() };
        DownloadError::Failed(format!("{reason}{by}{about}"))
    }
}

/// The hint for a certificate that is not trusted.
fn authorities(environment: &Environment) -> String {
    let set = ["SSL_CERT_FILE", "SSL_CERT_DIR"]
        .map(|name| environment.get(name).map(|value| format!("{name}={value}")));
    let set = set.into_iter().flatten().collect::<Vec<_>>().join(", ");
    if set.is_empty() {
        "; if your network has a certificate authority of its own, let SSL_CERT_FILE name its file (PEM)"
            .into()
    } else {
        format!("; trusted are the authorities of {set} and the public ones")
    }
}

/// Joins the texts of an error and its sources, without repetitions.
fn chain(error: &dyn std::error::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        texts.retain(|outer| !outer.contains(&text) || outer == &text);
        if !texts.contains(&text) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.join(": ")
}

/// The first byte and the total length from `Content-Range`; each `None` if it is absent or `*`.
fn content_range(headers: &HeaderMap) -> Option<(Option<u64>, Option<u64>)> {
    let (range, whole) =
        headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    let first = range.split_once('-').and_then(|(first, _)| first.parse().ok());
    Some((first, whole.parse().ok()))
}

/// Waits for `future`, calling `tick` regularly; ends early with `tick`'s error.
async fn attended<F: Future>(
    future: F,
    mut tick: impl FnMut() -> Result<(), DownloadError>,
) -> Result<F::Output, DownloadError> {
    tokio::pin!(future);
    loop {
        match tokio::time::timeout(TICK, &mut future).await {
            Ok(output) => return Ok(output),
            Err(_) => tick()?,
        }
    }
}

/// Device and inode number of the file at a path.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|about| (about.dev(), about.ino()))
}

/// Appends `end` to `path`.
pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

/// Removes `<target>.<pid>.part` files of processes that have ended: an earlier version named its parts so.
fn sweep(target: &Path) {
    let (Some(dir), Some(name)) = (target.parent(), target.file_name().and_then(|name| name.to_str())) else {
        return;
    };
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
        let pid = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')?.strip_suffix(".part"));
        let is_gone = pid
            .and_then(|pid| pid.parse::<u32>().ok())
            .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if is_gone && std::fs::remove_file(&path).is_ok() {
            tracing::info!(path = %path.display(), "removed the part of a download whose process is gone");
        }
    }
}
