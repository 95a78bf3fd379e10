//! Notices when a file with a certificate is replaced.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A file whose certificate is in use, and is replaced by a newer one before it ends.
#[derive(Debug)]
pub struct CertificateFile {
    path: PathBuf,
    /// Its modification time when it was read last; `None` if it was not there.
    read_at: Option<SystemTime>,
}

impl CertificateFile {
    /// Call it before the first read, so that a change in between is noticed.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        let read_at = modified(&path);
        Self { path, read_at }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file with `read` if it was replaced. A failure is logged; the change is not tried again.
    pub fn renewed<T, E: Display>(&mut self, read: impl FnOnce(&Path) -> Result<T, E>) -> Option<T> {
        let at = modified(&self.path).filter(|at| Some(*at) != self.read_at)?;
        self.read_at = Some(at);
        match read(&self.path) {
            Ok(renewed) => {
                tracing::info!(path = %self.path.display(), "the certificate was renewed");
                Some(renewed)
            }
            Err(reason) => {
                tracing::error!(path = %self.path.display(), %reason, "the new certificate is not used");
                None
            }
        }
    }
}

/// When a file was last changed; `None` if that cannot be read.
pub(crate) fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|found| found.modified()).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_change_is_read_once_even_if_it_fails() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("own.pem");
        let write = |text: &str, second: u64| {
            std::fs::write(&path, text).unwrap();
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
        };
        write("a", 1);
        let mut file = CertificateFile::new(path.clone());
        let read = |path: &Path| std::fs::read_to_string(path);
        assert_eq!(file.renewed(read), None);
        write("b", 2);
        assert_eq!(file.renewed(read).as_deref(), Some("b"));
        assert_eq!(file.renewed(read), None);
        write("c", 3);
        assert_eq!(file.renewed(|_| Err::<String, _>("broken")), None);
        assert_eq!(file.renewed(read), None, "it is not tried again");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.renewed(read), None);
        write("d", 4);
        assert_eq!(file.renewed(read).as_deref(), Some("d"));
    }
}
