//! Finds a model's file where Lama Cleaner keeps it, and fetches it when it is missing.
//!
//! Does not: load it, or delete anything that was there before.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use md5::{Digest, Md5};

/// A file of one of upstream's models: where it comes from, its sum, and upstream's variables for both.
#[derive(Debug)]
pub struct UpstreamFile {
    url: &'static str,
    md5: &'static str,
    url_variable: &'static str,
    md5_variable: &'static str,
}

/// Lama's network.
pub const LAMA: UpstreamFile = UpstreamFile {
    url: "https://github.com/Sanster/models/releases/download/add_big_lama/big-lama.pt",
    md5: "e3aa4aaa15225a33ec84f9f4bc47e500",
    url_variable: "LAMA_MODEL_URL",
    md5_variable: "LAMA_MODEL_MD5",
};

/// What finds the lines of a manga's page.
pub const MANGA_LINE: UpstreamFile = UpstreamFile {
    url: "https://github.com/Sanster/models/releases/download/manga/erika.jit",
    md5: "0c926d5a4af8450b0d00bc5b9a095644",
    url_variable: "MANGA_LINE_MODEL_URL",
    md5_variable: "MANGA_LINE_MODEL_MD5",
};

/// What paints between them.
pub const MANGA_INPAINTOR: UpstreamFile = UpstreamFile {
    url: "https://github.com/Sanster/models/releases/download/manga/manga_inpaintor.jit",
    md5: "7d8b269c4613b6b3768af714610da86c",
    url_variable: "MANGA_INPAINTOR_MODEL_URL",
    md5_variable: "MANGA_INPAINTOR_MODEL_MD5",
};

/// A download logs how far it is this often.
const LOG_EVERY: Duration = Duration::from_secs(3);
/// A server that sends nothing for this long has given up.
const STALLED: Duration = Duration::from_secs(60);
const CHUNK_BYTES: usize = 1 << 20;

/// Why a model's file cannot be used. Each text ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// Nothing could be fetched.
    #[error("cannot fetch {url} to {path}: {reason}. Download it by hand to that path{instead}")]
    Fetch {
        /// From where.
        url: String,
        /// To where.
        path: PathBuf,
        /// What happened.
        reason: String,
        /// What else would do.
        instead: String,
    },
    /// The file is not the one that was asked for.
    #[error(
        "{path} (from {origin}) has MD5 {found}, not {wanted}. Replace the file{instead}; nothing was deleted"
    )]
    Md5 {
        /// The file.
        path: PathBuf,
        /// Its URL, or that it was found.
        origin: String,
        /// Its sum.
        found: String,
        /// The sum that was asked for.
        wanted: String,
        /// What else would do.
        instead: String,
    },
    /// The file is there and cannot be read.
    #[error("cannot read {path}: {source}. Check the file and its permissions")]
    Read {
        /// The file.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
    /// No cache directory can be named.
    #[error("cannot tell where model files are kept: set TORCH_HOME, XDG_CACHE_HOME or HOME")]
    NoCache,
}

/// Where a model's file comes from.
#[derive(Debug, Clone)]
pub struct Weights {
    /// An existing path, or a URL.
    place: String,
    /// Checked at every use, because somebody asked for it.
    explicit_md5: Option<String>,
    /// Checked after a download only, as upstream does.
    download_md5: Option<String>,
    /// `<cache>/hub/checkpoints`.
    checkpoints: Option<PathBuf>,
    /// Upstream's names of place and sum, where it has some.
    variables: Option<(String, String)>,
}

impl Weights {
    /// The file, by upstream's variables.
    ///
    /// The built-in sum belongs to the built-in URL: another URL without a sum of its own is taken as it comes.
    #[must_use]
    pub fn new(file: &'static UpstreamFile, env: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name| env(name).filter(|value| !value.is_empty());
        let place = set(file.url_variable);
        let explicit_md5 = set(file.md5_variable);
        let built_in = place.is_none().then(|| file.md5.to_owned());
        Self {
            place: place.unwrap_or_else(|| file.url.to_owned()),
            download_md5: explicit_md5.clone().or(built_in),
            explicit_md5,
            checkpoints: checkpoints(&set),
            variables: Some((file.url_variable.to_owned(), file.md5_variable.to_owned())),
        }
    }

    /// Any other file that upstream keeps in `checkpoints`; `md5` is checked after a download.
    #[must_use]
    pub fn other(
        place: String,
        md5: Option<String>,
        checkpoints: PathBuf,
        variables: Option<(String, String)>,
    ) -> Self {
        Self { place, explicit_md5: None, download_md5: md5, checkpoints: Some(checkpoints), variables }
    }

    /// The same, by the variables of this process.
    #[must_use]
    pub fn of_process(file: &'static UpstreamFile) -> Self {
        Self::new(file, |name| std::env::var(name).ok())
    }

    /// Whether the file is here.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.cached().is_ok_and(|path| path.is_file())
    }

    /// Where the file lies or will lie, and where it comes from, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.cached() {
            Ok(path) if path != Path::new(&self.place) => format!("{} (from {})", path.display(), self.place),
            _ => self.place.clone(),
        }
    }

    /// The path that the file has once it is here.
    fn cached(&self) -> Result<PathBuf, WeightsError> {
        // Upstream, too, takes a URL that is an existing path as the file itself.
        if Path::new(&self.place).exists() {
            return Ok(PathBuf::from(&self.place));
        }
        let path = self.place.split(['?', '#']).next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        Ok(self.checkpoints.as_ref().ok_or(WeightsError::NoCache)?.join(name))
    }

    /// The file, fetched if it is missing.
    ///
    /// A fetch tells `told` how many bytes it has, and of how many where that is known; it ends early if that breaks.
    ///
    /// # Errors
    /// [`WeightsError`].
    pub fn locate(
        &self,
        mut told: impl FnMut(u64, Option<u64>) -> ControlFlow<()>,
    ) -> Result<PathBuf, WeightsError> {
        let path = self.cached()?;
        if !path.exists() {
            self.fetch(&path, &mut told)?;
        } else if let Some(wanted) = &self.explicit_md5 {
            self.check(&path, wanted)?;
        }
        Ok(path)
    }

    fn instead(&self, say: impl FnOnce(&(String, String)) -> String) -> String {
        self.variables.as_ref().map_or_else(String::new, |names| format!(", or {}", say(names)))
    }

    fn check(&self, path: &Path, wanted: &str) -> Result<(), WeightsError> {
        let found = md5_of(path).map_err(|source| WeightsError::Read { path: path.to_owned(), source })?;
        if found.eq_ignore_ascii_case(wanted) {
            return Ok(());
        }
        Err(WeightsError::Md5 {
            path: path.to_owned(),
            origin: self.place.clone(),
            found,
            wanted: wanted.to_owned(),
            instead: self.instead(|(_, md5)| format!("correct {md5} if the file is right")),
        })
    }

    fn fetch(&self, path: &Path, told: Told<'_>) -> Result<(), WeightsError> {
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
        // Beside its final name, so that the rename is atomic and an interrupted download is never loaded.
        let with_end = |end: String| {
            let mut name = path.as_os_str().to_owned();
            name.push(end);
            PathBuf::from(name)
        };
        let partial = with_end(format!(".{}.part", std::process::id()));
        let copied =
            open(&self.place).and_then(|(reader, len)| copy(reader, len, &partial, &self.place, told));
        if let Err(error) = copied {
            // The download is what failed; a part left behind is only untidy.
            let _ = std::fs::remove_file(&partial);
            return Err(failed(error.to_string()));
        }
        if let Some(wanted) = &self.download_md5
            && self.check(&partial, wanted).is_err()
        {
            // Kept for whoever wants to look at it, under a name that is never loaded.
            let wrong = with_end(".mismatch".into());
            std::fs::rename(&partial, &wrong).map_err(|error| failed(error.to_string()))?;
            return self.check(&wrong, wanted);
        }
        std::fs::rename(&partial, path).map_err(|error| failed(error.to_string()))?;
        tracing::info!(path = %path.display(), "model file fetched");
        Ok(())
    }
}

/// Upstream's directory: `CACHE_DIR`, which its server puts into `TORCH_HOME`, then torch's own rules.
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

/// A reader of what `url` names, and its length where that is known.
fn open(url: &str) -> io::Result<(Box<dyn Read>, Option<u64>)> {
    if let Some(path) = url.strip_prefix("file://") {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        return Ok((Box::new(file), Some(len)));
    }
    let agent = ureq::Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(STALLED))
        .timeout_per_read(Some(STALLED))
        .build()
        .new_agent();
    let answer = agent.get(url).call().map_err(io::Error::other)?;
    let body = answer.into_body();
    let len = body.content_length();
    Ok((Box::new(body.into_reader()), len))
}

/// Hears how many bytes of how many are there; breaks to end it.
type Told<'a> = &'a mut dyn FnMut(u64, Option<u64>) -> ControlFlow<()>;

fn copy(
    mut reader: Box<dyn Read>,
    len: Option<u64>,
    path: &Path,
    url: &str,
    told: Told<'_>,
) -> io::Result<()> {
    tracing::info!(url, path = %path.display(), bytes = len, "fetching a model file");
    let mut file = File::create(path)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let (mut done, mut logged) = (0_u64, Instant::now());
    loop {
        let n = match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        file.write_all(&chunk[..n])?;
        done += n as u64;
        if told(done, len).is_break() {
            return Err(io::Error::other("it was stopped"));
        }
        if logged.elapsed() >= LOG_EVERY {
            logged = Instant::now();
            let percent = len.filter(|len| *len > 0).map(|len| done.saturating_mul(100) / len);
            tracing::info!(url, mib = done >> 20, percent, "fetching a model file");
        }
    }
    if len.is_some_and(|len| len != done) {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("the connection ended after {done} bytes"),
        ));
    }
    file.sync_all()
}

fn md5_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut md5 = Md5::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            n => md5.update(&chunk[..n]),
        }
    }
    Ok(md5.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
