//! The private directory for the sockets of one data directory.
//!
//! Does not: bind or remove sockets, or decide who owns the data directory.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::ConfigError;

/// Bytes of a socket's address, `sun_path`, without its closing zero.
const SUN_PATH_MAX: usize = 107;

/// Bytes kept for what follows the directory; the longest is `/lane-<16 hex>-<8 hex>.sock`.
const SOCKET_NAME_MAX: usize = 60;

/// What the socket directory depends on, besides the data directory.
struct Surroundings {
    xdg_runtime_dir: Option<PathBuf>,
    temp_dir: PathBuf,
    uid: u32,
}

/// Makes, if need be, and checks the directory for the sockets of this data directory.
///
/// It is `$XDG_RUNTIME_DIR/lamagrid/<8 hex>` if that variable names a directory of this user, else
/// `<temporary directory>/lamagrid-<uid>/<8 hex>`. The digits are a hash of the data directory's
/// canonical path, so every process that is given the same data directory finds the same sockets.
///
/// # Errors
/// [`ConfigError::PathTooLong`] if no socket's address would fit, [`ConfigError::NotPrivate`] if a
/// directory is somebody else's or open to others, [`ConfigError::Io`] if it cannot be made.
pub fn runtime_dir(data_dir: &Path) -> Result<PathBuf, ConfigError> {
    let surroundings = Surroundings {
        xdg_runtime_dir: std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
        temp_dir: std::env::temp_dir(),
        uid: rustix::process::getuid().as_raw(),
    };
    runtime_dir_in(data_dir, &surroundings)
}

fn runtime_dir_in(data_dir: &Path, around: &Surroundings) -> Result<PathBuf, ConfigError> {
    let name = short_hash(canonical(data_dir)?.as_os_str().as_bytes());
    // After `su` or in a container the variable may name another user's directory, or none.
    let own_xdg = around.xdg_runtime_dir.as_ref().filter(|path| {
        path.is_absolute()
            && fs::metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == around.uid)
    });
    let (parent, variable) = match own_xdg {
        Some(xdg) => (xdg.join("lamagrid"), "XDG_RUNTIME_DIR"),
        None => (absolute(&around.temp_dir)?.join(format!("lamagrid-{}", around.uid)), "TMPDIR"),
    };
    let path = parent.join(name);
    let (length, limit) = (path.as_os_str().len(), SUN_PATH_MAX - SOCKET_NAME_MAX);
    if length > limit {
        return Err(ConfigError::PathTooLong { path, length, limit, variable });
    }
    make_private(&parent, around.uid)?;
    make_private(&path, around.uid)?;
    Ok(path)
}

/// Makes the directory, or checks that an existing one is this user's and nobody else's.
fn make_private(path: &Path, uid: u32) -> Result<(), ConfigError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(io_error("make the socket directory", path, source)),
    }
    // Without following a link: a link in the temporary directory may be somebody's trap.
    let found = fs::symlink_metadata(path)
        .map_err(|source| io_error("look at the socket directory", path, source))?;
    let wrong = if !found.is_dir() {
        "it is not a directory".to_owned()
    } else if found.uid() != uid {
        format!("its owner is user {}, not {uid}", found.uid())
    } else if found.mode() & 0o077 != 0 {
        format!("its mode is {:04o}", found.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(ConfigError::NotPrivate { path: path.to_owned(), found: wrong })
}

/// The canonical path, also of a directory that does not exist yet: the part that exists is
/// resolved, so that making the rest later does not change the answer.
fn canonical(path: &Path) -> Result<PathBuf, ConfigError> {
    let path = absolute(path)?;
    for existing in path.ancestors() {
        match existing.canonicalize() {
            Ok(found) => {
                let rest = path.strip_prefix(existing).unwrap_or(Path::new(""));
                return Ok(if rest.as_os_str().is_empty() { found } else { found.join(rest) });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(io_error("resolve the data directory", existing, source)),
        }
    }
    Ok(path)
}

fn absolute(path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path).map_err(|source| io_error("find the absolute path of", path, source))
}

fn io_error(act: &'static str, path: &Path, source: io::Error) -> ConfigError {
    ConfigError::Io { act, path: path.to_owned(), source }
}

/// FNV-1a of 64 bits, both halves folded: stable over versions and machines, unlike std's hashers.
fn short_hash(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn temp() -> tempfile::TempDir {
        // Not `TMPDIR`: the tests' own paths must be short.
        tempfile::tempdir_in("/tmp").unwrap()
    }

    fn around(xdg: Option<&Path>, temp_dir: &Path) -> Surroundings {
        Surroundings {
            xdg_runtime_dir: xdg.map(Path::to_owned),
            temp_dir: temp_dir.to_owned(),
            uid: rustix::process::getuid().as_raw(),
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn the_hash_is_stable() {
        assert_eq!(short_hash(b""), "4fd0bfc1");
        assert_eq!(short_hash(b"a"), "296230c0", "af63dc4c8601ec8c, folded");
        assert_ne!(short_hash(b"/a"), short_hash(b"/b"));
    }

    #[test]
    fn it_lies_in_the_runtime_directory_and_is_private() {
        let (base, data) = (temp(), temp());
        let path = runtime_dir_in(data.path(), &around(Some(base.path()), Path::new("/nowhere"))).unwrap();
        let parent = base.path().join("lamagrid");
        assert_eq!(path.parent(), Some(parent.as_path()));
        assert_eq!(path.file_name().unwrap().len(), 8);
        assert_eq!((mode(&parent), mode(&path)), (0o700, 0o700));
        // A second process finds the same one, also through a link.
        let link = base.path().join("link");
        symlink(data.path(), &link).unwrap();
        assert_eq!(runtime_dir_in(&link, &around(Some(base.path()), Path::new("/nowhere"))).unwrap(), path);
    }

    #[test]
    fn without_a_runtime_directory_of_ones_own_it_lies_in_the_temporary_directory() {
        let (base, data) = (temp(), temp());
        let missing = base.path().join("missing");
        for xdg in [None, Some(missing.as_path()), Some(Path::new("relative"))] {
            let around = around(xdg, base.path());
            let path = runtime_dir_in(data.path(), &around).unwrap();
            assert_eq!(path.parent(), Some(base.path().join(format!("lamagrid-{}", around.uid)).as_path()));
        }
        // Another user's.
        let mut other = around(Some(base.path()), &base.path().join("t"));
        other.uid += 1;
        fs::create_dir(&other.temp_dir).unwrap();
        let text = runtime_dir_in(data.path(), &other).unwrap_err().to_string();
        assert!(text.contains("/t/lamagrid-") && text.contains("its owner is user"), "{text}");
    }

    #[test]
    fn the_name_does_not_change_when_the_data_directory_is_made() {
        let (base, parent) = (temp(), temp());
        let data = parent.path().join("not/yet");
        let before = runtime_dir_in(&data, &around(None, base.path())).unwrap();
        fs::create_dir_all(&data).unwrap();
        assert_eq!(runtime_dir_in(&data, &around(None, base.path())).unwrap(), before);
    }

    #[test]
    fn an_open_directory_a_link_and_a_file_are_refused() {
        let data = temp();
        let check = |prepare: &dyn Fn(&Path), words: &str| {
            let base = temp();
            let around = around(None, base.path());
            prepare(&base.path().join(format!("lamagrid-{}", around.uid)));
            let text = runtime_dir_in(data.path(), &around).unwrap_err().to_string();
            assert!(text.contains("is not private") && text.contains(words), "{text}");
        };
        check(
            &|path| {
                fs::create_dir(path).unwrap();
                fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
            },
            "its mode is 0755",
        );
        check(&|path| symlink("/tmp", path).unwrap(), "it is not a directory");
        check(&|path| fs::write(path, "").unwrap(), "it is not a directory");
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused_and_names_the_variable() {
        let (base, data) = (temp(), temp());
        let long = base.path().join("x".repeat(40));
        fs::create_dir(&long).unwrap();
        let text = runtime_dir_in(data.path(), &around(Some(&long), base.path())).unwrap_err().to_string();
        assert!(text.contains("set XDG_RUNTIME_DIR to a shorter path"), "{text}");
        let text = runtime_dir_in(data.path(), &around(None, &long)).unwrap_err().to_string();
        assert!(text.contains("at most 47 fit") && text.contains("set TMPDIR"), "{text}");
        assert_eq!(fs::read_dir(&long).unwrap().count(), 0, "nothing was made");
    }
}
