//! The sessions of connected nodes.

use std::collections::btree_map::Values;
use std::collections::{BTreeMap, BTreeSet};

use lamagrid_domain::{LeaseToken, SessionId};
use lamagrid_protocol::PeerId;

use super::session::Session;
use crate::core::node_id::NodeId;

/// All sessions by id.
///
/// Invariant: each lies under its own id, no two are of one node, and those with credit are listed as such.
#[derive(Default)]
pub(crate) struct Sessions {
    by_id: BTreeMap<SessionId, Session>,
    /// Those with credit, by when they were given a task last: of a thousand nodes, few have to be looked at for a task.
    with_credit: BTreeSet<(u64, SessionId)>,
    /// How many there have been.
    opened: u64,
}

impl Sessions {
    pub(crate) fn get(&self, id: SessionId) -> Option<&Session> {
        self.by_id.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.by_id.get_mut(&id)
    }

    /// The session, if this connection may speak for it.
    pub(crate) fn spoken_for(&mut self, id: SessionId, peer: &PeerId) -> Option<&mut Session> {
        self.by_id.get_mut(&id).filter(|session| session.belongs_to(peer))
    }

    pub(crate) fn of_node(&self, node: &NodeId) -> Option<&Session> {
        self.by_id.values().find(|session| session.node() == node)
    }

    /// The session whose `result` connection this is.
    pub(crate) fn of_peer(&self, peer: &PeerId) -> Option<&Session> {
        self.by_id.values().find(|session| session.peer() == Some(peer))
    }

    pub(crate) fn values(&self) -> Values<'_, SessionId, Session> {
        self.by_id.values()
    }

    /// Those with credit; the one that was given nothing for longest comes first.
    pub(crate) fn with_credit(&self) -> impl Iterator<Item = &Session> {
        self.with_credit.iter().map(|(_, id)| &self.by_id[id])
    }

    /// A node reported its credit; see [`Session::ready`].
    pub(crate) fn ready(&mut self, id: SessionId, credit: u64) {
        self.change_credit(id, |session| session.ready(credit));
    }

    /// An attempt is over on a node; see [`Session::delivered`].
    pub(crate) fn delivered(&mut self, id: SessionId, token: LeaseToken, credit: u64) {
        self.change_credit(id, |session| session.delivered(token, credit));
    }

    /// A node is given a task at `now_ms`, which it has to accept by `accept_by_ms`.
    pub(crate) fn give(&mut self, id: SessionId, token: LeaseToken, now_ms: u64, accept_by_ms: u64) {
        self.change_credit(id, |session| session.give(token, now_ms, accept_by_ms));
    }

    fn change_credit(&mut self, id: SessionId, change: impl FnOnce(&mut Session)) {
        let Some(session) = self.by_id.get_mut(&id) else { return };
        self.with_credit.remove(&(session.last_assigned_ms(), id));
        change(session);
        if session.has_credit() {
            self.with_credit.insert((session.last_assigned_ms(), id));
        }
    }

    pub(crate) fn ids(&self) -> Vec<SessionId> {
        self.by_id.keys().copied().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The number of a new session.
    pub(crate) fn next_number(&mut self) -> u64 {
        self.opened += 1;
        self.opened
    }

    pub(crate) fn insert(&mut self, session: Session) {
        debug_assert!(!session.has_credit(), "its node has not spoken yet");
        self.by_id.insert(session.id(), session);
    }

    pub(crate) fn remove(&mut self, id: SessionId) -> Option<Session> {
        let session = self.by_id.remove(&id)?;
        self.with_credit.remove(&(session.last_assigned_ms(), id));
        Some(session)
    }

    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        for (i, (id, session)) in self.by_id.iter().enumerate() {
            invariant!(*id == session.id(), "session {id} lies under another id");
            invariant!(session.number() <= self.opened, "session {id} has the number of a later one");
            let twin = self.by_id.values().skip(i + 1).find(|other| other.node() == session.node());
            invariant!(twin.is_none(), "two sessions are of node {}", session.node());
            session.check()?;
        }
        let able = self.by_id.values().filter(|session| session.has_credit());
        let able: BTreeSet<_> = able.map(|session| (session.last_assigned_ms(), session.id())).collect();
        invariant!(able == self.with_credit, "{:?} are listed with credit of {able:?}", self.with_credit);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::session::Registration;
    use super::*;
    use crate::core::policy::lanes::LanePlan;

    #[test]
    fn only_the_connections_of_its_node_speak_for_a_session() {
        let mut sessions = Sessions::default();
        let peer = PeerId::from_text("n");
        let id = SessionId::from_bytes([1; 16]);
        let info = crate::core::tests::info("n", 1, &[("gpu", "lama")]);
        let node = NodeId::new(&peer, info.name.clone());
        let plan = LanePlan::as_offered(&info);
        let registration = Registration {
            node: node.clone(),
            boot: None,
            info,
            plan,
            allowed: Vec::new(),
            slots: 1,
            overlap: 0,
            actions: Vec::new(),
        };
        let number = sessions.next_number();
        sessions.insert(Session::open(id, number, registration, 0));
        sessions.check().unwrap();
        let stranger = PeerId::from_text(&format!("mallory/{}", "\0".repeat(33)));
        assert!(sessions.spoken_for(id, &stranger).is_none());
        sessions.spoken_for(id, &peer).unwrap().set_peer(&peer);
        assert!(sessions.of_peer(&peer).is_some() && sessions.of_peer(&stranger).is_none());
        assert!(sessions.of_node(&node).is_some());
        sessions.remove(id).unwrap();
        assert!(sessions.of_node(&node).is_none() && sessions.len() == 0);
    }
}
