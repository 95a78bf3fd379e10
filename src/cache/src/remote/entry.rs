//! The value of a task's key: a line for scripts, then the encoded state.

use std::time::Duration;

use crate::cache::Epoch;
use crate::freshness::{Source, shown as fresh};
use crate::state::{MAX_STATE_BYTES, TaskState};

/// The longest line: epoch, version of 16 digits, source, time of 16 digits, and the spaces between them.
const MAX_LINE_BYTES: usize = 32 + 16 + 1 + 16 + 4;
/// The longest value that is read, as the index of its last byte. Longer ones are none of ours.
pub(super) const MAX_BYTES: usize = MAX_LINE_BYTES + MAX_STATE_BYTES;
/// The longest head that is read, in the same way.
pub(super) const MAX_HEAD_BYTES: usize = 64;
/// Redis writes a value's time with the clock that readers ask for, so that only a clock that was set back is behind it.
const MAX_AHEAD_MS: u64 = 50;

/// The state in a value of this epoch, if it may be shown.
pub(super) fn shown(bytes: &[u8], epoch: Epoch, now_ms: u64) -> Option<TaskState> {
    let end = bytes.iter().take(MAX_LINE_BYTES).position(|byte| *byte == b'\n')?;
    let line = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut words = line.split(' ');
    let (of, _version, source, at) = (words.next()?, words.next()?, words.next()?, words.next()?);
    if Epoch::parse(of.as_bytes())? != epoch {
        return None;
    }
    let at_ms: u64 = at.parse().ok()?;
    let source = if source == "1" { Source::Feed } else { Source::Reader };
    let age = if at_ms > now_ms + MAX_AHEAD_MS {
        Duration::MAX
    } else {
        Duration::from_millis(now_ms.saturating_sub(at_ms))
    };
    fresh(TaskState::decode(&bytes[end + 1..])?, source, age)
}

#[cfg(test)]
mod tests {
    use lamagrid_domain::Status;

    use super::*;
    use crate::state::tests::state;

    fn value(line: &str, status: Status) -> Vec<u8> {
        let mut bytes = format!("{line}\n").into_bytes();
        bytes.extend(state(1, status, 1).encode().unwrap());
        bytes
    }

    #[test]
    fn values_are_shown_in_their_epoch_while_they_count() {
        let (epoch, other) = (Epoch::draw(), Epoch::draw());
        let fed = value(&format!("{epoch} 2 1 1000"), Status::Processing);
        assert!(shown(&fed, epoch, 9_000).is_some() && shown(&fed, other, 9_000).is_none());
        let put = value(&format!("{epoch} 2 0 1000"), Status::Processing);
        assert!(shown(&put, epoch, 1_900).is_some());
        assert!(shown(&put, epoch, 2_100).is_none(), "too old");
        assert!(shown(&put, epoch, 900).is_none(), "the clock was set back");
    }

    #[test]
    fn other_bytes_are_no_value() {
        let epoch = Epoch::draw();
        for bytes in [&b""[..], b"\n", b"x 1 1 1\n", b"\xff\xff\n", &[b' '; 4_000]] {
            assert_eq!(shown(bytes, epoch, 0), None);
        }
        let line = format!("{epoch} 2 1 1000\n");
        assert_eq!(shown(line.as_bytes(), epoch, 0), None, "a removed task");
        assert_eq!(shown(&line.as_bytes()[..20], epoch, 0), None);
    }
}
