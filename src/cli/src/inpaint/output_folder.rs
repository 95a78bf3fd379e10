//! Writes results into OUT: under a temporary name first, so that no reader sees a part of a file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use lamagrid_domain::{PictureFormat, TaskId};

use super::manifest::sync_folder;

/// The treatment of a file in OUT that an earlier run did not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Keep,
    Replace,
}

/// The folder of the results.
#[derive(Debug, Clone)]
pub(crate) struct OutputFolder {
    root: PathBuf,
    pub(crate) existing: Existing,
}

impl OutputFolder {
    pub(crate) fn new(root: &Path, existing: Existing) -> Self {
        Self { root: root.to_owned(), existing }
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Hash of a file; `None` if it does not exist.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn hash_of(&self, relative: &str) -> io::Result<Option<String>> {
        match fs::read(self.path(relative)) {
            Ok(bytes) => Ok(Some(hex(&lamagrid_protocol::hash(&bytes)[..]))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a file and its name to the disk.
    ///
    /// # Errors
    /// If the folder cannot be made or the file cannot be written.
    pub(crate) fn write(&self, relative: &str, bytes: &[u8], task: TaskId) -> io::Result<()> {
        let path = self.path(relative);
        let folder = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder)?;
        let temporary = folder.join(format!(".lamagrid-{task}.part"));
        let written = File::create(&temporary)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&temporary, &path))
            .and_then(|()| sync_folder(folder));
        if written.is_err() {
            // After a full disk the part would keep the space.
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

/// The name of a result below OUT: the picture's own, with another ending if another format is wanted.
pub(crate) fn result_name(relative: &Path, format: Option<PictureFormat>) -> PathBuf {
    match format {
        None => relative.to_owned(),
        Some(format) => {
            let ending = relative.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
            let fits = ending.as_deref() == Some(format.as_str())
                || (format == PictureFormat::Jpeg && ending.as_deref() == Some("jpg"));
            let usual = if format == PictureFormat::Jpeg { "jpg" } else { format.as_str() };
            if fits { relative.to_owned() } else { relative.with_extension(usual) }
        }
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_their_names_unless_the_format_differs() {
        for (name, format, result) in [
            ("a/b.JPG", None, "a/b.JPG"),
            ("a/b.JPG", Some(PictureFormat::Jpeg), "a/b.JPG"),
            ("a/b.JPG", Some(PictureFormat::Png), "a/b.png"),
            ("a/b.c.tif", Some(PictureFormat::Jpeg), "a/b.c.jpg"),
            ("b", Some(PictureFormat::Webp), "b.webp"),
        ] {
            assert_eq!(result_name(Path::new(name), format), Path::new(result), "{name}");
        }
    }

    #[test]
    fn a_file_is_written_whole_and_leaves_no_part() {
        let dir = tempfile::tempdir().unwrap();
        let out = OutputFolder::new(dir.path(), Existing::Keep);
        let task = "000102030405060708090a0b0c0d0e0f".parse().unwrap();
        assert_eq!(out.hash_of("a/b.png").unwrap(), None);
        out.write("a/b.png", b"first", task).unwrap();
        let first = out.hash_of("a/b.png").unwrap();
        out.write("a/b.png", b"second", task).unwrap();
        assert_ne!(out.hash_of("a/b.png").unwrap(), first);
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
    }
}
