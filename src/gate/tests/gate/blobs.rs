//! Tests transfers of blobs: grants, both directions, and transfers that are cut.

use super::*;

/// R7.3: a lease token gives access to its own task's blobs, to its own node only, until the task has ended.
#[tokio::test]
async fn blobs_are_transferred_only_with_a_grant() {
    let host = Host::start().await;
    let (task, token) = (TaskId::from_bytes([1; 16]), LeaseToken::from_bytes([2; 16]));
    let image = vec![7; 3_000_000];
    host.spool.put(task, BlobName::Role(Role::Image), &image).unwrap();
    host.grants
        .grant(Ticket::Attempt(token), Grant { certificate: "gpu-1".into(), task, max_bytes: 2_000_000 });
    let dir = TempDir::new().unwrap();
    let of = |name: &str| host.dialler(&host.issue(PeerRole::Node, name, 1), &dir.path().join(name));
    for name in ["gpu-1", "gpu-2"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    let (mine, other) = (of("gpu-1").blobs(), of("gpu-2").blobs());
    let blocking =
        |work: Box<dyn FnOnce() -> Result<Vec<u8>, BlobError> + Send>| tokio::task::spawn_blocking(work);
    let get = |blobs: &BlobClient, token, role, len| {
        let blobs = blobs.clone();
        blocking(Box::new(move || blobs.get(token, role, len)))
    };
    let put = |blobs: &BlobClient, token, bytes: Vec<u8>| {
        let blobs = blobs.clone();
        blocking(Box::new(move || blobs.put(token, &bytes).map(|()| Vec::new())))
    };
    assert_eq!(get(&mine, token, Role::Image, 3_000_000).await.unwrap().unwrap(), image);
    put(&mine, token, vec![9; 1_500_000]).await.unwrap().unwrap();
    let (_, len) = host.spool.reader(task, BlobName::Attempt(token)).unwrap();
    assert_eq!(len, 1_500_000);
    // All at once: a transfer that is not granted is retried for a while, in case it soon is.
    for (refused, text) in [
        (get(&mine, token, Role::Image, 5), "not of the announced length"),
        (get(&mine, token, Role::Mask, 5), "cannot open"),
        (get(&other, token, Role::Image, 3_000_000), "this blob is not yours"),
        (get(&mine, LeaseToken::from_bytes([3; 16]), Role::Image, 5), "this blob is not yours"),
        (put(&mine, token, vec![9; 2_000_001]), "2000000 are allowed"),
    ] {
        let error = refused.await.unwrap().unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    host.grants.withdraw_attempts(task);
    assert!(get(&mine, token, Role::Image, 3_000_000).await.unwrap().is_err());
}

/// X8: an owner on another host uploads granted inputs and fetches its result, and other owners cannot.
#[tokio::test]
async fn an_owner_uploads_inputs_and_fetches_the_result() {
    let host = Host::start().await;
    let task = TaskId::from_bytes([4; 16]);
    let of = |role, name: &str| {
        let dir = TempDir::new().unwrap();
        host.dialler(&host.issue(role, name, 1), dir.path()).blobs()
    };
    let (mine, other, node) =
        (of(PeerRole::Client, "web-1"), of(PeerRole::Client, "web-2"), of(PeerRole::Node, "web-1"));
    let grant = |max_bytes| Grant { certificate: "web-1".into(), task, max_bytes };
    host.grants.grant(Ticket::Inputs(task), grant(1_000_000));
    let bring = |blobs: &BlobClient, bytes: Vec<u8>| {
        let blobs = blobs.clone();
        tokio::task::spawn_blocking(move || blobs.bring(task, Role::Mask, &bytes))
    };
    bring(&mine, vec![5; 900_000]).await.unwrap().unwrap();
    assert_eq!(host.spool.reader(task, BlobName::Role(Role::Mask)).unwrap().1, 900_000);
    for (refused, text) in [
        (bring(&mine, vec![5; 1_000_001]), "1000000 are allowed"),
        (bring(&other, vec![6; 10]), "not yours"),
        (bring(&node, vec![6; 10]), "role node does not open the channel blob"),
    ] {
        let error = refused.await.unwrap().unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    // The limit applies to all inputs together.
    let image = {
        let mine = mine.clone();
        tokio::task::spawn_blocking(move || mine.bring(task, Role::Image, &[5; 100_001]))
    };
    let error = image.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("its other blobs have 900000"), "{error}");
    // Another owner cannot withdraw it.
    host.grants.withdraw_inputs(task, "web-2");
    bring(&mine, vec![5; 900_000]).await.unwrap().unwrap();
    host.grants.withdraw_inputs(task, "web-1");
    assert!(bring(&mine, vec![7; 10]).await.unwrap().is_err(), "what was accepted stays as it is");
    let result: Vec<u8> = (0..700_000).map(|n| (n % 251) as u8).collect();
    host.spool.put(task, BlobName::Role(Role::Result), &result).unwrap();
    host.grants.grant(Ticket::Result(task), grant(0));
    let fetched = tokio::task::spawn_blocking(move || {
        let mut out = vec![0; 700_000];
        mine.fetch_into(task, &mut out).unwrap();
        assert_eq!(mine.fetch(task, 700_000).unwrap(), out);
        out
    });
    assert_eq!(fetched.await.unwrap(), result);
    let theirs = tokio::task::spawn_blocking(move || other.fetch(task, 700_000));
    assert!(theirs.await.unwrap().is_err());
}

/// A path to the gate that breaks: each connection carries a limited number of bytes and then ends. Counts the carried bytes.
async fn brittle(to: SocketAddr, limits: Vec<u64>) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, carried) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&carried);
    tokio::spawn(async move {
        for limit in limits.into_iter().chain(std::iter::repeat(u64::MAX)) {
            let (mut near, _) = listener.accept().await.unwrap();
            let (mut far, count) = (TcpStream::connect(to).await.unwrap(), Arc::clone(&count));
            tokio::spawn(async move {
                let ((mut up, mut down), (mut back, mut forth)) = (near.split(), far.split());
                let mut left = limit;
                let mut carry = async |from: &mut (dyn AsyncRead + Unpin + Send),
                                       to: &mut (dyn AsyncWrite + Unpin + Send),
                                       chunk: &mut [u8]| {
                    let n = from.read(chunk).await.unwrap_or(0) as u64;
                    let n = n.min(left);
                    left -= n;
                    count.fetch_add(n, Ordering::Relaxed);
                    n > 0 && to.write_all(&chunk[..n as usize]).await.is_ok()
                };
                let (mut out, mut home) = (vec![0; 1 << 16], vec![0; 1 << 16]);
                loop {
                    let goes_on = tokio::select! {
                        ready = up.readable() => ready.is_ok() && carry(&mut up, &mut forth, &mut out).await,
                        ready = back.readable() => ready.is_ok() && carry(&mut back, &mut down, &mut home).await,
                    };
                    if !goes_on {
                        return;
                    }
                }
            });
        }
    });
    (address, carried)
}

/// After an interruption a transfer resumes where it was: each byte is sent about once.
#[tokio::test]
async fn an_interrupted_transfer_resumes() {
    const LEN: usize = 6_000_000;
    let host = Host::start().await;
    let (task, token) = (TaskId::from_bytes([1; 16]), LeaseToken::from_bytes([2; 16]));
    let bytes: Vec<u8> = (0..LEN).map(|n| (n % 253) as u8).collect();
    host.spool.put(task, BlobName::Role(Role::Image), &bytes).unwrap();
    host.grants.grant(
        Ticket::Attempt(token),
        Grant { certificate: "gpu-1".into(), task, max_bytes: 2 * LEN as u64 },
    );
    for put in [false, true] {
        let (address, carried) = brittle(host.gate.address(), vec![2_000_000, 2_500_000]).await;
        let dir = TempDir::new().unwrap();
        let credentials = host.issue(PeerRole::Node, "gpu-1", 1);
        let blobs = Dialler::open(&credentials, &address.to_string(), dir.path()).unwrap().blobs();
        let sent = bytes.clone();
        let came = tokio::task::spawn_blocking(move || {
            if put {
                return blobs.put(token, &sent).map(|()| sent);
            }
            blobs.get(token, Role::Image, LEN as u64)
        });
        assert!(came.await.unwrap().unwrap() == bytes, "put: {put}");
        let carried = carried.load(Ordering::Relaxed);
        // Bytes that were in buffers when a connection ended are sent again.
        assert!(carried < LEN as u64 * 5 / 4, "put: {put}: {carried} bytes for {LEN}");
    }
    let (mut file, _) = host.spool.reader(task, BlobName::Attempt(token)).unwrap();
    let mut stored = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut stored).unwrap();
    assert!(stored == bytes);
}
