//! The base directories of the XDG specification.
//!
//! Does not: create anything.

use std::path::{Path, PathBuf};

use crate::error::ConfigError;

/// The base directories that the environment names. Relative and empty values count as unset, as the
/// specification requires.
#[derive(Clone, Debug, Default)]
pub(crate) struct BaseDirs {
    home: Option<PathBuf>,
    data: Option<PathBuf>,
    config: Option<PathBuf>,
}

impl BaseDirs {
    /// Reads the variables through `get`.
    pub(crate) fn new(get: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let absolute = |name: &str| get(name).filter(|path| path.is_absolute());
        Self { home: absolute("HOME"), data: absolute("XDG_DATA_HOME"), config: absolute("XDG_CONFIG_HOME") }
    }

    pub(crate) fn of_process() -> Self {
        Self::new(|name| std::env::var_os(name).map(PathBuf::from))
    }

    /// The default data directory.
    pub(crate) fn data_dir(&self) -> Result<PathBuf, ConfigError> {
        let base = self.data.clone().or_else(|| Some(self.home.as_ref()?.join(".local/share")));
        base.map(|base| base.join("lamagrid")).ok_or(ConfigError::NoHome {
            what: "the data directory",
            variable: "XDG_DATA_HOME",
            instead: "set `data_dir`",
        })
    }

    /// The default path of the configuration file; `None` if the environment names no home directory.
    pub(crate) fn config_file(&self) -> Option<PathBuf> {
        let base = self.config.clone().or_else(|| Some(self.home.as_ref()?.join(".config")))?;
        Some(base.join("lamagrid/config.toml"))
    }

    /// Makes a configured path absolute: `~` is the home directory; a relative path starts at `base`, or at the
    /// current directory if that is `None`. An empty path stays empty.
    pub(crate) fn resolve(&self, path: &str, base: Option<&Path>) -> Result<PathBuf, ConfigError> {
        if path.is_empty() {
            return Ok(PathBuf::new());
        }
        let path = Path::new(path);
        let path = match path.strip_prefix("~") {
            Err(_) => base.unwrap_or(Path::new("")).join(path),
            Ok(rest) => {
                let home = self.home.as_ref().ok_or(ConfigError::NoHome {
                    what: "the directory `~`",
                    variable: "HOME",
                    instead: "write the path in full",
                })?;
                home.join(rest)
            }
        };
        std::path::absolute(&path).map_err(|source| ConfigError::Io {
            act: "find the absolute path of",
            path,
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(pairs: &[(&str, &str)]) -> BaseDirs {
        BaseDirs::new(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_data_directory_follows_the_specification() {
        let path = |pairs| dirs(pairs).data_dir().unwrap();
        assert_eq!(path(&[("HOME", "/home/a")]), Path::new("/home/a/.local/share/lamagrid"));
        assert_eq!(path(&[("HOME", "/home/a"), ("XDG_DATA_HOME", "/d")]), Path::new("/d/lamagrid"));
        assert_eq!(
            path(&[("HOME", "/home/a"), ("XDG_DATA_HOME", "relative")]),
            Path::new("/home/a/.local/share/lamagrid")
        );
        let text = dirs(&[("HOME", "")]).data_dir().unwrap_err().to_string();
        assert!(text.contains("XDG_DATA_HOME nor HOME") && text.contains("set `data_dir`"), "{text}");
    }

    #[test]
    fn paths_become_absolute() {
        let dirs = dirs(&[("HOME", "/home/a")]);
        let resolve = |path, base: Option<&str>| dirs.resolve(path, base.map(Path::new)).unwrap();
        assert_eq!(resolve("", Some("/etc")), Path::new(""));
        assert_eq!(resolve("~/x", Some("/etc")), Path::new("/home/a/x"));
        assert_eq!(resolve("~", None), Path::new("/home/a"));
        assert_eq!(resolve("x/y", Some("/etc")), Path::new("/etc/x/y"));
        assert_eq!(resolve("/x", Some("/etc")), Path::new("/x"));
        assert_eq!(resolve("x", None), std::env::current_dir().unwrap().join("x"));
    }
}
