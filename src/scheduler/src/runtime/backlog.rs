//! Holds back messages with inline images while their peer is still reading earlier ones. They wait as
//! effects; their images are read from the store only when the peer has room, so slow peers cost little
//! memory.
//!
//! Does not: send. [`super::effects`] puts released messages back in front of the other effects.

use std::collections::{HashMap, HashSet, VecDeque};

use lamagrid_domain::{SessionId, TaskId};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{ClientReply, LaneMessage};

use crate::core::Effect;

/// Limit of unread bytes at one peer. At the limit, its further images are held back.
pub(super) const WINDOW_BYTES: usize = 2 << 20;
/// Upper bound of images held back for one peer. A peer that behaves stays below it: a client follows fewer
/// tasks, and a node has fewer slots.
const MAX_HELD_BACK: usize = 4_096;

/// Receiver of a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Destination {
    /// A client's connection.
    Client(PeerId),
    /// One lane of a session.
    Lane(SessionId, usize),
}

/// Inline images of one message: their receiver, task and total length.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Images {
    pub(super) destination: Destination,
    pub(super) task: TaskId,
    pub(super) bytes: usize,
}

impl Images {
    /// The images that an effect sends; `None` if it sends none.
    pub(super) fn of(effect: &Effect) -> Option<Self> {
        let (destination, task, bytes) = match effect {
            Effect::Client { peer, attach: Some((task, _)), reply } => {
                let bytes = match reply {
                    ClientReply::Outcome(outcome) => outcome.result.as_ref().map_or(0, |result| result.len),
                    _ => 0,
                };
                (Destination::Client(peer.clone()), *task, bytes)
            }
            Effect::Lane { session, index, attach: Some((task, roles)), message } => {
                let bytes = match message {
                    LaneMessage::Assign(assign) => {
                        let inline = assign.spec.blobs.iter().filter(|blob| roles.contains(&blob.role));
                        inline.map(|blob| blob.len).sum()
                    }
                    LaneMessage::Hint(_) => 0,
                };
                (Destination::Lane(*session, *index), *task, bytes)
            }
            _ => return None,
        };
        Some(Self { destination, task, bytes: usize::try_from(bytes).unwrap_or(usize::MAX) })
    }
}

/// Messages held back, by receiver.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    held_back: HashMap<Destination, HeldBack>,
}

#[derive(Debug, Default)]
struct HeldBack {
    effects: VecDeque<Effect>,
    tasks: HashSet<TaskId>,
}

/// Result of [`Backlog::hold`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HoldResult {
    /// The message waits, or the same message is already waiting.
    Held,
    /// Too many messages wait: the peer does not read.
    TooMany,
}

impl Backlog {
    /// True if messages for `destination` are held back; later ones must then wait behind them.
    pub(super) fn holds(&self, destination: &Destination) -> bool {
        self.held_back.contains_key(destination)
    }

    /// Holds a message back. A client's repeated requests for one outcome hold it only once.
    pub(super) fn hold(&mut self, images: Images, effect: Effect) -> HoldResult {
        let is_client = matches!(images.destination, Destination::Client(_));
        let held = self.held_back.entry(images.destination).or_default();
        if !held.tasks.insert(images.task) && is_client {
            return HoldResult::Held;
        }
        if held.effects.len() >= MAX_HELD_BACK {
            return HoldResult::TooMany;
        }
        held.effects.push_back(effect);
        HoldResult::Held
    }

    /// Takes all messages held back for `destination`, oldest first. Called when it has room again or is
    /// gone.
    pub(super) fn release(&mut self, destination: &Destination) -> VecDeque<Effect> {
        self.held_back.remove(destination).map(|held| held.effects).unwrap_or_default()
    }

    /// Receivers for which messages are held back.
    pub(super) fn destinations(&self) -> Vec<Destination> {
        self.held_back.keys().cloned().collect()
    }

    /// Drops all messages held back for a session that has ended.
    pub(super) fn forget_session(&mut self, session: SessionId) {
        self.held_back
            .retain(|destination, _| !matches!(destination, Destination::Lane(of, _) if *of == session));
    }
}
