//! Encodes and parses the line that a peer sends through TLS before ZMTP to choose a channel, and the gate's answer.
//!
//! Does not: read from connections, or decide who may use a channel.

use lamagrid_domain::FailureKind;

use crate::frame::{MAJOR, MINOR};
use crate::transfer::Transfer;

/// Longest line in bytes, including its line feed.
pub const MAX_LINE_BYTES: usize = 512;
const GREETING: &str = "lamagrid";

/// The channels that are the scheduler's own sockets.
pub const NAMED: [&str; 5] = ["client", "admin", "control", "result", "node-events"];

/// The word that requests [`Channel::Probe`].
pub const PROBE: &str = "probe";

/// The purpose of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channel {
    /// One of the scheduler's own sockets.
    Named(&'static str),
    /// A lane, named by its socket.
    Lane(String),
    /// The transfer of a blob.
    Blob(Transfer),
    /// A test that sends bytes in both directions, to check the path.
    Probe,
}

impl Channel {
    /// The channel's name; for a channel with a socket, the socket's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::Lane(name) => name,
            Self::Blob(_) => "blob",
            Self::Probe => PROBE,
        }
    }
}

/// The line that requests a channel.
#[must_use]
pub fn request(channel: &str) -> String {
    format!("{GREETING} {MAJOR}.{MINOR} {channel}\n")
}

/// Parses a line; returns the requested channel, or the refusal to send back.
///
/// # Errors
/// [`Refused`].
pub fn parse(line: &str) -> Result<Channel, Refused> {
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

/// A gate's refusal of a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refused {
    /// The failure kind, which decides the peer's exit code and whether it retries.
    pub kind: FailureKind,
    /// The text for people on the peer's side.
    pub text: String,
}

impl Refused {
    /// Creates a refusal.
    #[must_use]
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// The blob belongs to another peer or to an ended task, or its grant is not known yet after a scheduler's start.
    #[must_use]
    pub fn not_granted() -> Self {
        Self::new(FailureKind::Disconnected, NOT_GRANTED)
    }

    /// True if this is [`Refused::not_granted`].
    #[must_use]
    pub fn is_not_granted(&self) -> bool {
        self.text == NOT_GRANTED
    }

    fn line(&self) -> String {
        let text: String = self.text.chars().filter(|c| !c.is_control()).take(300).collect();
        format!("refused {} {text}\n", self.kind.as_str())
    }
}

/// Encodes the answer to a line. A welcome carries the time of the gate's host, in milliseconds since the Unix epoch.
#[must_use]
pub fn answer(verdict: Result<u64, &Refused>) -> String {
    verdict.map_or_else(Refused::line, |wall_ms| format!("welcome {wall_ms}\n"))
}

/// Parses an answer: the time of the gate's host or a refusal; `None` if it is not a gate's answer.
#[must_use]
pub fn read_answer(line: &str) -> Option<Result<u64, Refused>> {
    if let Some(wall_ms) = line.strip_prefix("welcome ") {
        return wall_ms.parse().ok().map(Ok);
    }
    let (kind, text) = line.strip_prefix("refused ")?.split_once(' ')?;
    let kind = FailureKind::ALL.iter().copied().find(|known| known.as_str() == kind)?;
    Some(Err(Refused::new(kind, text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed_and_invalid_ones_rejected() {
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
        assert_eq!(read_answer(answer(Ok(1_700_000_000_000)).trim_end()), Some(Ok(1_700_000_000_000)));
        assert_eq!(read_answer("welcome -1"), None);
        assert_eq!(read_answer("HTTP/1.1 400 Bad Request"), None);
    }
}
