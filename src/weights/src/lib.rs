//! Finds a model's file where Lama Cleaner keeps it, and downloads it if it is missing.
//!
//! Does not: load the file, or delete existing ones.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use md5::{Digest, Md5};
use sha2::Sha256;

use download::{Part, beside};

mod download;
mod ledger;
mod proxy;

pub use ledger::Ledger;

/// A file of one of upstream's models: its URL, its MD5 sum, and upstream's variables that override them.
#[derive(Debug)]
pub struct UpstreamFile {
    url: &'static str,
    md5: &'static str,
    url_variable: &'static str,
    md5_variable: &'static str,
}

impl UpstreamFile {
    /// The environment variable that overrides the URL.
    #[must_use]
    pub const fn url_variable(&self) -> &'static str {
        self.url_variable
    }
}

/// The network of the `lama` model.
pub const LAMA: UpstreamFile = UpstreamFile {
    url: "https://github.com/Sanster/models/releases/download/add_big_lama/big-lama.pt",
    md5: "e3aa4aaa15225a33ec84f9f4bc47e500",
    url_variable: "LAMA_MODEL_URL",
    md5_variable: "LAMA_MODEL_MD5",
};

/// The `manga` model's network that detects lines.
pub const MANGA_LINE: UpstreamFile = UpstreamFile {
    url: "https://github.com/Sanster/models/releases/download/manga/erika.jit",
    md5: "0c926d5a4af8450b0d00bc5b9a095644",
    url_variable: "MANGA_LINE_MODEL_URL",
    md5_variable: "MANGA_LINE_MODEL_MD5",
};

/// The `manga` model's network that inpaints between the lines.
pub const MANGA_INPAINTOR: UpstreamFile = UpstreamFile {
    url: "https://github.com/Sanster/models/releases/download/manga/manga_inpaintor.jit",
    md5: "7d8b269c4613b6b3768af714610da86c",
    url_variable: "MANGA_INPAINTOR_MODEL_URL",
    md5_variable: "MANGA_INPAINTOR_MODEL_MD5",
};

const CHUNK_BYTES: usize = 1 << 20;

/// Why a model's file cannot be used. Each text ends with a remedy.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file could not be downloaded.
    #[error("cannot fetch {url} to {path}: {reason}. Download it by hand to that path{instead}")]
    Fetch {
        /// The URL.
        url: String,
        /// The path of the missing file.
        path: PathBuf,
        /// The error.
        reason: String,
        /// An alternative remedy, or empty.
        instead: String,
    },
    /// The file has another sum than the requested one.
    #[error(
        "{path} (from {origin}) has {found}, not {wanted}. Replace the file{instead}; nothing was deleted"
    )]
    Sum {
        /// The file.
        path: PathBuf,
        /// The URL or path it comes from.
        origin: String,
        /// The file's sum, with its name.
        found: String,
        /// The requested sum.
        wanted: String,
        /// An alternative remedy, or empty.
        instead: String,
    },
    /// The file exists but cannot be read.
    #[error("cannot read {path}: {source}. Check the file and its permissions")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// No variable names a cache directory.
    #[error("cannot tell where model files are kept: set TORCH_HOME, XDG_CACHE_HOME or HOME")]
    NoCache,
}

/// Whether a sum shows that a file is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmed {
    /// The file has the sum.
    Yes,
    /// No sum of it is known, or it is another file than upstream's.
    No,
}

/// One model file: its origin, its sum, and its place in the cache.
#[derive(Debug, Clone)]
pub struct Weights {
    /// An existing path or a URL.
    place: String,
    /// A sum that the user configured, checked at every use.
    explicit_sum: Option<Sum>,
    /// The sum to check after a download; an existing file is not checked, as in upstream.
    download_sum: Option<Sum>,
    /// The directory `<cache>/hub/checkpoints`; `None` if no cache directory can be named.
    checkpoints: Option<PathBuf>,
    /// Where the file is kept, if not in `checkpoints` under the URL's name.
    kept_at: Option<PathBuf>,
    /// Upstream's variables for URL and sum, if the file has such.
    variables: Option<(String, String)>,
    /// For proxies and authorities.
    environment: Environment,
}

/// A copy of environment variables: a download may run while another thread of the program changes them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Environment(Arc<BTreeMap<String, String>>);

impl Environment {
    /// Copies the variables of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let texts =
            |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        Self(Arc::new(std::env::vars_os().filter_map(texts).collect()))
    }

    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(pairs: [(&str, &str); N]) -> Self {
        pairs.as_slice().into()
    }
}

impl From<&[(&str, &str)]> for Environment {
    fn from(pairs: &[(&str, &str)]) -> Self {
        Self(Arc::new(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()))
    }
}

impl Weights {
    /// Describes an upstream file; `environment` holds upstream's variables, proxies and authorities.
    ///
    /// The built-in sum applies to the built-in URL only: a file from another URL is not checked unless its sum is configured.
    #[must_use]
    pub fn new(file: &'static UpstreamFile, environment: Environment) -> Self {
        let set = |name| environment.get(name).filter(|value| !value.is_empty());
        let place = set(file.url_variable);
        let explicit_sum = set(file.md5_variable).map(Sum::Md5);
        let built_in = place.is_none().then(|| Sum::Md5(file.md5.to_owned()));
        Self {
            place: place.unwrap_or_else(|| file.url.to_owned()),
            download_sum: explicit_sum.clone().or(built_in),
            explicit_sum,
            checkpoints: checkpoints(&set),
            kept_at: None,
            variables: Some((file.url_variable.to_owned(), file.md5_variable.to_owned())),
            environment,
        }
    }

    /// Describes any other file that upstream keeps in `checkpoints`; `md5` is checked after a download.
    #[must_use]
    pub fn other(
        place: String,
        md5: Option<String>,
        checkpoints: PathBuf,
        variables: Option<(String, String)>,
    ) -> Self {
        Self {
            place,
            explicit_sum: None,
            download_sum: md5.map(Sum::Md5),
            checkpoints: Some(checkpoints),
            kept_at: None,
            variables,
            environment: Environment::of_process(),
        }
    }

    /// Describes a file of the configuration: downloaded from `url` to `path`, or to its name in Lama Cleaner's directory if
    /// `path` is empty; without `url` it must be at `path`. A SHA-256 sum is checked at every use.
    #[must_use]
    pub fn configured(url: &str, path: &Path, sha256: &str, environment: Environment) -> Self {
        let set = |name| environment.get(name).filter(|value| !value.is_empty());
        let sum = (!sha256.is_empty()).then(|| Sum::Sha256(sha256.to_owned()));
        let kept_at = (!path.as_os_str().is_empty()).then(|| path.to_owned());
        Self {
            place: if url.is_empty() { path.to_string_lossy().into_owned() } else { url.to_owned() },
            download_sum: sum.clone(),
            explicit_sum: sum,
            checkpoints: checkpoints(&set),
            kept_at,
            variables: None,
            environment,
        }
    }

    /// Upstream's variable for the URL, if the file has one.
    #[must_use]
    pub fn url_variable(&self) -> Option<&str> {
        self.variables.as_ref().map(|(url, _)| url.as_str())
    }

    /// True if the file is on this host.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.cached().is_ok_and(|path| path.is_file())
    }

    /// The file's path and origin, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.cached() {
            Ok(path) if path != Path::new(&self.place) => format!("{} (from {})", path.display(), self.place),
            _ => self.place.clone(),
        }
    }

    /// The path at which the file is, or will be after a download.
    fn cached(&self) -> Result<PathBuf, WeightsError> {
        if let Some(path) = &self.kept_at {
            return Ok(path.clone());
        }
        // Like upstream, a URL that is an existing path is taken as the file itself.
        if Path::new(&self.place).exists() {
            return Ok(PathBuf::from(&self.place));
        }
        let path = self.place.split(['?', '#']).next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        Ok(self.checkpoints.as_ref().ok_or(WeightsError::NoCache)?.join(name))
    }

    /// Returns the file's path, after downloading it if it is missing.
    ///
    /// A download calls `on_progress` with the bytes done and, if known, the total; it stops when `on_progress` returns `Break`.
    ///
    /// # Errors
    /// [`WeightsError`].
    pub fn locate(
        &self,
        mut on_progress: impl FnMut(u64, Option<u64>) -> ControlFlow<()>,
    ) -> Result<PathBuf, WeightsError> {
        let path = self.cached()?;
        if !path.exists() {
            self.fetch(&path, &mut on_progress)?;
        } else if let Some(wanted) = &self.explicit_sum {
            self.check(&path, wanted)?;
        }
        Ok(path)
    }

    /// The name of the check that shows that the file is right, if its sum is known.
    #[must_use]
    pub fn sum_check(&self) -> Option<String> {
        self.download_sum.as_ref().map(|sum| sum.to_string().replace(' ', ":"))
    }

    /// True if the user configured the sum, so that a file with another one is not used.
    #[must_use]
    pub fn requires_sum(&self) -> bool {
        self.explicit_sum.is_some()
    }

    /// Compares an existing file with its sum. A file that differs from upstream's own sum is used all the same, as upstream
    /// uses it, but is not confirmed.
    ///
    /// # Errors
    /// [`WeightsError`] if the file cannot be read, or differs from a sum that the user configured.
    pub fn confirm(&self) -> Result<Confirmed, WeightsError> {
        let Some(wanted) = &self.download_sum else { return Ok(Confirmed::No) };
        match self.check(&self.cached()?, wanted) {
            Ok(()) => Ok(Confirmed::Yes),
            Err(error @ WeightsError::Sum { .. }) if self.explicit_sum.is_none() => {
                tracing::warn!(%error, "a model's file is not upstream's");
                Ok(Confirmed::No)
            }
            Err(error) => Err(error),
        }
    }

    /// Downloads the file and replaces an existing one; `on_progress` is as in [`Weights::locate`].
    ///
    /// # Errors
    /// [`WeightsError`]; an existing file is kept then.
    pub fn replace(
        &self,
        mut on_progress: impl FnMut(u64, Option<u64>) -> ControlFlow<()>,
    ) -> Result<PathBuf, WeightsError> {
        let path = self.cached()?;
        self.fetch(&path, &mut on_progress)?;
        Ok(path)
    }

    /// The path at which the file is or will be; `None` if no cache directory can be named.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        self.cached().ok()
    }

    /// True if the file is on this host or can be downloaded.
    #[must_use]
    pub fn can_be_had(&self) -> bool {
        self.place.contains("://") || self.is_present()
    }

    fn instead(&self, say: impl FnOnce(&(String, String)) -> String) -> String {
        self.variables.as_ref().map_or_else(String::new, |names| format!(", or {}", say(names)))
    }

    fn check(&self, path: &Path, wanted: &Sum) -> Result<(), WeightsError> {
        let found =
            wanted.of_file(path).map_err(|source| WeightsError::Read { path: path.to_owned(), source })?;
        if found == *wanted {
            return Ok(());
        }
        Err(WeightsError::Sum {
            path: path.to_owned(),
            origin: self.place.clone(),
            found: found.to_string(),
            wanted: wanted.text().to_owned(),
            instead: self.instead(|(_, md5)| format!("correct {md5} if the file is right")),
        })
    }

    fn fetch(&self, path: &Path, on_progress: OnProgress<'_>) -> Result<(), WeightsError> {
        let failed = |reason: String| WeightsError::Fetch {
            url: self.place.clone(),
            path: path.to_owned(),
            reason,
            instead: self.instead(|(url, _)| format!("point {url} to a file that is here")),
        };
        if path.file_name().is_none() || !self.place.contains("://") {
            return Err(failed("it is neither an existing file nor a URL".into()));
        }
        let dir = path.parent().ok_or(WeightsError::NoCache)?;
        std::fs::create_dir_all(dir)
            .map_err(|error| failed(format!("cannot make {}: {error}", dir.display())))?;
        // Downloaded beside its final name, so that the rename is atomic and a partial file is never loaded.
        let Some(mut part) = Part::take(path, on_progress).map_err(|error| failed(error.to_string()))? else {
            return Ok(());
        };
        loop {
            let resumed =
                match part.fetch(&self.place, self.download_sum.is_some(), &self.environment, on_progress) {
                    Ok(resumed) => resumed,
                    Err(error) => {
                        let kept = part.len();
                        let mut reason = error.to_string();
                        if kept > 0 {
                            let part = part.path().display();
                            reason.push_str(&format!(
                                "; {kept} bytes are kept in {part}, and the next try goes on from there"
                            ));
                        }
                        part.give_up();
                        return Err(failed(reason));
                    }
                };
            let Some(wanted) = &self.download_sum else { break };
            match self.check(part.path(), wanted) {
                Ok(()) => break,
                // The resumed part may have belonged to another file.
                Err(WeightsError::Sum { .. }) if resumed => {
                    tracing::warn!(path = %path.display(), "the two parts of a download do not fit: fetching all of it");
                    part.empty().map_err(|error| failed(error.to_string()))?;
                }
                Err(_) => {
                    // Kept for inspection, under a name that is never loaded.
                    let wrong = beside(path, ".mismatch");
                    part.rename(&wrong).map_err(|error| failed(error.to_string()))?;
                    return self.check(&wrong, wanted);
                }
            }
        }
        part.rename(path).map_err(|error| failed(error.to_string()))?;
        tracing::info!(path = %path.display(), "model file fetched");
        Ok(())
    }
}

/// Receives the bytes done and, if known, the total; returns `Break` to stop the download.
type OnProgress<'a> = &'a mut dyn FnMut(u64, Option<u64>) -> ControlFlow<()>;

/// Upstream's directory for model files: `CACHE_DIR`, which upstream copies to `TORCH_HOME`, then torch's own rules.
fn checkpoints(set: &impl Fn(&'static str) -> Option<String>) -> Option<PathBuf> {
    let home = set("HOME").map(PathBuf::from);
    let expanded = |text: String| match (text.strip_prefix('~'), &home) {
        (Some(""), Some(home)) => home.clone(),
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(text),
    };
    let torch_home = set("CACHE_DIR")
        .or_else(|| set("TORCH_HOME"))
        .map(expanded)
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| expanded(cache).join("torch")))
        .or_else(|| Some(home.clone()?.join(".cache/torch")))?;
    Some(torch_home.join("hub/checkpoints"))
}

/// A sum of a file's bytes, in hexadecimal digits; their case does not matter.
#[derive(Debug, Clone)]
enum Sum {
    Md5(String),
    Sha256(String),
}

impl Sum {
    /// The same kind of sum, of the file's bytes.
    fn of_file(&self, path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(match self {
            Self::Md5(_) => Self::Md5(digest(file, Md5::new())?),
            Self::Sha256(_) => Self::Sha256(digest(file, Sha256::new())?),
        })
    }

    fn text(&self) -> &str {
        match self {
            Self::Md5(text) | Self::Sha256(text) => text,
        }
    }
}

impl PartialEq for Sum {
    fn eq(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
            && self.text().eq_ignore_ascii_case(other.text())
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Md5(_) => "MD5",
            Self::Sha256(_) => "SHA-256",
        };
        write!(f, "{name} {}", self.text())
    }
}

fn digest(mut file: File, mut digest: impl Digest) -> io::Result<String> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            n => digest.update(&chunk[..n]),
        }
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests;
