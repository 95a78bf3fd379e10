//! Commands that a node gets with its next poll.

use std::collections::BTreeSet;

use lamagrid_domain::LeaseToken;
use lamagrid_protocol::message::{Action, ActionKind, Command};

/// Commands kept. Above it the oldest recall is dropped, which only saves time, or else the oldest cancel: the token
/// list of a poll repairs that. Orders of administrators stay.
const MAX_COMMANDS: usize = 256;

/// Commands that the node has not acknowledged, in order.
#[derive(Debug, Default)]
pub(crate) struct CommandOutbox {
    commands: Vec<Command>,
    /// The number of the last command.
    last_seq: u64,
    /// Attempts that the node was told to stop and may still list: told once, or each poll would lead to the next one
    /// without a pause.
    stopped: BTreeSet<LeaseToken>,
}

impl CommandOutbox {
    /// Returns the number of the command.
    pub(crate) fn push(&mut self, action: Action) -> u64 {
        if self.commands.len() >= MAX_COMMANDS {
            let first = |kind| self.commands.iter().position(|c| c.action.kind() == kind);
            let least = first(ActionKind::Recall).or_else(|| first(ActionKind::Cancel)).unwrap_or(0);
            if let Action::Cancel { token } = self.commands.remove(least).action {
                self.stopped.remove(&token);
            }
        }
        if let Action::Cancel { token } = action {
            self.stopped.insert(token);
        }
        self.last_seq += 1;
        self.commands.push(Command { seq: self.last_seq, action });
        self.last_seq
    }

    /// The node has all commands up to this number.
    pub(crate) fn acknowledge(&mut self, seq: u64) {
        self.commands.retain(|command| command.seq > seq);
    }

    pub(crate) fn commands(&self) -> &[Command] {
        &self.commands
    }

    /// Tells the node to stop an unwanted attempt, once.
    pub(crate) fn stop(&mut self, token: LeaseToken) {
        if !self.stopped.contains(&token) {
            self.push(Action::Cancel { token });
        }
    }

    /// Forgets the stops of attempts that a poll does not list any more.
    pub(crate) fn forget_stopped(&mut self, listed: &[LeaseToken]) {
        let is_pending =
            |token: LeaseToken| self.commands.iter().any(|c| c.action == Action::Cancel { token });
        self.stopped.retain(|token| listed.contains(token) || is_pending(*token));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(n: usize) -> LeaseToken {
        LeaseToken::from_bytes((n as u128).to_be_bytes())
    }

    #[test]
    fn a_full_outbox_drops_a_recall_rather_than_a_cancel() {
        let mut outbox = CommandOutbox::default();
        outbox.push(Action::Cancel { token: token(0) });
        outbox.push(Action::Recall { token: token(1) });
        (2..MAX_COMMANDS + 1).for_each(|n| _ = outbox.push(Action::Cancel { token: token(n) }));
        let left = outbox.commands();
        assert_eq!(left.len(), MAX_COMMANDS);
        assert_eq!(left[0].action, Action::Cancel { token: token(0) });
        assert!(!left.iter().any(|c| matches!(c.action, Action::Recall { .. })));
        outbox.push(Action::Drain);
        assert_eq!(outbox.commands()[0].action, Action::Cancel { token: token(2) });
        (0..MAX_COMMANDS).for_each(|n| _ = outbox.push(Action::Cancel { token: token(n) }));
        assert_eq!(outbox.commands()[0].action, Action::Drain);
    }

    #[test]
    fn an_attempt_is_stopped_once_until_the_node_does_not_list_it_any_more() {
        let mut outbox = CommandOutbox::default();
        outbox.stop(token(1));
        outbox.stop(token(1));
        assert_eq!(outbox.commands().iter().map(|c| c.seq).collect::<Vec<_>>(), [1]);
        outbox.acknowledge(1);
        outbox.forget_stopped(&[token(1)]);
        outbox.stop(token(1));
        assert!(outbox.commands().is_empty());
        outbox.forget_stopped(&[]);
        outbox.stop(token(1));
        assert_eq!(outbox.commands().len(), 1);
    }
}
