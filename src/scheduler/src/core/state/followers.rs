//! Connections and the tasks that they follow.

use std::collections::{BTreeSet, HashMap};

use lamagrid_domain::TaskId;
use lamagrid_protocol::PeerId;

use super::task::Task;

/// Followed tasks by connection: bounds them, and finds them when the connection closes.
///
/// Invariant: a connection is listed here for a task exactly if the task lists it as a follower.
#[derive(Debug, Default)]
pub(crate) struct Followers(HashMap<PeerId, BTreeSet<TaskId>>);

impl Followers {
    pub(crate) fn add(&mut self, peer: &PeerId, task: &mut Task) {
        if task.add_follower(peer) {
            self.0.entry(peer.clone()).or_default().insert(task.id());
        }
    }

    /// Forgets a connection. The tasks that it followed have to forget it as well.
    pub(crate) fn remove_peer(&mut self, peer: &PeerId) -> BTreeSet<TaskId> {
        self.0.remove(peer).unwrap_or_default()
    }

    /// A task ended: it keeps its list of followers until they are told.
    pub(crate) fn remove_task(&mut self, task: &Task) {
        for peer in task.followers() {
            if let Some(ids) = self.0.get_mut(peer) {
                ids.remove(&task.id());
                if ids.is_empty() {
                    self.0.remove(peer);
                }
            }
        }
    }

    /// How many tasks a connection follows.
    pub(crate) fn followed_by(&self, peer: &PeerId) -> usize {
        self.0.get(peer).map_or(0, BTreeSet::len)
    }

    #[cfg(test)]
    pub(crate) fn check<'a>(&self, tasks: impl Iterator<Item = &'a Task>) -> Result<(), String> {
        let mut expected = HashMap::<_, BTreeSet<_>>::new();
        for task in tasks {
            for peer in task.followers() {
                expected.entry(peer.clone()).or_default().insert(task.id());
            }
        }
        invariant!(self.0 == expected, "connections follow {:?}, tasks say {expected:?}", self.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::{spec, task};

    #[test]
    fn a_connection_follows_a_task_once_until_either_is_gone() {
        let (mut followers, peer) = (Followers::default(), PeerId::from_text("c"));
        let mut tasks = [task(spec(1)), task(spec(2))];
        for task in &mut tasks {
            followers.add(&peer, task);
            followers.add(&peer, task);
        }
        followers.check(tasks.iter()).unwrap();
        assert_eq!(followers.followed_by(&peer), 2);
        followers.remove_task(&tasks[0]);
        followers.check(tasks[1..].iter()).unwrap();
        assert_eq!(followers.remove_peer(&peer), BTreeSet::from([tasks[1].id()]));
        tasks[1].remove_follower(&peer);
        followers.check(tasks[1..].iter()).unwrap();
    }
}
