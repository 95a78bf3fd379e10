//! Tests the sockets over `ipc`: messages arrive, a dead peer is detected, and no connection stays open.

#![expect(clippy::unwrap_used, reason = "a failed test panics at the line that failed")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use zeromq::prelude::*;

use lamagrid_domain::{FailureKind, SessionId};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::frame::{Frame, MAX_INLINE_BYTES};
use lamagrid_protocol::message::{
    ClientReply, ClientRequest, ControlReply, ControlRequest, Farewell, Goodbye, Heartbeat, Hint,
    LaneMessage, Message, NodeEvent, Ping, Pong, ResultReply,
};
use lamagrid_transport::link::Link;
use lamagrid_transport::request::Requester;
use lamagrid_transport::router::{Incoming, Peers, Router};
use lamagrid_transport::{
    ConnectionLimits, Endpoints, EventPublisher, EventSubscriber, LaneReceiver, LaneSender, SocketError,
};

/// Time limit, longer than any step here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longer than a connection on this host takes.
const SHORT: Duration = Duration::from_millis(200);
/// How soon the end of the other side must be detected.
const NOTICED: Duration = Duration::from_secs(1);

fn endpoints() -> (tempfile::TempDir, Endpoints) {
    // Socket paths are short: not beneath a long TMPDIR.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let endpoints = Endpoints::new(dir.path());
    (dir, endpoints)
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it comes in time")
}

fn ping(seq: u64, blobs: Vec<Bytes>) -> Frame {
    ClientRequest::from(Ping { seq }).to_frame(blobs).unwrap()
}

fn pong(seq: u64, blobs: Vec<Bytes>) -> Frame {
    ClientReply::from(Pong { seq, spool: "/spool".into(), version: "0".into() }).to_frame(blobs).unwrap()
}

async fn receive(router: &mut Router) -> (PeerId, Frame) {
    match soon(router.recv()).await {
        Some(Incoming::Frame { peer, frame }) => (peer, frame),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_link_and_its_router_exchange_large_blobs() {
    let (_dir, endpoints) = endpoints();
    let mut router = Router::bind(&endpoints.client(), Peers::Dealer, &ConnectionLimits::default()).unwrap();
    let mut one = Link::connect(&endpoints.client(), PATIENCE).await.unwrap();
    let mut two = Link::connect(&endpoints.client(), PATIENCE).await.unwrap();
    let large = Bytes::from(vec![7; MAX_INLINE_BYTES]);
    one.send(ping(1, vec![large.clone(), Bytes::new(), large.clone()])).await.unwrap();
    let (peer_one, frame) = receive(&mut router).await;
    assert_eq!(frame, ping(1, vec![large.clone(), Bytes::new(), large.clone()]));
    two.send(ping(2, Vec::new())).await.unwrap();
    let (peer_two, _) = receive(&mut router).await;
    assert_ne!(peer_one, peer_two);
    // Each answer goes to its own connection, in order.
    for seq in 0..100 {
        router.sender().send(&peer_one, pong(seq, Vec::new()));
    }
    router.sender().send(&peer_two, pong(1_000, vec![large.clone()]));
    for seq in 0..100 {
        assert_eq!(soon(one.recv()).await.unwrap(), pong(seq, Vec::new()));
    }
    assert_eq!(soon(two.recv()).await.unwrap(), pong(1_000, vec![large]));
}

#[tokio::test]
async fn a_link_that_is_dropped_is_reported() {
    let (_dir, endpoints) = endpoints();
    let mut router = Router::bind(&endpoints.client(), Peers::Dealer, &ConnectionLimits::default()).unwrap();
    let link = Link::connect(&endpoints.client(), PATIENCE).await.unwrap();
    link.send(ping(1, Vec::new())).await.unwrap();
    let (peer, _) = receive(&mut router).await;
    let began = Instant::now();
    drop(link);
    match soon(router.recv()).await {
        Some(Incoming::Gone { peer: gone }) => assert_eq!(gone, peer),
        other => panic!("{other:?}"),
    }
    assert!(began.elapsed() < NOTICED, "{:?}", began.elapsed());
    // An answer to a disconnected peer is dropped without harm.
    router.sender().send(&peer, pong(1, Vec::new()));
    let link = Link::connect(&endpoints.client(), PATIENCE).await.unwrap();
    link.send(ping(2, Vec::new())).await.unwrap();
    assert_eq!(receive(&mut router).await.1, ping(2, Vec::new()));
}

#[tokio::test]
async fn a_router_that_is_dropped_ends_its_links() {
    let (_dir, endpoints) = endpoints();
    let mut router = Router::bind(&endpoints.client(), Peers::Dealer, &ConnectionLimits::default()).unwrap();
    let mut link = Link::connect(&endpoints.client(), PATIENCE).await.unwrap();
    link.send(ping(1, Vec::new())).await.unwrap();
    receive(&mut router).await;
    let began = Instant::now();
    drop(router);
    let error = soon(link.recv()).await.unwrap_err();
    assert!(matches!(error, SocketError::Broken { .. }), "{error}");
    assert!(began.elapsed() < NOTICED, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_request_is_answered_and_a_silent_router_is_an_error() {
    let (_dir, endpoints) = endpoints();
    let mut router = Router::bind(&endpoints.control(), Peers::Req, &ConnectionLimits::default()).unwrap();
    let request = ControlRequest::from(Goodbye { session: SessionId::from_bytes([1; 16]) })
        .to_frame(Vec::new())
        .unwrap();
    let answer = ControlReply::from(Farewell {}).to_frame(Vec::new()).unwrap();
    let mut requester = Requester::new(endpoints.control());
    for _ in 0..3 {
        let (received, answered) = tokio::join!(
            async {
                let (peer, frame) = receive(&mut router).await;
                router.sender().send(&peer, answer.clone());
                frame
            },
            requester.request(request.clone(), PATIENCE)
        );
        assert_eq!((received, answered.unwrap()), (request.clone(), answer.clone()));
    }
    let error = requester.request(request.clone(), SHORT).await.unwrap_err();
    assert!(matches!(error, SocketError::Silent { .. }), "{error}");
    receive(&mut router).await;
    // The silent exchange closed its socket: a late answer cannot be mistaken for that of the next request.
    match soon(router.recv()).await {
        Some(Incoming::Gone { .. }) => {}
        other => panic!("{other:?}"),
    }
    let (_, answered) = tokio::join!(
        async {
            let (peer, _) = receive(&mut router).await;
            router.sender().send(&peer, answer.clone());
        },
        requester.request(request, PATIENCE)
    );
    assert_eq!(answered.unwrap(), answer);
}

/// Open connections of this process to a socket at `path`, from the kernel's list.
fn connections(path: &Path) -> usize {
    let path = path.display().to_string();
    let list = std::fs::read_to_string("/proc/net/unix").unwrap();
    // The bound end of a connection carries the path; the listening socket (flag 00010000) is not a connection.
    list.lines().filter(|line| line.ends_with(&path) && !line.contains(" 00010000 ")).count()
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_lane_keeps_the_order_and_leaves_no_connection_open() {
    let (_dir, endpoints) = endpoints();
    let address = endpoints.lane(SessionId::from_bytes([2; 16]), 0);
    let path = Path::new(address.strip_prefix("ipc://").unwrap()).to_owned();
    let connected = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&connected);
    let sender = LaneSender::bind(&address, &ConnectionLimits::default(), move |_| {
        seen.store(true, Ordering::Relaxed)
    })
    .unwrap();
    assert!(!connected.load(Ordering::Relaxed));
    let mut receiver = LaneReceiver::connect(&address, PATIENCE).await.unwrap();
    until("the sender knows that its node is there", || connected.load(Ordering::Relaxed)).await;
    let hint = |n: u8| LaneMessage::from(Hint {}).to_frame(vec![Bytes::from(vec![n; 1_000])]).unwrap();
    for n in 0..20 {
        sender.send(hint(n));
    }
    for n in 0..20 {
        assert_eq!(soon(receiver.recv()).await.unwrap(), hint(n));
    }
    assert!(connections(&path) >= 1);
    let began = Instant::now();
    drop(receiver);
    // PUSH detects a closed receiver only when it writes; a receiver that had stayed open would keep taking these.
    until("no connection is left", || {
        sender.send(hint(99));
        connections(&path) == 0
    })
    .await;
    assert!(began.elapsed() < NOTICED, "{:?}", began.elapsed());
    drop(sender);
    until("its socket file is gone", || !path.exists()).await;
}

#[tokio::test]
async fn fifty_sessions_leave_no_connection_behind() {
    let (_dir, endpoints) = endpoints();
    for n in 0..50 {
        let address = endpoints.lane(SessionId::from_bytes([n; 16]), 0);
        let connected = Arc::new(tokio::sync::Notify::new());
        let notify = Arc::clone(&connected);
        let sender =
            LaneSender::bind(&address, &ConnectionLimits::default(), move |_| notify.notify_one()).unwrap();
        let receiver = LaneReceiver::connect(&address, PATIENCE).await.unwrap();
        soon(connected.notified()).await;
        drop(receiver);
        drop(sender);
    }
    let dir = endpoints.dir().display().to_string();
    let left =
        || std::fs::read_to_string("/proc/net/unix").unwrap().lines().filter(|l| l.contains(&dir)).count();
    until("nothing is left in the kernel's list", || left() == 0).await;
    assert_eq!(std::fs::read_dir(endpoints.dir()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_stale_socket_file_is_replaced() {
    let (_dir, endpoints) = endpoints();
    // Leaves a socket file without a listener, as a killed process does.
    for address in
        [endpoints.client(), endpoints.node_events(), endpoints.lane(SessionId::from_bytes([3; 16]), 1)]
    {
        let path = address.strip_prefix("ipc://").unwrap();
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
        assert!(Path::new(path).exists());
    }
    let error = Link::connect(&endpoints.client(), SHORT).await.unwrap_err();
    assert!(error.to_string().contains("client.sock"), "{error}");
    let mut router = Router::bind(&endpoints.client(), Peers::Dealer, &ConnectionLimits::default()).unwrap();
    let link = Link::connect(&endpoints.client(), PATIENCE).await.unwrap();
    link.send(ping(1, Vec::new())).await.unwrap();
    receive(&mut router).await;
    EventSubscriber::bind(&endpoints.node_events(), &ConnectionLimits::default()).unwrap();
    LaneSender::bind(
        &endpoints.lane(SessionId::from_bytes([3; 16]), 1),
        &ConnectionLimits::default(),
        |_| {},
    )
    .unwrap();
}

#[tokio::test]
async fn connecting_without_a_listener_is_an_error_that_names_the_socket() {
    let (_dir, endpoints) = endpoints();
    // The `zeromq` crate itself would retry forever.
    let errors = [
        Link::connect(&endpoints.client(), SHORT).await.err(),
        LaneReceiver::connect(&endpoints.client(), SHORT).await.err(),
        EventPublisher::connect(&endpoints.client(), SHORT).await.err(),
        Requester::new(endpoints.client()).request(ping(1, Vec::new()), SHORT).await.err(),
    ];
    for error in errors {
        let error = error.unwrap();
        assert!(matches!(error, SocketError::Silent { .. }), "{error}");
        assert!(error.to_string().contains("client.sock"), "{error}");
    }
}

#[tokio::test]
async fn events_reach_the_subscriber() {
    let (_dir, endpoints) = endpoints();
    let mut subscriber =
        EventSubscriber::bind(&endpoints.node_events(), &ConnectionLimits::default()).unwrap();
    let publisher = EventPublisher::connect(&endpoints.node_events(), PATIENCE).await.unwrap();
    let event = NodeEvent::from(Heartbeat { session: SessionId::from_bytes([4; 16]), figures: None })
        .to_frame(Vec::new())
        .unwrap();
    // Events may be lost until the subscription has arrived.
    let received = soon(async {
        loop {
            publisher.publish(event.clone());
            if let Ok(received) = tokio::time::timeout(Duration::from_millis(20), subscriber.recv()).await {
                return received;
            }
        }
    });
    assert_eq!(received.await, Some(event.clone()));
}

fn heartbeat(session: u8) -> Frame {
    NodeEvent::from(Heartbeat { session: SessionId::from_bytes([session; 16]), figures: None })
        .to_frame(Vec::new())
        .unwrap()
}

#[tokio::test]
async fn a_flood_of_events_delays_no_other_node_and_is_disconnected() {
    let (dir, endpoints) = endpoints();
    let mut subscriber =
        EventSubscriber::bind(&endpoints.node_events(), &ConnectionLimits::default()).unwrap();
    let path = dir.path().join("node-events.sock");
    let mut flooding = zeromq::PubSocket::new();
    flooding.connect(&endpoints.node_events()).await.unwrap();
    let flood = tokio::spawn(async move {
        loop {
            let message = zeromq::ZmqMessage::try_from(heartbeat(1).into_parts()).unwrap();
            // Its connection is closed meanwhile.
            let _ = flooding.send(message).await;
            tokio::task::yield_now().await;
        }
    });
    let (begun, mut of_flood) = (Instant::now(), 0_u32);
    while of_flood < 120 {
        of_flood += u32::from(soon(subscriber.recv()).await.unwrap() == heartbeat(1));
    }
    assert!(begun.elapsed() > Duration::from_millis(300), "two periods are over: {:?}", begun.elapsed());
    let quiet = EventPublisher::connect(&endpoints.node_events(), PATIENCE).await.unwrap();
    until("both are connected", || connections(&path) == 2).await;
    let mut beat = tokio::time::interval(Duration::from_millis(100));
    let (mut published, mut of_quiet) = (Instant::now(), 0);
    while connections(&path) == 2 {
        tokio::select! {
            _ = beat.tick() => {
                published = Instant::now();
                quiet.publish(heartbeat(2));
            }
            received = subscriber.recv() => if received.unwrap() == heartbeat(2) {
                assert!(published.elapsed() < NOTICED, "{:?}", published.elapsed());
                of_quiet += 1;
            }
        }
        assert!(begun.elapsed() < 2 * PATIENCE, "the flood goes on");
    }
    assert!(of_quiet > 10, "{of_quiet}");
    flood.abort();
}

#[tokio::test]
async fn a_node_drops_events_above_its_rate_limit() {
    let (_dir, endpoints) = endpoints();
    let mut subscriber =
        EventSubscriber::bind(&endpoints.node_events(), &ConnectionLimits::default()).unwrap();
    let publisher = EventPublisher::connect(&endpoints.node_events(), PATIENCE).await.unwrap();
    let begun = Instant::now();
    for _ in 0..10_000 {
        publisher.publish(heartbeat(1));
    }
    let mut received = 0;
    while tokio::time::timeout(NOTICED, subscriber.recv()).await.is_ok() {
        received += 1;
    }
    let periods = begun.elapsed().as_millis() as u32 / 200 + 1;
    assert!((1..=40 * periods).contains(&received), "{received} events in {periods} periods");
}

#[tokio::test]
async fn a_bad_frame_is_answered_and_the_connection_stays_open() {
    let (_dir, endpoints) = endpoints();
    let mut router = Router::bind(&endpoints.result(), Peers::Dealer, &ConnectionLimits::default()).unwrap();
    let mut other = Link::connect(&endpoints.result(), PATIENCE).await.unwrap();
    let mut stranger = zeromq::DealerSocket::new();
    stranger.connect(&endpoints.result()).await.unwrap();
    let newer = {
        let mut parts = ping(1, Vec::new()).into_parts();
        parts[0] = Bytes::from_static(&[b'L', b'G', 9, 0, 1, 1, 0, 0]);
        parts
    };
    let table = [
        (vec![Bytes::from_static(b"hello")], FailureKind::InvalidInput),
        (vec![Bytes::from_static(b"GET / HTTP/1.1"), Bytes::new()], FailureKind::InvalidInput),
        (newer, FailureKind::Incompatible),
    ];
    for (parts, kind) in table {
        stranger.send(zeromq::ZmqMessage::try_from(parts).unwrap()).await.unwrap();
        let answer = soon(stranger.recv()).await.unwrap();
        let frame = Frame::from_parts(answer.into_vec()).unwrap();
        match ResultReply::from_frame(&frame).unwrap() {
            ResultReply::ProtocolFault(fault) => assert_eq!(fault.failure.kind, kind),
            other => panic!("{other:?}"),
        }
    }
    // This connection and all others still work.
    let parts = ping(2, Vec::new()).into_parts();
    stranger.send(zeromq::ZmqMessage::try_from(parts).unwrap()).await.unwrap();
    let (peer, frame) = receive(&mut router).await;
    assert_eq!(frame, ping(2, Vec::new()));
    router.sender().send(&peer, pong(2, Vec::new()));
    assert!(soon(stranger.recv()).await.is_ok());
    other.send(ping(3, Vec::new())).await.unwrap();
    let (peer, _) = receive(&mut router).await;
    router.sender().send(&peer, pong(3, Vec::new()));
    assert_eq!(soon(other.recv()).await.unwrap(), pong(3, Vec::new()));
}

#[tokio::test]
async fn a_bad_answer_is_an_error_but_does_not_end_the_link() {
    let (_dir, endpoints) = endpoints();
    let mut socket = zeromq::RouterSocket::new();
    socket.bind(&endpoints.client()).await.unwrap();
    let mut link = Link::connect(&endpoints.client(), PATIENCE).await.unwrap();
    link.send(ping(1, Vec::new())).await.unwrap();
    let identity = soon(socket.recv()).await.unwrap().into_vec().swap_remove(0);
    let bad = zeromq::ZmqMessage::try_from(vec![identity.clone(), Bytes::from_static(b"?")]).unwrap();
    socket.send(bad).await.unwrap();
    let mut parts = vec![identity];
    parts.extend(pong(1, Vec::new()).into_parts());
    socket.send(zeromq::ZmqMessage::try_from(parts).unwrap()).await.unwrap();
    assert!(matches!(soon(link.recv()).await, Err(SocketError::Frame(_))));
    assert_eq!(soon(link.recv()).await.unwrap(), pong(1, Vec::new()));
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_disconnected_and_delays_no_other() {
    let (_dir, endpoints) = endpoints();
    let mut router = Router::bind(&endpoints.client(), Peers::Dealer, &ConnectionLimits::default()).unwrap();
    let sender = router.sender();
    // ZeroMQ's own dealer reads only while `recv` is called.
    let mut deaf = zeromq::DealerSocket::new();
    deaf.connect(&endpoints.client()).await.unwrap();
    deaf.send(zeromq::ZmqMessage::try_from(ping(1, Vec::new()).into_parts()).unwrap()).await.unwrap();
    let (deaf_peer, _) = receive(&mut router).await;
    let mut honest = Link::connect(&endpoints.client(), PATIENCE).await.unwrap();
    honest.send(ping(2, Vec::new())).await.unwrap();
    let (honest_peer, _) = receive(&mut router).await;
    for (seq, blobs) in (0..200_000)
        .map(|seq| (seq, Vec::new()))
        .chain((0..100).map(|seq| (seq, vec![Bytes::from(vec![7; MAX_INLINE_BYTES])])))
    {
        sender.send(&deaf_peer, pong(seq, blobs));
        assert!(sender.waiting_bytes(&deaf_peer) <= 5 << 20);
        if seq % 50_000 == 0 {
            let began = Instant::now();
            sender.send(&honest_peer, pong(seq, Vec::new()));
            assert_eq!(soon(honest.recv()).await.unwrap(), pong(seq, Vec::new()));
            assert!(began.elapsed() < NOTICED, "{:?}", began.elapsed());
        }
    }
    match soon(router.recv()).await {
        Some(Incoming::Gone { peer }) => assert_eq!(peer, deaf_peer),
        other => panic!("{other:?}"),
    }
    assert_eq!(sender.waiting_bytes(&deaf_peer), 0);
}

#[tokio::test]
async fn a_watched_peer_is_reported_drained_once_it_has_read() {
    let (_dir, endpoints) = endpoints();
    let mut router = Router::bind(&endpoints.client(), Peers::Dealer, &ConnectionLimits::default()).unwrap();
    let sender = router.sender();
    let mut slow = zeromq::DealerSocket::new();
    slow.connect(&endpoints.client()).await.unwrap();
    slow.send(zeromq::ZmqMessage::try_from(ping(1, Vec::new()).into_parts()).unwrap()).await.unwrap();
    let (peer, _) = receive(&mut router).await;
    assert!(!sender.watch(&peer), "it has nothing to read");
    for seq in 0..10 {
        sender.send(&peer, pong(seq, vec![Bytes::from(vec![7; MAX_INLINE_BYTES])]));
    }
    assert!(sender.watch(&peer));
    assert!(tokio::time::timeout(SHORT, router.recv()).await.is_err(), "it has read nothing yet");
    for _ in 0..10 {
        soon(slow.recv()).await.unwrap();
    }
    match soon(router.recv()).await {
        Some(Incoming::Drained { peer: drained }) => assert_eq!(drained, peer),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn silent_connections_do_not_block_new_ones() {
    let (_dir, endpoints) = endpoints();
    let mut router = Router::bind(&endpoints.client(), Peers::Dealer, &ConnectionLimits::default()).unwrap();
    let path = endpoints.client();
    let path = path.strip_prefix("ipc://").unwrap();
    let mut silent = Vec::new();
    for _ in 0..500 {
        silent.push(soon(tokio::net::UnixStream::connect(path)).await.unwrap());
    }
    let began = Instant::now();
    let link = Link::connect(&endpoints.client(), PATIENCE).await.unwrap();
    link.send(ping(1, Vec::new())).await.unwrap();
    receive(&mut router).await;
    assert!(began.elapsed() < NOTICED, "{:?}", began.elapsed());
    // Most of them were closed, and the others will be.
    assert!(connections(Path::new(path)) < 100);
}

#[tokio::test]
async fn a_node_that_does_not_read_its_lane_loses_it_and_frees_memory() {
    let (_dir, endpoints) = endpoints();
    let limits = ConnectionLimits::default();
    let lane = |n: u8| endpoints.lane(SessionId::from_bytes([n; 16]), 0);
    let deaf = LaneSender::bind(&lane(1), &limits, |_| {}).unwrap();
    let honest = LaneSender::bind(&lane(2), &limits, |_| {}).unwrap();
    let _deaf_node = LaneReceiver::connect(&lane(1), PATIENCE).await.unwrap();
    let mut node = LaneReceiver::connect(&lane(2), PATIENCE).await.unwrap();
    let large = || LaneMessage::from(Hint {}).to_frame(vec![Bytes::from(vec![7; MAX_INLINE_BYTES])]).unwrap();
    for _ in 0..1_000 {
        deaf.send(large());
        assert!(deaf.waiting_bytes() <= 5 << 20);
    }
    let began = Instant::now();
    honest.send(large());
    assert_eq!(soon(node.recv()).await.unwrap(), large());
    assert!(began.elapsed() < NOTICED, "{:?}", began.elapsed());
    // The lane has ended and its messages are freed.
    until("what waited is dropped", || deaf.waiting_bytes() == 0).await;
}
