//! The line before ZMTP: which channel a peer wants, and what the gate says to that.

use std::io;

use lamagrid_domain::FailureKind;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::blobs::Transfer;
use super::credentials::{Certificate, PeerRole};
use super::places::NoPlace;
use super::validity::{SCHEDULER_SHOWS, date, wall_ms};
use crate::frame::{MAJOR, MINOR};

/// Longest line, its end included.
pub(super) const MAX_LINE_BYTES: usize = 512;
const GREETING: &str = "lamagrid";

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Channel {
    /// Of the scheduler's own sockets.
    Named(&'static str),
    /// A lane, by the name of its socket.
    Lane(String),
    /// A blob.
    Blob(Transfer),
    /// So many bytes there and back, to see whether they get through.
    Probe,
}

impl Channel {
    /// What it is called: for one that ends at a socket, that one's name.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::Lane(name) => name,
            Self::Blob(_) => "blob",
            Self::Probe => PROBE,
        }
    }

    /// Whether a peer of this role may use it.
    pub(super) fn is_for(&self, role: PeerRole) -> bool {
        match (self, role) {
            (Self::Blob(transfer), role) => transfer.is_for(role),
            (Self::Probe, role) => role != PeerRole::Scheduler,
            (Self::Named("control" | "result" | "node-events") | Self::Lane(_), PeerRole::Node) => true,
            (Self::Named("client"), PeerRole::Client | PeerRole::Admin) => true,
            (Self::Named("admin"), PeerRole::Admin) => true,
            (Self::Named(_) | Self::Lane(_), _) => false,
        }
    }
}

/// The channels that have a name.
pub(super) const NAMED: [&str; 5] = ["client", "admin", "control", "result", "node-events"];

/// What a probe asks for.
pub(super) const PROBE: &str = "probe";

/// A line that asks for a channel.
pub(super) fn request(channel: &str) -> String {
    format!("{GREETING} {MAJOR}.{MINOR} {channel}\n")
}

/// What a line asks for, or what is told to its sender.
pub(super) fn parse(line: &str) -> Result<Channel, Refused> {
    let wrong = || Refused::new(FailureKind::InvalidInput, "this is no line of a LamaGrid gate");
    let words: Vec<&str> = line.split(' ').collect();
    let [GREETING, version, rest @ ..] = &words[..] else { return Err(wrong()) };
    let (major, minor) = version.split_once('.').ok_or_else(wrong)?;
    let (Ok(major), Ok(minor)) = (major.parse::<u8>(), minor.parse::<u8>()) else { return Err(wrong()) };
    if major != MAJOR || minor.abs_diff(MINOR) > 1 {
        let text = format!(
            "you speak protocol {major}.{minor}, the scheduler {MAJOR}.{MINOR}: install the same lamagrid version on both"
        );
        return Err(Refused::new(FailureKind::Incompatible, text));
    }
    if let Some(transfer) = Transfer::parse(rest) {
        return Ok(Channel::Blob(transfer));
    }
    let [channel] = rest else { return Err(wrong()) };
    if *channel == PROBE {
        return Ok(Channel::Probe);
    }
    if let Some(name) = NAMED.into_iter().find(|name| name == channel) {
        return Ok(Channel::Named(name));
    }
    let is_lane = |name: &str| {
        let rest = name.strip_prefix("lane-").and_then(|rest| rest.split_once('-'));
        rest.is_some_and(|(session, index)| {
            session.len() == 16
                && session.bytes().all(|b| b.is_ascii_hexdigit())
                && (1..=3).contains(&index.len())
                && index.bytes().all(|b| b.is_ascii_digit())
        })
    };
    if is_lane(channel) { Ok(Channel::Lane((*channel).to_owned())) } else { Err(wrong()) }
}

const NOT_GRANTED: &str = "this blob is not yours, or its task has ended";
const NO_ROOM: &str = "no room: ";

/// What a gate says to a line that it does not follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(super) struct Refused {
    /// Decides the exit code on the other side, and whether it tries again.
    pub(super) kind: FailureKind,
    /// For people there.
    pub(super) text: String,
}

impl Refused {
    pub(super) fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// What was asked for is somebody else's, or nobody's any more; or not known yet, just after a scheduler's start.
    pub(super) fn not_granted() -> Self {
        Self::new(FailureKind::Disconnected, NOT_GRANTED)
    }

    pub(super) fn is_not_granted(&self) -> bool {
        self.text == NOT_GRANTED
    }

    /// All places are taken.
    pub(super) fn no_room(reason: &NoPlace) -> Self {
        Self::new(FailureKind::Disconnected, format!("{NO_ROOM}{reason}"))
    }

    /// The peer's certificate is not valid by the clock of the gate's host; `valid` says when it is.
    pub(super) fn wrong_time(certificate: &Certificate, valid: &str) -> Self {
        let text = format!(
            "the certificate of {certificate} is {valid}, and {SCHEDULER_SHOWS} {}: set the wrong clock right, or ask for a \
             new bundle",
            date(wall_ms())
        );
        Self::new(FailureKind::Disconnected, text)
    }

    /// Whether the gate refuses what it may let in at another time, so that its sender should not ask again at once.
    pub(super) fn is_for_now(&self) -> bool {
        self.kind == FailureKind::Disconnected
            && (self.text.starts_with(NO_ROOM) || self.text.contains(SCHEDULER_SHOWS))
    }

    fn line(&self) -> String {
        let text: String = self.text.chars().filter(|c| !c.is_control()).take(300).collect();
        format!("refused {} {text}\n", self.kind.as_str())
    }
}

/// The answer to a line: a welcome says what the clock of the gate's host shows.
pub(super) fn answer(verdict: Result<(), &Refused>) -> String {
    verdict.map_or_else(Refused::line, |()| format!("welcome {}\n", wall_ms()))
}

/// What an answer says, a welcome in milliseconds since the Unix epoch; `None` if it is no gate's.
pub(super) fn read_answer(line: &str) -> Option<Result<u64, Refused>> {
    if let Some(wall_ms) = line.strip_prefix("welcome ") {
        return wall_ms.parse().ok().map(Ok);
    }
    let (kind, text) = line.strip_prefix("refused ")?.split_once(' ')?;
    let kind = FailureKind::ALL.iter().copied().find(|known| known.as_str() == kind)?;
    Some(Err(Refused::new(kind, text)))
}

/// Reads one line, byte by byte, so that nothing behind it is taken.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut line = Vec::new();
    while line.len() < MAX_LINE_BYTES {
        match from.read_u8().await? {
            b'\n' => {
                return String::from_utf8(line)
                    .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the first line is not a text"));
            }
            byte => line.push(byte),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the first line does not end"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_channels_and_versions() {
        assert_eq!(parse(request("control").trim_end()), Ok(Channel::Named("control")));
        let lane = "lane-0123456789abcdef-2";
        assert_eq!(parse(request(lane).trim_end()), Ok(Channel::Lane(lane.into())));
        for wrong in [
            "",
            "GET / HTTP/1.1",
            "lamagrid 1.5",
            "lamagrid 1.5 lane-../../etc-0",
            "lamagrid 1.5 lane-0123456789abcdef-",
            "lamagrid 1.5 client more",
            "lamagrid x.4 client",
        ] {
            assert_eq!(parse(wrong).unwrap_err().kind, FailureKind::InvalidInput, "{wrong}");
        }
        let other = parse(&format!("lamagrid {}.0 client", MAJOR + 1)).unwrap_err();
        assert_eq!(other.kind, FailureKind::Incompatible);
        assert_eq!(read_answer(answer(Err(&other)).trim_end()), Some(Err(other)));
        let now_ms = read_answer(answer(Ok(())).trim_end()).unwrap().unwrap();
        assert!(now_ms > 1_700_000_000_000, "{now_ms} is in no year that LamaGrid saw");
        assert_eq!(read_answer("welcome -1"), None);
        assert_eq!(read_answer("HTTP/1.1 400 Bad Request"), None);
    }

    #[test]
    fn roles_have_their_channels() {
        let may = |role| {
            let lane = Channel::Lane("lane-0123456789abcdef-0".into());
            let named = NAMED.into_iter().map(Channel::Named).chain([lane]);
            named
                .filter(|channel| channel.is_for(role))
                .map(|channel| channel.name().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(may(PeerRole::Node), ["control", "result", "node-events", "lane-0123456789abcdef-0"]);
        assert_eq!(may(PeerRole::Client), ["client"]);
        assert_eq!(may(PeerRole::Admin), ["client", "admin"]);
        assert!(may(PeerRole::Scheduler).is_empty());
    }
}
