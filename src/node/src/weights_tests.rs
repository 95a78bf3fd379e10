use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;

use super::*;

const HELLO_MD5: &str = "5d41402abc4b2a76b9719d911017c592";

fn weights(pairs: &[(&str, &str)]) -> Weights {
    let env: BTreeMap<String, String> = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    Weights::new(&LAMA, |name| env.get(name).cloned())
}

fn go_on(_done: u64, _len: Option<u64>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Answers one GET with `body`, of which it says `announced` bytes.
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
fn the_cache_is_upstreams() {
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
    assert!(matches!(error, WeightsError::Md5 { .. }), "{error}");
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
    // The server is gone: this is the cached file.
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

#[test]
fn a_download_that_breaks_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_str().unwrap();
    for url in [serve_once(b"hel", 5), "http://127.0.0.1:1/model.pt".into(), "no-such-file.pt".into()] {
        let error = weights(&[("TORCH_HOME", home), ("LAMA_MODEL_URL", &url)]).locate(go_on).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&url) && text.contains("LAMA_MODEL_URL"), "{text}");
        let left = dir.path().join("hub/checkpoints");
        assert!(!left.exists() || names(&left).is_empty(), "{url}");
    }
}

#[test]
fn a_fetch_tells_how_far_it_is_and_can_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_str().unwrap();
    let url = serve_once(b"hello", 5);
    let found = weights(&[("TORCH_HOME", home), ("LAMA_MODEL_URL", &url)]);
    assert!(!found.is_present());
    let mut heard = Vec::new();
    let error = found.locate(|done, len| {
        heard.push((done, len));
        ControlFlow::Break(())
    });
    assert!(error.unwrap_err().to_string().contains("it was stopped"));
    assert_eq!((heard, names(&dir.path().join("hub/checkpoints"))), (vec![(5, Some(5))], vec![]));
    assert!(!found.is_present());
}
