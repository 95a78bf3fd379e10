//! Finds the libtorch that the worker links, without linking it: a program with a missing library ends before its
//! `main`, so it cannot report which package to install.
//!
//! Does not: load it. The worker's exit status shows whether it loads.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The version whose C++ interface the worker was built for.
pub const WANTED: &str = "2.11.0";
/// The variable that names a directory with libtorch; it is searched first.
pub const VARIABLE: &str = "LAMAGRID_LIBTORCH";
/// A library that is part of every libtorch.
const LIBRARY: &str = "libtorch_cpu.so";
/// Python code that locates torch without importing it, because an import takes seconds.
const ASK_PYTHON: &str =
    "import importlib.util as u; s = u.find_spec('torch'); print((s and s.origin) or '')";

/// Why no usable libtorch was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LibtorchError {
    /// No libtorch was found.
    #[error(
        "the torch backend needs libtorch {WANTED} and found none ({looked}). Run `pip install torch=={WANTED}` in the environment of this program, or set {VARIABLE} to a directory with {LIBRARY}"
    )]
    Missing {
        /// The places that were searched, with the result of each.
        looked: String,
    },
    /// A libtorch of another version was found.
    #[error(
        "the torch backend needs libtorch {WANTED} and found {found} in {dir}. Run `pip install torch=={WANTED}`, or set {VARIABLE} to a directory with that version"
    )]
    Version {
        /// The version that was found.
        found: String,
        /// Its directory.
        dir: PathBuf,
    },
    /// The version is right, but the worker did not start with it.
    #[error(
        "the torch backend could not load libtorch {WANTED} from {dir}; the loader's reason stands above. Reinstall it: `pip install --force-reinstall torch=={WANTED}`"
    )]
    Unloadable {
        /// Its directory.
        dir: PathBuf,
    },
}

/// A Python that could not be asked for its torch package.
#[derive(Debug, thiserror::Error)]
#[error("{python} does not start: {source}")]
struct PythonError {
    python: PathBuf,
    source: std::io::Error,
}

/// A directory with the libraries of libtorch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Libtorch {
    /// The directory of libtorch.
    pub dir: PathBuf,
    /// The version that its files state; `None` if they state none.
    pub version: Option<String>,
}

/// Searches for libtorch: [`VARIABLE`], `LIBTORCH`, then the torch package of the Python in `own_dir` and of
/// those on the path.
///
/// # Errors
/// [`LibtorchError::Missing`] or [`LibtorchError::Version`].
pub fn find(own_dir: &Path, env: impl Fn(&str) -> Option<String>) -> Result<Libtorch, LibtorchError> {
    let mut looked = Vec::new();
    for variable in [VARIABLE, "LIBTORCH"] {
        let Some(given) = env(variable).filter(|value| !value.is_empty()) else { continue };
        return match library_dir(Path::new(&given)) {
            Some(dir) => checked(dir),
            None => Err(LibtorchError::Missing { looked: format!("{variable}={given} has no {LIBRARY}") }),
        };
    }
    // First the interpreter of the environment that this program was installed into.
    let beside = own_dir.join("python3");
    let mut pythons = vec![PathBuf::from("python3"), PathBuf::from("python")];
    if beside.exists() {
        pythons.insert(0, beside);
    }
    let mut other_version = None;
    for python in pythons {
        match ask(&python) {
            Ok(Some(package)) => match library_dir(&package).map(checked) {
                Some(Ok(found)) => return Ok(found),
                Some(Err(error)) => other_version = other_version.or(Some(error)),
                None => looked.push(format!("{} has no {LIBRARY}", package.display())),
            },
            Ok(None) => looked.push(format!("{} has no torch", python.display())),
            Err(error) => looked.push(error.to_string()),
        }
    }
    Err(other_version.unwrap_or_else(|| LibtorchError::Missing { looked: looked.join("; ") }))
}

/// `dir` or its subdirectory `lib`: the one that holds the libraries.
fn library_dir(dir: &Path) -> Option<PathBuf> {
    [dir.to_owned(), dir.join("lib")].into_iter().find(|dir| dir.join(LIBRARY).exists())
}

fn checked(dir: PathBuf) -> Result<Libtorch, LibtorchError> {
    let version = version_of(&dir);
    match &version {
        // `2.11.0+cu130` and `2.11.0+cpu` have the same interface.
        Some(found) if found.split('+').next() != Some(WANTED) => {
            Err(LibtorchError::Version { found: found.clone(), dir })
        }
        _ => Ok(Libtorch { dir, version }),
    }
}

/// The version that the Python package or the C++ archive around `lib` states.
fn version_of(lib: &Path) -> Option<String> {
    let package = lib.parent()?;
    let plain = std::fs::read_to_string(package.join("build-version")).ok();
    let python = || {
        let text = std::fs::read_to_string(package.join("version.py")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        Some(line.trim_matches(['\'', '"', ' ']).to_owned())
    };
    plain.map(|text| text.trim().to_owned()).or_else(python)
}

/// The directory of the torch package of `python`.
fn ask(python: &Path) -> Result<Option<PathBuf>, PythonError> {
    let said = Command::new(python)
        .args(["-c", ASK_PYTHON])
        .output()
        .map_err(|source| PythonError { python: python.to_owned(), source })?;
    let origin = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    Ok(Path::new(&origin).parent().filter(|_| !origin.is_empty()).map(Path::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(version: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("lib")).unwrap();
        std::fs::write(dir.path().join("lib").join(LIBRARY), b"").unwrap();
        std::fs::write(dir.path().join("version.py"), format!("__version__ = '{version}'\ncuda = None\n"))
            .unwrap();
        dir
    }

    fn find_in(dir: &Path) -> Result<Libtorch, LibtorchError> {
        let dir = dir.to_str().unwrap().to_owned();
        find(Path::new("/nonexistent"), |name| (name == VARIABLE).then(|| dir.clone()))
    }

    #[test]
    fn the_wanted_version_is_found_in_the_package_and_in_its_lib() {
        let dir = package("2.11.0+cpu");
        let wanted = Libtorch { dir: dir.path().join("lib"), version: Some("2.11.0+cpu".into()) };
        assert_eq!(find_in(dir.path()).unwrap(), wanted);
        assert_eq!(find_in(&dir.path().join("lib")).unwrap(), wanted);
    }

    #[test]
    fn errors_about_another_version_and_none_name_the_remedy() {
        let dir = package("2.9.1+cu128");
        let text = find_in(dir.path()).unwrap_err().to_string();
        for part in ["2.11.0", "2.9.1+cu128", dir.path().to_str().unwrap(), "pip install torch==2.11.0"] {
            assert!(text.contains(part), "{text}");
        }
        let empty = tempfile::tempdir().unwrap();
        let text = find_in(empty.path()).unwrap_err().to_string();
        assert!(text.contains("pip install torch==2.11.0") && text.contains(LIBRARY), "{text}");
    }

    #[test]
    fn the_python_beside_the_program_is_asked_first() {
        use std::os::unix::fs::PermissionsExt;
        let (package, bin) = (package("2.11.0"), tempfile::tempdir().unwrap());
        let python = bin.path().join("python3");
        let script = format!("#!/bin/sh\necho {}/__init__.py\n", package.path().display());
        std::fs::write(&python, script).unwrap();
        std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find(bin.path(), |_| None).unwrap().dir, package.path().join("lib"));
    }
}
