//! Remembers models that could not be loaded, and loads them again once one of their files has changed.
//!
//! Does not: report to the session; the loop that owns it does.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use lamagrid_domain::ModelName;

use super::{Backend, SilentProgress};

/// Identifies a version of a file by inode, length and modification time; `None` if the file cannot be inspected.
type Version = Option<(u64, u64, i64, i64)>;

/// The models that failed to load, each with the versions of its files at that time.
#[derive(Debug, Default)]
pub(super) struct BrokenModels(BTreeMap<ModelName, Vec<(PathBuf, Version)>>);

impl BrokenModels {
    /// Records that the last task of a model failed because the model could not be loaded.
    pub(super) fn record_failure(&mut self, model: &ModelName, backend: &dyn Backend) {
        self.0.insert(model.clone(), versions(backend.files(model)));
    }

    /// Records that the model was loaded for its last task.
    pub(super) fn record_success(&mut self, model: &ModelName) {
        self.0.remove(model);
    }

    /// Loads the models whose files have changed since they failed; returns those that were loaded.
    pub(super) fn reload_changed(&mut self, backend: &mut dyn Backend) -> Vec<ModelName> {
        let has_changed = |(path, version): &(PathBuf, Version)| version_of(path) != *version;
        let changed: Vec<ModelName> = self
            .0
            .iter()
            .filter(|(_, files)| files.iter().any(has_changed))
            .map(|(model, _)| model.clone())
            .collect();
        let mut loaded = Vec::new();
        for model in changed {
            let files = versions(backend.files(&model));
            let load = AssertUnwindSafe(|| backend.load(&model, &SilentProgress));
            match catch_unwind(load) {
                Ok(Ok(_)) => {
                    tracing::info!(%model, "the model's file has changed, and it is loaded now");
                    self.0.remove(&model);
                    loaded.push(model);
                }
                Ok(Err(failure)) => {
                    tracing::warn!(%model, reason = failure.message, "the model's file has changed, and it still cannot be loaded");
                    self.0.insert(model, files);
                }
                Err(_) => {
                    tracing::warn!(%model, "the model's file has changed, and loading it panicked");
                    self.0.insert(model, files);
                }
            }
        }
        loaded
    }
}

fn versions(files: Vec<PathBuf>) -> Vec<(PathBuf, Version)> {
    files
        .into_iter()
        .map(|path| {
            let version = version_of(&path);
            (path, version)
        })
        .collect()
}

fn version_of(path: &PathBuf) -> Version {
    let about = std::fs::metadata(path).ok()?;
    Some((about.ino(), about.len(), about.mtime(), about.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use lamagrid_domain::{Failure, FailureKind, ModelOffer};

    use super::super::{Answer, Progress, Work};
    use super::*;

    /// A backend whose model loads if its file contains "good".
    struct OneFile {
        path: PathBuf,
        loads: usize,
    }

    impl Backend for OneFile {
        fn models(&self) -> Vec<ModelOffer> {
            Vec::new()
        }

        fn files(&self, _model: &ModelName) -> Vec<PathBuf> {
            vec![self.path.clone()]
        }

        fn load(&mut self, _model: &ModelName, _progress: &dyn Progress) -> Result<Duration, Failure> {
            self.loads += 1;
            match std::fs::read(&self.path) {
                Ok(text) if text == b"good" => Ok(Duration::ZERO),
                Ok(text) if text == b"panic" => panic!("of the file"),
                _ => Err(Failure::new(FailureKind::ModelLoad, "bad".to_owned())),
            }
        }

        fn run(&mut self, _work: Work<'_>, _progress: &dyn Progress) -> Result<Answer, Failure> {
            unreachable!("nothing is run")
        }
    }

    #[test]
    fn a_model_is_loaded_again_once_for_each_change_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.pt");
        // A new file each time, as when a user replaces it: two quick writes may get the same modification time.
        let put = |path: &Path, text: &[u8]| {
            let new = path.with_extension("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(&new, path).unwrap();
        };
        let (mut backend, mut broken) = (OneFile { path: path.clone(), loads: 0 }, BrokenModels::default());
        let model: ModelName = "lama".parse().unwrap();
        put(&path, b"bad");
        broken.record_failure(&model, &backend);
        assert!(broken.reload_changed(&mut backend).is_empty());
        assert_eq!(backend.loads, 0, "nothing has changed");
        for (text, loads) in [(b"panic".as_slice(), 1), (b"still bad", 2)] {
            put(&path, text);
            assert!(broken.reload_changed(&mut backend).is_empty());
            assert!(broken.reload_changed(&mut backend).is_empty());
            assert_eq!(backend.loads, loads);
        }
        std::fs::remove_file(&path).unwrap();
        assert!(broken.reload_changed(&mut backend).is_empty());
        put(&path, b"good");
        assert_eq!(broken.reload_changed(&mut backend), std::slice::from_ref(&model));
        assert!(broken.reload_changed(&mut backend).is_empty());
        put(&path, b"bad");
        broken.record_failure(&model, &backend);
        broken.record_success(&model);
        put(&path, b"good");
        assert!(broken.reload_changed(&mut backend).is_empty(), "it works: a task of it was done");
    }
}
