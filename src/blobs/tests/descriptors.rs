//! Tests the reserve of descriptors, in a process of its own because it uses up all of them.

use std::fs::File;
use std::os::unix::net::UnixStream;

use rustix::process::{Resource, Rlimit, setrlimit};

use lamagrid_blobs::{BlobName, Spool};
use lamagrid_domain::{Role, TaskId};
use lamagrid_process::descriptors::{limit, raise_limit, with_reserve};

#[test]
fn a_spool_works_when_peers_have_all_descriptors() {
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: Some(256) }).unwrap();
    raise_limit();
    assert_eq!(limit(), 224);
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::create(dir.path().join("spool")).unwrap();
    let mut peers = Vec::new();
    while let Ok(pair) = UnixStream::pair() {
        peers.push(pair);
        assert!(peers.len() < 256);
    }
    // A pair takes two descriptors: one may be left.
    let _last = File::open("/dev/null");
    assert!(File::open("/dev/null").is_err(), "not all are used");
    let (task, name) = (TaskId::from_bytes([1; 16]), BlobName::Role(Role::Image));
    spool.put(task, name, b"pixels").unwrap();
    assert_eq!(spool.reader(task, name).unwrap().1, 6);
    // The reserve is for single calls only: the limit is unchanged.
    let kept = with_reserve(|| File::open("/dev/null")).unwrap();
    assert!(File::open("/dev/null").is_err());
    assert_eq!(limit(), 224);
    drop(kept);
}
