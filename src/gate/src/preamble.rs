//! Decides which channels and transfers each role may use, and builds refusals that name a certificate.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use lamagrid_domain::FailureKind;
use lamagrid_process::wall_clock::wall_ms;
use lamagrid_protocol::preamble::{Channel, MAX_LINE_BYTES, Refused};
use lamagrid_protocol::transfer::{Blob, Transfer};

use crate::certificate::{Certificate, PeerRole};
use crate::places::NoPlace;
use crate::validity::{SCHEDULER_SHOWS, date};

const NO_ROOM: &str = "no room: ";

/// True if a peer of this role may use a channel.
pub(crate) fn may_use(role: PeerRole, channel: &Channel) -> bool {
    match (channel, role) {
        (Channel::Blob(transfer), role) => may_transfer(role, *transfer),
        (Channel::Probe, role) => role != PeerRole::Scheduler,
        (Channel::Named("control" | "result" | "node-events") | Channel::Lane(_), PeerRole::Node) => true,
        (Channel::Named("client"), PeerRole::Client | PeerRole::Admin) => true,
        (Channel::Named("admin"), PeerRole::Admin) => true,
        (Channel::Named(_) | Channel::Lane(_), _) => false,
    }
}

/// True if a peer of this role may request a transfer.
pub(crate) fn may_transfer(role: PeerRole, transfer: Transfer) -> bool {
    match transfer.blob {
        Blob::Input(..) | Blob::Attempt(_) => role == PeerRole::Node,
        Blob::Upload(..) | Blob::Result(_) => matches!(role, PeerRole::Client | PeerRole::Admin),
    }
}

/// The refusal when no place is free; temporary.
pub(crate) fn no_room(reason: &NoPlace) -> Refused {
    Refused::new(FailureKind::Disconnected, format!("{NO_ROOM}{reason}"))
}

/// The refusal of a certificate that is not valid by the clock of the gate's host; `valid` describes its validity. Temporary.
pub(crate) fn wrong_time(certificate: &Certificate, valid: &str) -> Refused {
    let text = format!(
        "the certificate of {certificate} is {valid}, and {SCHEDULER_SHOWS} {}: set the wrong clock right, or ask for a \
         new bundle",
        date(wall_ms())
    );
    Refused::new(FailureKind::Disconnected, text)
}

/// True if the refusal is temporary, so that the peer should wait before it tries again.
pub(crate) fn is_temporary(refused: &Refused) -> bool {
    refused.kind == FailureKind::Disconnected
        && (refused.text.starts_with(NO_ROOM) || refused.text.contains(SCHEDULER_SHOWS))
}

/// Reads one line, byte by byte, so that the bytes after it stay in the stream.
pub(crate) async fn read_line(from: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
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
    use lamagrid_protocol::preamble::NAMED;

    use super::*;

    #[test]
    fn each_role_has_its_channels() {
        let may = |role| {
            let lane = Channel::Lane("lane-0123456789abcdef-0".into());
            let named = NAMED.into_iter().map(Channel::Named).chain([lane]);
            named
                .filter(|channel| may_use(role, channel))
                .map(|channel| channel.name().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(may(PeerRole::Node), ["control", "result", "node-events", "lane-0123456789abcdef-0"]);
        assert_eq!(may(PeerRole::Client), ["client"]);
        assert_eq!(may(PeerRole::Admin), ["client", "admin"]);
        assert!(may(PeerRole::Scheduler).is_empty());
    }
}
