use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

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

fn claim(data_dir: &Path, around: &Surroundings) -> Result<SocketDir, ConfigError> {
    SocketDir::claim(Some(data_dir), around.clone())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// Leaves the same as a killed process: its directory and its sockets, without its lock.
fn killed(dir: SocketDir) -> PathBuf {
    let path = dir.path();
    drop(UnixListener::bind(path.join("client.sock")).unwrap());
    dir.claimed.lock().unwrap().lock = File::open("/dev/null").unwrap();
    let record = dir.data_dir.as_ref().map(|data_dir| (data_dir.join(RECORD), path.clone()));
    drop(dir);
    if let Some((record, path)) = record {
        fs::write(record, path.as_os_str().as_bytes()).unwrap();
    }
    assert!(path.join("client.sock").exists());
    path
}

#[test]
fn the_hash_is_stable() {
    assert_eq!(short_hash(b""), "4fd0bfc1");
    assert_eq!(short_hash(b"a"), "296230c0", "af63dc4c8601ec8c, folded");
    assert_ne!(short_hash(b"/a"), short_hash(b"/b"));
}

#[test]
fn it_lies_in_the_runtime_directory_and_is_private_and_goes_with_its_owner() {
    let (base, data) = (temp(), temp());
    let around = around(Some(base.path()), Path::new("/nowhere"));
    let expected = find_sockets_in(data.path(), &around).unwrap();
    let dir = claim(data.path(), &around).unwrap();
    let (path, parent) = (dir.path(), base.path().join("lamagrid"));
    assert_eq!((path.parent(), &path), (Some(parent.as_path()), &expected));
    assert_eq!(path.file_name().unwrap().len(), 8);
    assert_eq!((mode(&parent), mode(&path), mode(&data.path().join(RECORD))), (0o700, 0o700, 0o600));
    drop(dir);
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    assert_eq!(fs::read_dir(data.path()).unwrap().count(), 0);
}

/// A service, cron and a shell name different runtime directories, or none.
#[test]
fn everybody_finds_the_recorded_directory_whatever_the_environment_says() {
    let (base, other, data) = (temp(), temp(), temp());
    let dir = claim(data.path(), &around(Some(base.path()), Path::new("/nowhere"))).unwrap();
    let link = other.path().join("link");
    symlink(data.path(), &link).unwrap();
    for theirs in [around(None, other.path()), around(Some(other.path()), other.path())] {
        assert_eq!(find_sockets_in(data.path(), &theirs).unwrap(), dir.path());
        assert_eq!(find_sockets_in(&link, &theirs).unwrap(), dir.path());
    }
}

/// After a restart of the host another user may make the directory that was recorded.
#[test]
fn a_recorded_directory_that_others_may_write_is_not_used() {
    let (base, data) = (temp(), temp());
    let trap = base.path().join("lamagrid-0/12345678");
    fs::create_dir_all(&trap).unwrap();
    fs::set_permissions(trap.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(data.path().join(RECORD), format!("{}\n", trap.display())).unwrap();
    let text = find_sockets_in(data.path(), &around(None, base.path())).unwrap_err().to_string();
    assert!(text.contains("is not private: its mode is 0777"), "{text}");
}

#[test]
fn without_a_runtime_directory_of_ones_own_it_lies_in_the_temporary_directory() {
    let (base, data) = (temp(), temp());
    let missing = base.path().join("missing");
    for xdg in [None, Some(missing.as_path()), Some(Path::new("relative"))] {
        let around = around(xdg, base.path());
        let path = claim(data.path(), &around).unwrap().path();
        assert_eq!(path.parent(), Some(base.path().join(format!("lamagrid-{}", around.uid)).as_path()));
    }
    // Another user's.
    let mut other = around(Some(base.path()), &base.path().join("t"));
    other.uid += 1;
    fs::create_dir(&other.temp_dir).unwrap();
    let text = claim(data.path(), &other).unwrap_err().to_string();
    assert!(text.contains("/t/lamagrid-") && text.contains("its owner is user"), "{text}");
}

#[test]
fn the_name_does_not_change_when_the_data_directory_is_made() {
    let (base, parent) = (temp(), temp());
    let (data, around) = (parent.path().join("not/yet"), around(None, base.path()));
    let before = find_sockets_in(&data, &around).unwrap();
    fs::create_dir_all(&data).unwrap();
    assert_eq!(find_sockets_in(&data, &around).unwrap(), before);
}

#[test]
fn an_open_directory_a_link_and_a_file_are_refused() {
    let data = temp();
    let check = |prepare: &dyn Fn(&Path), words: &str| {
        let base = temp();
        let around = around(None, base.path());
        prepare(&base.path().join(format!("lamagrid-{}", around.uid)));
        let text = claim(data.path(), &around).unwrap_err().to_string();
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
fn a_path_too_long_for_a_socket_gives_way_to_the_next_and_the_last_is_refused() {
    let (base, data) = (temp(), temp());
    let long = base.path().join("x".repeat(40));
    fs::create_dir(&long).unwrap();
    let dir = claim(data.path(), &around(Some(&long), base.path())).unwrap();
    assert!(dir.path().starts_with(base.path().join(format!("lamagrid-{}", dir.around.uid))));
    let text = claim(data.path(), &around(Some(&long), &long)).unwrap_err().to_string();
    assert!(text.contains("set XDG_RUNTIME_DIR to a shorter path"), "{text}");
    let text = claim(data.path(), &around(None, &long)).unwrap_err().to_string();
    assert!(text.contains("at most 47 fit") && text.contains("set TMPDIR"), "{text}");
    assert_eq!(fs::read_dir(&long).unwrap().count(), 0, "nothing was made");
}

#[test]
fn what_a_killed_process_left_is_removed_by_the_next_one_and_what_a_live_one_has_stays() {
    let (base, [dead, live, next]) = (temp(), [temp(), temp(), temp()]);
    let around = around(Some(base.path()), Path::new("/nowhere"));
    let left = killed(claim(dead.path(), &around).unwrap());
    let process = killed(SocketDir::claim(None, around.clone()).unwrap());
    let kept = claim(live.path(), &around).unwrap();
    // As a scheduler of an older version: its directory is not locked.
    let old = base.path().join("lamagrid/00000000");
    fs::create_dir(&old).unwrap();
    let _listener = UnixListener::bind(old.join("client.sock")).unwrap();
    let _next = claim(next.path(), &around).unwrap();
    assert!(!left.exists() && !process.exists());
    assert!(kept.path().exists() && old.join("client.sock").exists());
}

#[test]
fn the_same_scheduler_takes_its_directory_again_without_the_old_sockets() {
    let (base, data) = (temp(), temp());
    let around = around(Some(base.path()), Path::new("/nowhere"));
    let left = killed(claim(data.path(), &around).unwrap());
    let dir = claim(data.path(), &around).unwrap();
    assert_eq!(dir.path(), left);
    assert_eq!(fs::read_dir(&left).unwrap().count(), 0);
}

/// Two containers may share a runtime directory, and both call their data directory `/data`.
#[test]
fn a_name_that_another_process_has_is_left_to_it() {
    let (base, data) = (temp(), temp());
    let around = around(Some(base.path()), Path::new("/nowhere"));
    let (first, second) = (claim(data.path(), &around).unwrap(), claim(data.path(), &around).unwrap());
    assert_ne!(first.path(), second.path());
    assert_eq!(find_sockets_in(data.path(), &around).unwrap(), second.path());
}

#[test]
fn a_removed_directory_is_made_anew_in_place_or_elsewhere_and_recorded() {
    let (base, other, data) = (temp(), temp(), temp());
    let around = around(Some(base.path()), other.path());
    let dir = claim(data.path(), &around).unwrap();
    let first = dir.path();
    assert!(!dir.renew().unwrap(), "nothing is missing");
    fs::remove_dir_all(base.path().join("lamagrid")).unwrap();
    fs::remove_file(data.path().join(RECORD)).unwrap();
    assert!(dir.renew().unwrap());
    assert_eq!((dir.path(), find_sockets_in(data.path(), &around).unwrap()), (first.clone(), first.clone()));
    assert!(first.is_dir());
    // The user logs out, and the whole runtime directory goes.
    fs::remove_dir_all(base.path()).unwrap();
    assert!(dir.renew().unwrap());
    assert!(dir.path().starts_with(other.path()) && dir.path().is_dir());
    assert_eq!(find_sockets_in(data.path(), &around).unwrap(), dir.path());
    // Nothing can be used.
    fs::remove_dir_all(other.path()).unwrap();
    fs::write(other.path(), "no directory").unwrap();
    assert!(dir.renew().is_err());
    assert_eq!(find_sockets_in(data.path(), &around).unwrap(), dir.path());
    fs::remove_file(other.path()).unwrap();
}

#[test]
fn a_running_scheduler_is_recognized_by_its_lock() {
    let data = temp();
    assert_eq!(running_scheduler(data.path()), None);
    fs::write(data.path().join(LOCK), "4711\n").unwrap();
    assert_eq!(running_scheduler(data.path()), None, "it was killed");
    let lock = File::open(data.path().join(LOCK)).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    assert_eq!(running_scheduler(data.path()).as_deref(), Some("4711"));
}

/// A program may be connected to many other hosts, or many times to one.
#[test]
fn one_process_has_as_many_directories_as_it_needs() {
    let base = temp();
    let around = around(Some(base.path()), base.path());
    let claimed: Vec<_> = (0..100).map(|_| SocketDir::claim(None, around.clone()).unwrap()).collect();
    let paths: std::collections::BTreeSet<_> = claimed.iter().map(SocketDir::path).collect();
    assert_eq!(paths.len(), claimed.len());
}
