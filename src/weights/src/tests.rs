use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::*;

const HELLO_MD5: &str = "5d41402abc4b2a76b9719d911017c592";

fn weights(pairs: &[(&str, &str)]) -> Weights {
    Weights::new(&LAMA, pairs.into())
}

fn go_on(_done: u64, _len: Option<u64>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Answers one GET with `body`, announcing a length of `announced` bytes.
fn serve_once(body: &'static [u8], announced: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/files/model.pt?x=1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {announced}\r\nConnection: close\r\n\r\n")
            .unwrap();
        stream.write_all(body).unwrap();
    });
    url
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_cache_directory_follows_upstreams_rules() {
    let place = |pairs: &[(&str, &str)]| weights(pairs).checkpoints;
    let path = |text: &str| Some(PathBuf::from(text));
    assert_eq!(place(&[("HOME", "/h")]), path("/h/.cache/torch/hub/checkpoints"));
    assert_eq!(place(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), path("/x/torch/hub/checkpoints"));
    assert_eq!(
        place(&[("HOME", "/h"), ("TORCH_HOME", "~/t"), ("XDG_CACHE_HOME", "/x")]),
        path("/h/t/hub/checkpoints")
    );
    assert_eq!(place(&[("CACHE_DIR", "/c"), ("TORCH_HOME", "/t")]), path("/c/hub/checkpoints"));
    assert_eq!(place(&[]), None);
    assert!(matches!(weights(&[]).locate(go_on), Err(WeightsError::NoCache)));
    let said = weights(&[("HOME", "/h")]).describe();
    assert_eq!(said, format!("/h/.cache/torch/hub/checkpoints/big-lama.pt (from {})", LAMA.url));
}

#[test]
fn an_existing_path_is_the_file_itself() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.pt");
    std::fs::write(&file, b"hello").unwrap();
    let url = file.to_str().unwrap();
    assert_eq!(weights(&[("LAMA_MODEL_URL", url)]).locate(go_on).unwrap(), file);
    assert_eq!(
        weights(&[("LAMA_MODEL_URL", url), ("LAMA_MODEL_MD5", HELLO_MD5)]).locate(go_on).unwrap(),
        file
    );
    let error = weights(&[("LAMA_MODEL_URL", url), ("LAMA_MODEL_MD5", "00")]).locate(go_on).unwrap_err();
    assert!(matches!(error, WeightsError::Sum { .. }), "{error}");
    assert!(file.exists(), "a bad file is reported, not deleted");
}

#[test]
fn a_missing_file_is_fetched_once_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_str().unwrap();
    let checkpoints = dir.path().join("hub/checkpoints");
    let url = serve_once(b"hello", 5);
    let found = weights(&[("TORCH_HOME", home), ("LAMA_MODEL_URL", &url), ("LAMA_MODEL_MD5", HELLO_MD5)]);
    let path = found.locate(go_on).unwrap();
    assert_eq!(path, checkpoints.join("model.pt"));
    assert_eq!(std::fs::read(&path).unwrap(), b"hello");
    // The server has stopped, so this is the cached file.
    assert_eq!(found.locate(go_on).unwrap(), path);
    assert_eq!(names(&checkpoints), ["model.pt"]);
}

#[test]
fn a_file_url_is_copied_and_a_wrong_sum_is_kept_aside() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("demo.pt");
    std::fs::write(&source, b"hello").unwrap();
    let home = dir.path().to_str().unwrap();
    let url = format!("file://{}", source.display());
    let error = weights(&[("TORCH_HOME", home), ("LAMA_MODEL_URL", &url), ("LAMA_MODEL_MD5", "00")])
        .locate(go_on)
        .unwrap_err();
    assert!(error.to_string().contains("demo.pt.mismatch"), "{error}");
    assert_eq!(names(&dir.path().join("hub/checkpoints")), ["demo.pt.mismatch"]);
    let path = weights(&[("TORCH_HOME", home), ("LAMA_MODEL_URL", &url)]).locate(go_on).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"hello");
}

/// Serves `body` with an ETag, any number of times; `cuts` are the byte counts after which the first answers
/// end. Returns the URL and a record of the `Range` and `If-Range` headers of each request.
fn serve_ranges(
    body: &'static [u8],
    etag: &'static str,
    cuts: &'static [usize],
) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/m.pt", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut cuts = cuts.iter().copied();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let head: Vec<String> =
                lines.map(|line| line.unwrap().to_lowercase()).take_while(|line| !line.is_empty()).collect();
            let value = |name: &str| {
                head.iter().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim().to_owned()
            };
            let (range, condition) = (value("range:"), value("if-range:"));
            seen.lock().unwrap().push(format!("{range} {condition}").trim().to_owned());
            let from =
                range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')?.parse::<usize>().ok());
            let from = from.filter(|_| condition.is_empty() || condition == etag);
            let head = match from {
                Some(from) if from >= body.len() => {
                    format!("416 No\r\nContent-Range: bytes */{}\r\nContent-Length: 0", body.len())
                }
                Some(from) => format!(
                    "206 Part\r\nContent-Range: bytes {from}-{}/{}\r\nContent-Length: {}",
                    body.len() - 1,
                    body.len(),
                    body.len() - from
                ),
                None => format!("200 OK\r\nContent-Length: {}", body.len()),
            };
            let rest = &body[from.unwrap_or(0).min(body.len())..];
            let rest = &rest[..cuts.next().unwrap_or(usize::MAX).min(rest.len())];
            write!(stream, "HTTP/1.1 {head}\r\nETag: {etag}\r\nConnection: close\r\n\r\n").unwrap();
            // The client may have closed the connection.
            let _ = stream.write_all(rest);
        }
    });
    (url, asked)
}

/// A file of `checkpoints` that is downloaded from `url`.
fn other(url: &str, md5: Option<&str>, checkpoints: &Path) -> Weights {
    Weights::other(url.to_owned(), md5.map(str::to_owned), checkpoints.to_owned(), None)
}

#[test]
fn an_interrupted_download_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let (url, asked) = serve_ranges(b"hello", "\"v1\"", &[2, 1]);
    let weights = other(&url, Some(HELLO_MD5), dir.path());
    for kept in [2, 3] {
        let text = weights.locate(go_on).unwrap_err().to_string();
        assert!(text.contains(&format!("{kept} bytes are kept in")) && text.contains("m.pt.part"), "{text}");
        assert_eq!(names(dir.path()), ["m.pt.part"]);
    }
    let mut heard = Vec::new();
    let path = weights.locate(|done, len| {
        heard.push((done, len));
        ControlFlow::Continue(())
    });
    assert_eq!(std::fs::read(path.unwrap()).unwrap(), b"hello");
    assert_eq!(heard.last(), Some(&(5, Some(5))));
    assert_eq!(names(dir.path()), ["m.pt"]);
    assert_eq!(*asked.lock().unwrap(), ["", "bytes=2- \"v1\"", "bytes=3- \"v1\""]);
}

#[test]
fn a_part_of_another_version_or_url_is_not_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let (old, _) = serve_ranges(b"HELLO", "\"v1\"", &[4]);
    other(&old, None, dir.path()).locate(go_on).unwrap_err();
    let (new, asked) = serve_ranges(b"hello", "\"v2\"", &[4]);
    let weights = other(&new, None, dir.path());
    weights.locate(go_on).unwrap_err();
    assert_eq!(*asked.lock().unwrap(), [""], "the part is of another URL");
    assert_eq!(std::fs::read(dir.path().join("m.pt.part")).unwrap(), b"hell");
    // The file at the URL has changed since.
    let part = File::open(dir.path().join("m.pt.part")).unwrap();
    let version = format!("{new}\n\"v1\"");
    rustix::fs::fsetxattr(
        &part,
        "user.lamagrid.version",
        version.as_bytes(),
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let path = weights.locate(go_on).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"hello");
    assert_eq!(*asked.lock().unwrap(), ["", "bytes=4- \"v1\""]);
}

#[test]
fn a_part_without_a_version_is_resumed_only_if_a_sum_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let part = dir.path().join("m.pt.part");
    for (left, asked_for) in [
        (b"he".as_slice(), &["bytes=2-"] as &[&str]),
        (b"HE", &["bytes=2-", ""]),
        (b"hello", &["bytes=5-"]),
        (b"hello, world", &["bytes=12-", ""]),
    ] {
        std::fs::write(&part, left).unwrap();
        let (url, asked) = serve_ranges(b"hello", "W/\"weak\"", &[]);
        let path = other(&url, Some(HELLO_MD5), dir.path()).locate(go_on).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"hello");
        assert_eq!(*asked.lock().unwrap(), asked_for, "{left:?}");
        std::fs::remove_file(path).unwrap();
    }
    // Without a sum, a wrong part cannot be detected, so it is not resumed.
    std::fs::write(&part, b"HE").unwrap();
    let (url, asked) = serve_ranges(b"hello", "W/\"weak\"", &[]);
    other(&url, None, dir.path()).locate(go_on).unwrap();
    assert_eq!(
        (asked.lock().unwrap().as_slice(), names(dir.path())),
        (["".to_owned()].as_slice(), vec!["m.pt".into()])
    );
}

#[test]
fn without_range_support_the_whole_file_is_downloaded() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.pt.part"), b"he").unwrap();
    let url = serve_once(b"hello", 5);
    let path = other(&url, Some(HELLO_MD5), dir.path()).locate(go_on).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"hello");
}

#[test]
fn a_failed_download_without_bytes_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_str().unwrap();
    for url in [serve_once(b"", 5), "http://127.0.0.1:1/model.pt".into(), "no-such-file.pt".into()] {
        let error = weights(&[("TORCH_HOME", home), ("LAMA_MODEL_URL", &url)]).locate(go_on).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&url) && text.contains("LAMA_MODEL_URL"), "{text}");
        let left = dir.path().join("hub/checkpoints");
        assert!(!left.exists() || names(&left).is_empty(), "{url}");
    }
}

#[test]
fn concurrent_downloads_of_one_file_fetch_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let (url, asked) = serve_ranges(b"hello", "\"v1\"", &[]);
    let path = dir.path().join("m.pt");
    let owner = download::Part::take(&path, &mut go_on).unwrap().unwrap();
    let waiting = std::sync::mpsc::channel();
    let waiter = std::thread::spawn({
        let (weights, told) = (other(&url, Some(HELLO_MD5), dir.path()), waiting.0);
        move || {
            weights.locate(|_, _| {
                let _ = told.send(());
                ControlFlow::Continue(())
            })
        }
    });
    waiting.1.recv().unwrap();
    std::fs::write(owner.path(), b"hello").unwrap();
    owner.rename(&path).unwrap();
    assert_eq!(waiter.join().unwrap().unwrap(), path);
    assert!(asked.lock().unwrap().is_empty());
    // An owner that ends without completing the file leaves its part to the next one.
    std::fs::remove_file(&path).unwrap();
    drop(download::Part::take(&path, &mut go_on).unwrap());
    other(&url, Some(HELLO_MD5), dir.path()).locate(go_on).unwrap();
    assert_eq!(names(dir.path()), ["m.pt"]);
}

#[test]
fn parts_of_ended_processes_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let own = format!("m.pt.{}.part", std::process::id());
    // No process has this id: it is above the kernel's maximum.
    for name in ["m.pt.4194305.part", own.as_str(), "n.pt.4194305.part", "m.pt.x.part"] {
        std::fs::write(dir.path().join(name), b"x").unwrap();
    }
    let (url, _) = serve_ranges(b"hello", "\"v1\"", &[]);
    other(&url, None, dir.path()).locate(go_on).unwrap();
    let mut left = vec!["m.pt".to_owned(), own, "m.pt.x.part".into(), "n.pt.4194305.part".into()];
    left.sort();
    assert_eq!(names(dir.path()), left);
}

#[test]
fn an_existing_file_can_be_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.pt");
    std::fs::write(&path, b"hel").unwrap();
    let (url, _) = serve_ranges(b"hello", "\"v1\"", &[0]);
    let weights = other(&url, Some(HELLO_MD5), dir.path());
    weights.replace(go_on).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), b"hel");
    assert_eq!(weights.replace(go_on).unwrap(), path);
    assert_eq!(
        (std::fs::read(&path).unwrap(), names(dir.path())),
        (b"hello".to_vec(), vec!["m.pt".to_owned()])
    );
}

#[test]
fn a_download_reports_progress_and_can_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_str().unwrap();
    let url = serve_once(b"hello", 5);
    let found = weights(&[("TORCH_HOME", home), ("LAMA_MODEL_URL", &url)]);
    assert!(!found.is_present());
    let mut heard = Vec::new();
    let error = found.locate(|done, len| {
        heard.push((done, len));
        if done > 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(error.unwrap_err().to_string().contains("it was stopped; 5 bytes are kept in"));
    assert_eq!(heard.last(), Some(&(5, Some(5))));
    assert_eq!(names(&dir.path().join("hub/checkpoints")), ["model.pt.part"]);
    assert!(!found.is_present());
}

#[test]
fn a_configured_file_is_fetched_to_its_path_and_its_sha256_is_checked() {
    const HELLO: &str = "2CF24DBA5FB0A30E26E83B2AC5B9E29E1B161E5C1FA7425E73043362938B9824";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("models/mine.pt");
    let environment = || Environment::from([("TORCH_HOME", dir.path().to_str().unwrap())]);
    let url = serve_once(b"hello", 5);
    let found = Weights::configured(&url, &path, HELLO, environment());
    assert!(!found.is_present() && found.can_be_had());
    assert_eq!(found.locate(go_on).unwrap(), path);
    // Kept from now on, and checked at each use.
    assert_eq!(found.locate(go_on).unwrap(), path);
    std::fs::write(&path, b"hullo").unwrap();
    let text = found.locate(go_on).unwrap_err().to_string();
    assert!(text.contains("has SHA-256 ") && text.contains(&format!("not {HELLO}")), "{text}");
    let here = Weights::configured("", &path, "", environment());
    assert_eq!(here.locate(go_on).unwrap(), path);
    let url = serve_once(b"hello", 5);
    let cached = Weights::configured(&url, Path::new(""), HELLO, environment());
    assert_eq!(cached.locate(go_on).unwrap(), dir.path().join("hub/checkpoints/model.pt"));
    let url = serve_once(b"wrong", 5);
    let gone = dir.path().join("gone.pt");
    let error = Weights::configured(&url, &gone, HELLO, environment()).locate(go_on).unwrap_err();
    assert!(matches!(error, WeightsError::Sum { .. }) && !gone.exists(), "{error}");
}
