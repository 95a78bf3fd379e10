//! Messages with inline images whose peer is still reading what was sent to it before: they wait here as effects, whose
//! images are read from the store only once there is room for them.
//!
//! Does not: send. [`super::outflow`] puts them back in front of the other effects when the peer has read.

use std::collections::{HashMap, HashSet, VecDeque};

use lamagrid_domain::{SessionId, TaskId};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{ClientReply, LaneMessage};

use crate::core::Effect;

/// Bytes that wait for a peer before its further images are held back.
pub(super) const WINDOW_BYTES: usize = 2 << 20;
/// Images that wait for one peer; it follows fewer tasks, and a node has fewer slots.
const MAX_HELD_BACK: usize = 4_096;

/// Who a message is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Destination {
    /// A connection of `client`.
    Client(PeerId),
    /// One lane of a session.
    Lane(SessionId, usize),
}

/// Images that a message carries inline.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Images {
    pub(super) destination: Destination,
    pub(super) task: TaskId,
    pub(super) bytes: usize,
}

impl Images {
    /// Those of a message; none for every other effect.
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

/// What is held back.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    held_back: HashMap<Destination, HeldBack>,
}

#[derive(Debug, Default)]
struct HeldBack {
    effects: VecDeque<Effect>,
    tasks: HashSet<TaskId>,
}

/// What became of an effect that was to be held back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// It waits, or the same is waiting already.
    Back,
    /// Too many wait: its peer does not read.
    TooMany,
}

impl Backlog {
    /// Whether something waits for `destination`, so that what follows has to wait behind it.
    pub(super) fn holds(&self, destination: &Destination) -> bool {
        self.held_back.contains_key(destination)
    }

    /// Holds a message back. The same outcome is held once, however often a client asks for it.
    pub(super) fn hold(&mut self, images: Images, effect: Effect) -> Held {
        let is_client = matches!(images.destination, Destination::Client(_));
        let held = self.held_back.entry(images.destination).or_default();
        if !held.tasks.insert(images.task) && is_client {
            return Held::Back;
        }
        if held.effects.len() >= MAX_HELD_BACK {
            return Held::TooMany;
        }
        held.effects.push_back(effect);
        Held::Back
    }

    /// Takes what waits for `destination`, oldest first: there is room again, or the peer is gone.
    pub(super) fn release(&mut self, destination: &Destination) -> VecDeque<Effect> {
        self.held_back.remove(destination).map(|held| held.effects).unwrap_or_default()
    }

    /// Those for whom something waits.
    pub(super) fn destinations(&self) -> Vec<Destination> {
        self.held_back.keys().cloned().collect()
    }

    /// The session is over.
    pub(super) fn forget_session(&mut self, session: SessionId) {
        self.held_back
            .retain(|destination, _| !matches!(destination, Destination::Lane(of, _) if *of == session));
    }
}
