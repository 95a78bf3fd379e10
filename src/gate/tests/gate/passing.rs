//! Tests temporary refusals: wrong clocks and full gates. Also tests probes.

use super::*;

/// Sends one ping and receives its answer, retrying until the dialling side connects again.
async fn exchange_soon(host: &mut Host, dir: &Path) {
    for _ in 0..100 {
        let mut link = match Link::connect(&Endpoints::new(dir).client(), Duration::from_millis(500)).await {
            Ok(link) => link,
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        link.send(ping(7)).await.unwrap();
        let (_, answer) = tokio::join!(host.answer_one(), link.recv());
        answer.unwrap();
        return;
    }
    panic!("it never got in");
}

/// A wrong clock or an expired certificate is refused temporarily with both clocks, whichever side detects
/// it; the connection succeeds as soon as the cause is gone.
#[tokio::test]
async fn a_wrong_clock_is_a_temporary_refusal_that_names_both_clocks() {
    const HOUR: Duration = Duration::from_secs(3_600);
    let (mut host, now) = (Host::start().await, SystemTime::now());
    let good = (now - HOUR, now + HOUR);
    let wrong = [(now + HOUR, now + 2 * HOUR), (now - 2 * HOUR, now - HOUR)];
    let own = host.authority.pem_between(PeerRole::Scheduler, "main", good.0, good.1);
    let own = Credentials::from_pem(own.as_bytes()).unwrap();
    for (begin, end) in wrong {
        // The scheduler detects it.
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("web-1.bundle");
        let write = |(begin, end), modified: u64| {
            let pem = host.authority.pem_between(PeerRole::Client, "web-1", begin, end);
            host.allow(Credentials::from_pem(pem.as_bytes()).unwrap());
            std::fs::write(&path, Bundle::text(&host.gate.address().to_string(), "a test", &pem)).unwrap();
            let modified = now + Duration::from_secs(modified);
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        };
        write((begin, end), 1);
        let bundle = Bundle::read(&path, &[PeerRole::Client]).unwrap();
        let dialler = Dialler::join(&bundle, dir.path()).unwrap();
        let text = trouble(&dialler, dir.path(), Endpoints::client).await;
        assert!(text.starts_with("the certificate of client web-1 is valid from "), "{text}");
        assert!(
            text.contains("the scheduler's clock shows ") && text.contains("the clock of this host shows "),
            "{text}"
        );
        write(good, 2);
        exchange_soon(&mut host, dir.path()).await;
        assert_eq!(dialler.trouble().text(), None);
        // This side detects it.
        let theirs = host.authority.pem_between(PeerRole::Scheduler, "main", begin, end);
        host.gate.renew(&Credentials::from_pem(theirs.as_bytes()).unwrap()).unwrap();
        let text = trouble(&dialler, dir.path(), Endpoints::client).await;
        assert!(text.starts_with("the scheduler's certificate is valid from "), "{text}");
        assert!(
            text.contains("the scheduler's clock shows ") && text.contains("the clock of this host shows "),
            "{text}"
        );
        let blobs = dialler.blobs();
        host.gate.renew(&own).unwrap();
        exchange_soon(&mut host, dir.path()).await;
        // Blobs travel on separate connections.
        let task = TaskId::from_bytes([8; 16]);
        let grant = Grant { certificate: "web-1".into(), task, max_bytes: 1_000 };
        host.grants.grant(Ticket::Inputs(task), grant);
        tokio::task::spawn_blocking(move || blobs.bring(task, Role::Mask, &[5; 900])).await.unwrap().unwrap();
    }
}

/// A peer that finds no room gets the reason, and is admitted when there is room; nodes behind the same address have their own.
#[tokio::test]
async fn a_peer_without_room_gets_the_limit_as_reason_and_is_admitted_later() {
    let mut host = Host::with_room(2).await;
    let dirs: Vec<_> = (0..3).map(|_| TempDir::new().unwrap()).collect();
    let diallers: Vec<_> = (0..3)
        .map(|n| host.dialler(&host.issue(PeerRole::Client, &format!("web-{n}"), 1), dirs[n].path()))
        .collect();
    let mut links = Vec::new();
    for dir in &dirs[..2] {
        let mut link = Link::connect(&Endpoints::new(dir.path()).client(), SOON).await.unwrap();
        link.send(ping(1)).await.unwrap();
        host.answer_one().await;
        link.recv().await.unwrap();
        links.push(link);
    }
    let text = trouble(&diallers[2], dirs[2].path(), Endpoints::client).await;
    assert!(
        text.starts_with(
            "no room: 2 connections of clients of your address 127.0.0.1 are open (limit 2, gate.max_connections_per_peer"
        ),
        "{text}"
    );
    // A blob of an admitted client, and a node, find room.
    let task = TaskId::from_bytes([8; 16]);
    let grant = Grant { certificate: "web-0".into(), task, max_bytes: 1_000 };
    host.grants.grant(Ticket::Inputs(task), grant);
    let blobs = diallers[0].blobs();
    tokio::task::spawn_blocking(move || blobs.bring(task, Role::Mask, &[5; 900])).await.unwrap().unwrap();
    let control = Router::bind(&host.endpoints.control(), Peers::Req, &ConnectionLimits::default()).unwrap();
    let node_dir = TempDir::new().unwrap();
    let node = host.dialler(&host.issue(PeerRole::Node, "gpu-1", 1), node_dir.path());
    let mut requester = Requester::new(Endpoints::new(node_dir.path()).control());
    let _ = requester.request(ping(1), Duration::from_millis(500)).await;
    assert_eq!(node.trouble().text(), None, "it was let in");
    drop((control, links.pop()));
    exchange_soon(&mut host, dirs[2].path()).await;
}

#[tokio::test]
async fn a_probe_passes_in_both_directions() {
    let (host, dir) = (Host::start().await, TempDir::new().unwrap());
    let _control = Router::bind(&host.endpoints.control(), Peers::Req, &ConnectionLimits::default()).unwrap();
    let path = dir.path().join("gpu-1.bundle");
    let pem = host.authority.pem(PeerRole::Node, "gpu-1", 1);
    host.allow(Credentials::from_pem(pem.as_bytes()).unwrap());
    std::fs::write(&path, Bundle::text(&host.gate.address().to_string(), "a test", &pem)).unwrap();
    let probed = probe(&Bundle::read(&path, &[PeerRole::Node]).unwrap()).await.unwrap();
    assert!(matches!(probed.path, Some(Ok(()))), "{:?}", probed.path);
    assert_eq!(answering(&host.gate.address().to_string()).await, Ok(host.gate.address()));
}
