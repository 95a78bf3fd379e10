//! The sessions of connected nodes.

use std::collections::BTreeMap;
use std::collections::btree_map::Values;

use lamagrid_domain::SessionId;
use lamagrid_protocol::PeerId;

use super::session::Session;
use crate::core::node_id::NodeId;

/// All sessions by id.
///
/// Invariant: each lies under its own id, and no two are of one node.
#[derive(Default)]
pub(crate) struct Sessions {
    by_id: BTreeMap<SessionId, Session>,
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
        self.by_id.insert(session.id(), session);
    }

    pub(crate) fn remove(&mut self, id: SessionId) -> Option<Session> {
        self.by_id.remove(&id)
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
