//! Connects to a scheduler by TCP: looks its name up, then tries its addresses with staggered starts (RFC 8305).
//!
//! A lookup runs in the system's resolver, on a thread that cannot be stopped, so a process has at most one for each name.
//! All that dial share its answer, which is kept: a slow name server delays the first connection only.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::LazyLock;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

/// Limit on a lookup: the resolver asks each name server for 5 s, and twice.
pub(crate) const LOOKUP: Duration = Duration::from_secs(20);
/// Limit on all tries to connect together.
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// Between the first tries of two addresses.
const STAGGER: Duration = Duration::from_millis(250);
/// Between two tries of one address: the kernel itself waits longer and longer before it repeats a lost packet.
const REPEAT: Duration = Duration::from_secs(1);
/// An answer this old is used, and asked for anew meanwhile.
const FRESH: Duration = Duration::from_secs(30);
/// Addresses in an error text.
const MAX_TOLD: usize = 4;

/// What is known of a name.
#[derive(Debug, Default)]
struct Name {
    /// Of the last lookup that found some, in the order in which they are tried.
    addresses: Vec<SocketAddr>,
    /// When they were found; `None` once connecting to them failed.
    found: Option<Instant>,
    /// How the last lookup ended, if it found none.
    error: String,
    is_looked_up: bool,
}

/// By `host:port`, which bundles name: a process knows a few.
static NAMES: LazyLock<Mutex<HashMap<String, watch::Sender<Name>>>> = LazyLock::new(Mutex::default);

/// Connects to `scheduler` (`host:port`); `step` is told what is waited for.
///
/// # Errors
/// Which step failed, and how.
pub(crate) async fn connect(scheduler: &str, step: impl Fn(String)) -> Result<TcpStream, String> {
    let addresses = resolve(scheduler, &step).await?;
    step(format!("connecting to {}", told(&addresses)));
    let connected = race(&addresses).await;
    with_name(scheduler, |name| match &connected {
        Ok((_, address)) => prefer(&mut name.addresses, *address),
        Err(_) => name.found = None,
    });
    connected.map(|(stream, _)| stream)
}

/// The addresses of `scheduler`.
///
/// # Errors
/// Why there are none.
pub(crate) async fn resolve(scheduler: &str, step: impl Fn(String)) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = scheduler.parse() {
        return Ok(vec![address]);
    }
    let mut answer = look_up(scheduler);
    let known = answer.borrow().addresses.clone();
    if !known.is_empty() {
        return Ok(known);
    }
    let host = scheduler.rsplit_once(':').map_or(scheduler, |(host, _)| host);
    step(format!("looking up {host}"));
    match tokio::time::timeout(LOOKUP, answer.wait_for(|name| !name.is_looked_up)).await {
        Ok(Ok(name)) if !name.addresses.is_empty() => Ok(name.addresses.clone()),
        Ok(Ok(name)) => Err(format!("cannot look up {host}: {}", name.error)),
        Ok(Err(_)) | Err(_) => Err(format!(
            "looking up {host} took longer than {} s: do the name servers in /etc/resolv.conf answer?",
            LOOKUP.as_secs()
        )),
    }
}

/// Begins a lookup, unless one is under way or the last answer is fresh.
fn look_up(scheduler: &str) -> watch::Receiver<Name> {
    let mut names = NAMES.lock();
    let sender = names.entry(scheduler.to_owned()).or_default();
    let receiver = sender.subscribe();
    let is_needed = {
        let name = receiver.borrow();
        !name.is_looked_up && name.found.is_none_or(|at| at.elapsed() >= FRESH)
    };
    if is_needed {
        sender.send_modify(|name| name.is_looked_up = true);
        let (theirs, asked) = (sender.clone(), scheduler.to_owned());
        let thread = std::thread::Builder::new().name("lookup".into()).spawn(move || {
            let found = asked.to_socket_addrs().map(Iterator::collect);
            theirs.send_modify(|name| name.answered(found));
        });
        if let Err(error) = thread {
            sender.send_modify(|name| name.answered(Err(error)));
        }
    }
    receiver
}

fn with_name(scheduler: &str, change: impl FnOnce(&mut Name)) {
    if let Some(sender) = NAMES.lock().get(scheduler) {
        sender.send_modify(change);
    }
}

impl Name {
    /// Takes a resolver's answer. Addresses that were known are kept when it has none.
    fn answered(&mut self, found: std::io::Result<Vec<SocketAddr>>) {
        self.is_looked_up = false;
        match found {
            Ok(found) if !found.is_empty() => {
                let preferred = self.addresses.first().copied();
                (self.addresses, self.found) = (interleaved(&found), Some(Instant::now()));
                if let Some(address) = preferred.filter(|address| found.contains(address)) {
                    prefer(&mut self.addresses, address);
                }
            }
            Ok(_) => self.error = "the name has no address".to_owned(),
            Err(error) => self.error = error.to_string(),
        }
    }
}

/// Moves an address to the front.
fn prefer(addresses: &mut [SocketAddr], address: SocketAddr) {
    if let Some(at) = addresses.iter().position(|each| *each == address) {
        addresses[..=at].rotate_right(1);
    }
}

/// The two families by turns, beginning with that of the first address.
fn interleaved(found: &[SocketAddr]) -> Vec<SocketAddr> {
    let (mut first, mut other): (Vec<_>, Vec<_>) =
        found.iter().copied().partition(|each| each.is_ipv4() == found[0].is_ipv4());
    let (mut first, mut other) = (first.drain(..), other.drain(..));
    let mut ordered = Vec::with_capacity(found.len());
    loop {
        let before = ordered.len();
        ordered.extend(first.next());
        ordered.extend(other.next());
        if ordered.len() == before {
            return ordered;
        }
    }
}

/// The first connection to any of `addresses`. One that is silent is tried again while others are waited for.
async fn race(addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), String> {
    let end = Instant::now() + CONNECT;
    let mut tries = FuturesUnordered::new();
    let mut failed: Vec<(SocketAddr, String)> = Vec::new();
    let (mut next, mut at) = (0, Instant::now());
    loop {
        tokio::select! {
            Some((address, tried)) = tries.next() => match tried {
                Ok(stream) => return Ok((stream, address)),
                Err(error) => {
                    let error: std::io::Error = error;
                    failed.push((address, error.to_string()));
                    if failed.len() >= addresses.len() && tries.is_empty() {
                        break;
                    }
                    if next < addresses.len() {
                        at = Instant::now();
                    }
                }
            },
            () = tokio::time::sleep_until(at) => {
                let address = addresses[next % addresses.len()];
                next += 1;
                at += if next < addresses.len() { STAGGER } else { REPEAT / addresses.len() as u32 };
                if !failed.iter().any(|(other, _)| *other == address) {
                    tries.push(async move { (address, TcpStream::connect(address).await) });
                }
            }
            () = tokio::time::sleep_until(end) => break,
        }
    }
    let of_each = addresses.iter().take(MAX_TOLD).map(|address| {
        match failed.iter().find(|(other, _)| other == address) {
            Some((_, error)) => format!("cannot connect to {address}: {error}"),
            None => format!("no answer from {address} within {} s", CONNECT.as_secs()),
        }
    });
    Err(of_each.collect::<Vec<_>>().join("; "))
}

fn told(addresses: &[SocketAddr]) -> String {
    addresses.iter().take(MAX_TOLD).map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// A port that is listened on, and whose queue is full: the kernel drops what else comes.
    async fn silent() -> (SocketAddr, Vec<TcpStream>, tokio::net::TcpListener) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(address("127.0.0.1:0")).unwrap();
        let listener = socket.listen(1).unwrap();
        let there = listener.local_addr().unwrap();
        let mut filling = Vec::new();
        while let Ok(connected) =
            tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(there)).await
        {
            filling.push(connected.unwrap());
        }
        (there, filling, listener)
    }

    #[tokio::test]
    async fn an_address_that_swallows_packets_does_not_hold_up_the_next() {
        let (silent, _filling, _full) = silent().await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let began = Instant::now();
        let (_, address) = race(&[silent, good]).await.unwrap();
        assert_eq!(address, good);
        assert!(began.elapsed() >= STAGGER && began.elapsed() < CONNECT, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn an_error_names_what_each_address_did() {
        let (silent, _filling, _full) = silent().await;
        let closed = {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let began = Instant::now();
        let text = race(&[closed]).await.unwrap_err();
        assert!(began.elapsed() < CONNECT, "a refusal is no silence");
        assert!(text.starts_with(&format!("cannot connect to {closed}: ")), "{text}");
        let text = race(&[closed, silent]).await.unwrap_err();
        assert!(text.ends_with(&format!("; no answer from {silent} within 5 s")), "{text}");
    }

    #[tokio::test]
    async fn one_lookup_is_under_way_for_each_name_and_its_answer_is_shared() {
        let name = "localhost:1";
        let both = tokio::join!(resolve(name, |_| ()), resolve(name, |_| ()));
        assert!(both.0.is_ok() && both.0 == both.1, "{both:?}");
        with_name(name, |name| (name.is_looked_up, name.found) = (true, None));
        // None begins while another is under way, and what is known is used meanwhile.
        assert_eq!(resolve(name, |_| panic!("it waits for the lookup")).await, both.0);
        let unknown = resolve("no-such-host.invalid:1", |_| ()).await.unwrap_err();
        assert!(unknown.starts_with("cannot look up no-such-host.invalid: "), "{unknown}");
    }

    #[test]
    fn the_families_take_turns_and_what_was_good_comes_first() {
        let [a, b, c] = ["[::1]:1", "[::2]:1", "10.0.0.1:1"].map(address);
        assert_eq!(interleaved(&[a, b, c]), [a, c, b]);
        let mut name = Name::default();
        name.answered(Ok(vec![a, b, c]));
        prefer(&mut name.addresses, b);
        name.answered(Ok(vec![a, b, c]));
        assert_eq!(name.addresses, [b, a, c]);
        name.answered(Err(std::io::Error::other("no server answers")));
        assert_eq!(name.addresses, [b, a, c], "a name server that is away changes nothing");
    }
}
