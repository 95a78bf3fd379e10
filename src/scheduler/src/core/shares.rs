//! Fair shares between clients: where a task stands among those of its priority.
//!
//! Start-time fair queueing: each client has a virtual clock that each of its tasks moves on by the task's size, and a
//! task's tag is its client's clock when it came. Tasks with lower tags go first, so clients that have waiting tasks
//! are served by turns, in proportion to bytes, whatever one of them piles up. Compared with deficit round robin it
//! needs no turn to be kept anywhere: the order is a plain key. Decision 0009.
//!
//! Does not: weigh what runs; slots are shared by what waits for them.

use std::collections::HashMap;

use lamagrid_domain::{ClientName, Owner, QueueName, TaskSpec};

/// A task counts at least this much, in bytes: below it, what it costs is not its pixels.
const LEAST_SIZE: u64 = 64 * 1024;
/// Clocks that are kept before those that are behind are forgotten: they would start at the present anyway.
const MAX_CLOCKS: usize = 4_096;

/// Who a task's share and limits are counted against: its client, within its owner.
pub(super) fn holder(owner: &Owner, client: Option<&ClientName>) -> Box<str> {
    match client {
        Some(client) => format!("{owner}/{client}").into(),
        None => owner.as_str().into(),
    }
}

/// The virtual clocks.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// The highest tag that was given to a node.
    present: u64,
    clocks: HashMap<(QueueName, i8, Box<str>), u64>,
}

impl Shares {
    /// The tag of a task that comes now.
    pub(super) fn draw(&mut self, spec: &TaskSpec) -> u64 {
        let present = self.present;
        if self.clocks.len() >= MAX_CLOCKS {
            self.clocks.retain(|_, clock| *clock > present);
        }
        let clock = self
            .clocks
            .entry((spec.queue.clone(), spec.priority, holder(&spec.owner, spec.client.as_ref())))
            .or_default();
        let tag = (*clock).max(present);
        *clock = tag.saturating_add(spec.input_bytes().max(LEAST_SIZE));
        tag
    }

    /// A task of this tag was given to a node.
    pub(super) fn given(&mut self, tag: u64) {
        self.present = self.present.max(tag);
    }
}
