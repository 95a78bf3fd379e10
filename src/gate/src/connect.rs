//! Connects to a scheduler by TCP: resolves its name, then tries its addresses with staggered starts (RFC 8305).
//!
//! A lookup runs in the system's resolver on a thread that cannot be stopped, so a process runs at most one
//! per name. All connections share its cached answer, so that a slow name server delays only the first one.

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

/// Limit on a lookup: the resolver asks each name server twice, for 5 s each.
pub(crate) const LOOKUP: Duration = Duration::from_secs(20);
/// Limit on all tries to connect together.
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// Delay between the first tries of two addresses.
const STAGGER: Duration = Duration::from_millis(250);
/// Interval between tries of one address; the kernel's own pauses before it repeats a lost packet grow.
const REPEAT: Duration = Duration::from_secs(1);
/// An answer older than this is still used, while a new lookup runs.
const FRESH: Duration = Duration::from_secs(30);
/// Most addresses named in an error text.
const MAX_NAMED: usize = 4;

/// The cached answer for a name.
#[derive(Debug, Default)]
struct Name {
    /// The addresses of the last successful lookup, in the order in which they are tried.
    addresses: Vec<SocketAddr>,
    /// When the addresses were found; `None` after connecting to them failed.
    found: Option<Instant>,
    /// The error of the last lookup, if it failed.
    error: String,
    is_looked_up: bool,
}

/// The cached answers by `host:port`; a process uses only the few that bundles name.
static NAMES: LazyLock<Mutex<HashMap<String, watch::Sender<Name>>>> = LazyLock::new(Mutex::default);

/// Why no connection to a scheduler's address was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The name servers know no address of the host.
    #[error("cannot look up {host}: {reason}")]
    Lookup {
        /// The host's name.
        host: String,
        /// The resolver's error.
        reason: String,
    },
    /// The name servers did not answer in time.
    #[error(
        "looking up {0} took longer than {limit_s} s: do the name servers in /etc/resolv.conf answer?",
        limit_s = LOOKUP.as_secs()
    )]
    LookupTimeout(String),
    /// No address accepted a connection: the errors of the first addresses.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Addresses(Vec<AddressError>),
    /// The connection broke at once.
    #[error("{0}")]
    Broken(String),
}

/// Why one address did not accept a connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The connection failed.
    #[error("cannot connect to {address}: {reason}")]
    Failed {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        reason: String,
    },
    /// The address did not answer in time.
    #[error("no answer from {0} within {limit_s} s", limit_s = CONNECT.as_secs())]
    Timeout(SocketAddr),
}

/// Connects to `scheduler` (`host:port`); calls `step` with a description of each step.
pub(crate) async fn connect(scheduler: &str, step: impl Fn(String)) -> Result<TcpStream, ConnectError> {
    let addresses = resolve(scheduler, &step).await?;
    step(format!("connecting to {}", named(&addresses)));
    let connected = race(&addresses).await;
    with_name(scheduler, |name| match &connected {
        Ok((_, address)) => prefer(&mut name.addresses, *address),
        Err(_) => name.found = None,
    });
    connected.map(|(stream, _)| stream)
}

/// Returns the addresses of `scheduler`.
pub(crate) async fn resolve(scheduler: &str, step: impl Fn(String)) -> Result<Vec<SocketAddr>, ConnectError> {
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
        Ok(Ok(name)) => Err(ConnectError::Lookup { host: host.to_owned(), reason: name.error.clone() }),
        Ok(Err(_)) | Err(_) => Err(ConnectError::LookupTimeout(host.to_owned())),
    }
}

/// Starts a lookup unless one is running or the last answer is fresh.
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
    /// Stores a resolver's answer. Known addresses are kept if it has none.
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

/// Alternates IPv4 and IPv6 addresses, starting with the family of the first one.
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

/// Returns the first connection to any of `addresses`. A silent address is tried again while the others are pending.
async fn race(addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), ConnectError> {
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
    let of_each = addresses.iter().take(MAX_NAMED).map(|address| {
        match failed.iter().find(|(other, _)| other == address) {
            Some((_, reason)) => AddressError::Failed { address: *address, reason: reason.clone() },
            None => AddressError::Timeout(*address),
        }
    });
    Err(ConnectError::Addresses(of_each.collect()))
}

fn named(addresses: &[SocketAddr]) -> String {
    addresses.iter().take(MAX_NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// A port whose accept queue is full, so that the kernel drops further connections.
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
    async fn a_silent_address_does_not_delay_the_next_one() {
        let (silent, _filling, _full) = silent().await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let began = Instant::now();
        let (_, address) = race(&[silent, good]).await.unwrap();
        assert_eq!(address, good);
        assert!(began.elapsed() >= STAGGER && began.elapsed() < CONNECT, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn an_error_describes_each_address() {
        let (silent, _filling, _full) = silent().await;
        let closed = {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let began = Instant::now();
        let text = race(&[closed]).await.unwrap_err().to_string();
        assert!(began.elapsed() < CONNECT, "a refusal is no silence");
        assert!(text.starts_with(&format!("cannot connect to {closed}: ")), "{text}");
        let text = race(&[closed, silent]).await.unwrap_err().to_string();
        assert!(text.ends_with(&format!("; no answer from {silent} within 5 s")), "{text}");
    }

    #[tokio::test]
    async fn one_lookup_runs_per_name_and_its_answer_is_shared() {
        let name = "localhost:1";
        let both = tokio::join!(resolve(name, |_| ()), resolve(name, |_| ()));
        assert!(both.0.is_ok() && both.0 == both.1, "{both:?}");
        with_name(name, |name| (name.is_looked_up, name.found) = (true, None));
        // A second lookup does not start while one is running, and the known addresses are used meanwhile.
        assert_eq!(resolve(name, |_| panic!("it waits for the lookup")).await, both.0);
        let unknown = resolve("no-such-host.invalid:1", |_| ()).await.unwrap_err().to_string();
        assert!(unknown.starts_with("cannot look up no-such-host.invalid: "), "{unknown}");
    }

    #[test]
    fn address_families_alternate_and_the_last_good_address_comes_first() {
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
