//! Which task goes to which session: priorities, credit, affinity.
//!
//! Nothing is assigned without credit. A session's first credits stand for idle slots; the others, up to its overlap,
//! for tasks that it prepares meanwhile. A task is given on such an overlap credit only where no session that may have
//! it has a first one: no task waits behind a busy node while another fitting one is idle. What changes afterwards is
//! put right by `recall`.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use lamagrid_domain::{
    Advance, Event, LeaseToken, Milestone, ModelName, QueueName, SessionId, State, TaskId,
};
use lamagrid_wire::message::Assign;

use super::sessions::Session;
use super::{Core, Effect, StoreOp, Task};

/// Avoided tasks that are skipped when a session looks for work; more wait for the next look.
const MAX_SKIPPED: usize = 16;
/// Longer queues are not counted through to tell a task its position.
const MAX_COUNTED: usize = 1_000;

/// Where a task stands among those of its model: higher priority first, then by its client's share, then older first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    priority: Reverse<i8>,
    tag: u64,
    seq: u64,
    id: TaskId,
}

impl Rank {
    pub(crate) fn of(task: &Task) -> Self {
        Self { priority: Reverse(task.priority), tag: task.tag, seq: task.seq, id: task.spec.id }
    }

    /// Ahead of all tasks of this priority and of lower ones.
    pub(super) fn first_of(priority: i8) -> Self {
        Self { priority: Reverse(priority), tag: 0, seq: 0, id: TaskId::from_bytes([0; 16]) }
    }

    pub(super) fn task(&self) -> TaskId {
        self.id
    }
}

/// The waiting tasks of one model in one queue.
#[derive(Debug, Default)]
pub(crate) struct Waiting(BTreeSet<Rank>);

impl Waiting {
    /// How many go before `rank`, at most: a long queue is not counted through.
    pub(crate) fn ahead_of(&self, rank: &Rank) -> u64 {
        let all = self.0.len();
        let is_last = self.0.last().is_none_or(|last| last < rank);
        let ahead = if is_last || all > MAX_COUNTED { all } else { self.0.range(..rank).count() };
        ahead as u64
    }

    pub(super) fn replace(&mut self, before: &Rank, after: Rank) {
        if self.0.remove(before) {
            self.0.insert(after);
        }
    }

    /// Those of a priority below `priority`, the last of all first.
    pub(super) fn below(&self, priority: i8) -> impl Iterator<Item = &Rank> {
        let lower = priority.checked_sub(1).map(Rank::first_of);
        lower.into_iter().flat_map(|from| self.0.range(from..).rev())
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = TaskId> {
        self.0.iter().map(|rank| rank.id)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Core {
    /// Makes a queued task findable, now or once its delay is over, and counts it.
    pub(super) fn enqueue(&mut self, id: TaskId) {
        let task = self.tasks.get_mut(&id).expect("the caller holds a live task");
        task.queued_at_ms = self.clock_ms;
        let State::Queued { not_before_ms } = task.state else {
            unreachable!("only queued tasks are enqueued")
        };
        *self.queue_len.entry(task.spec.queue.clone()).or_default() += 1;
        if not_before_ms > self.clock_ms {
            self.delayed.insert((not_before_ms, id));
        } else {
            let key = (task.spec.queue.clone(), task.spec.model.clone());
            let rank = Rank::of(task);
            self.waiting.entry(key).or_default().0.insert(rank);
        }
        self.watch_wait(id);
    }

    /// Takes a task out of the indexes of waiting tasks, if it is there.
    pub(super) fn unqueue(&mut self, id: TaskId) {
        self.forget_wait(id);
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let State::Queued { not_before_ms } = task.state else { return };
        task.queue_ms += self.clock_ms.saturating_sub(task.queued_at_ms);
        let key = (task.spec.queue.clone(), task.spec.model.clone());
        let rank = Rank::of(task);
        if let Some(waiting) = self.waiting.get_mut(&key) {
            waiting.0.remove(&rank);
            if waiting.0.is_empty() {
                self.waiting.remove(&key);
            }
        }
        self.delayed.remove(&(not_before_ms, id));
        if let Some(len) = self.queue_len.get_mut(&key.0) {
            *len -= 1;
        }
    }

    /// Gives a waiting task to the best session that can take it, if there is one, behind tasks that go before it.
    pub(super) fn place(&mut self, id: TaskId) {
        while self.best_for(id).is_some() {
            self.assign_in_order(id);
        }
    }

    /// Gives a session work while it has credit and work waits for it.
    pub(super) fn feed(&mut self, session: SessionId) {
        while let Some(id) = self.next_for(session) {
            self.assign_in_order(id);
        }
    }

    /// Assigns a task that some session can take, or one that goes before it where it would go.
    fn assign_in_order(&mut self, mut id: TaskId) {
        loop {
            let session = self.best_for(id).expect("some session can take it");
            let rank = Rank::of(&self.tasks[&id]);
            match self.next_for(session).filter(|next| Rank::of(&self.tasks[next]) < rank) {
                Some(better) => id = better,
                None => {
                    #[cfg(test)]
                    self.check_choice(id, session);
                    return self.assign(id, session);
                }
            }
        }
    }

    /// The session that a waiting task goes to now.
    fn best_for(&self, id: TaskId) -> Option<SessionId> {
        let task = self.tasks.get(&id).filter(|task| matches!(task.state, State::Queued { .. }))?;
        if self.paused.contains(&task.spec.queue) {
            return None;
        }
        let waits = |s: &Session| {
            #[cfg(test)]
            if self.fault == Some(super::Fault::OverlapFirst) {
                return s.idle_slots() > 0;
            }
            s.idle_slots() == 0
        };
        let now = |s: &&Session| s.idle_slots() > 0 || !self.unprepared.contains(&id);
        let can_take = self.sessions.values().filter(|s| self.can_take(s) && self.fits(task, s)).filter(now);
        // An idle slot beats all else. Then a model in memory beats one that must be loaded; then fewer tasks that
        // wait for a slot there; then whoever was given nothing for longest.
        can_take
            .min_by_key(|s| {
                (waits(s), !s.has_loaded(&task.spec.model), s.waiting(), s.last_assigned_ms, s.id)
            })
            .map(|s| s.id)
    }

    /// Whether a session serves a task and may have it.
    pub(super) fn fits(&self, task: &Task, session: &Session) -> bool {
        session.offers(&task.spec.queue, &task.spec.model) && self.may_have(task, session)
    }

    fn next_for(&self, session: SessionId) -> Option<TaskId> {
        let session = self.sessions.get(&session).filter(|s| self.can_take(s))?;
        let models = session.info.models.iter();
        models
            .filter(|offer| !self.paused.contains(&offer.queue))
            .filter_map(|offer| {
                let waiting = self.waiting.get(&(offer.queue.clone(), offer.model.clone()))?;
                let mut ranks = waiting.0.iter().take(MAX_SKIPPED);
                ranks.find(|rank| self.may_have(&self.tasks[&rank.id], session))
            })
            .min()
            .map(|rank| rank.id)
    }

    /// Whether a session may be given one more task now.
    pub(super) fn can_take(&self, session: &Session) -> bool {
        session.has_credit()
            && session.lanes_connected()
            && !session.draining
            && !self.is_suspect(session)
            && self.health.may_work(&session.node, self.clock_ms)
            && (session.idle_slots() > 0 || !self.must_keep_free(session))
    }

    /// Whether a task waits for an idle slot of this session: one that is never prepared beside another. While the
    /// node prepared others, no slot would become idle.
    fn must_keep_free(&self, session: &Session) -> bool {
        let waits = |task: &&Task| matches!(task.state, State::Queued { .. }) && self.fits(task, session);
        self.unprepared.iter().filter_map(|id| self.tasks.get(id)).any(|task| waits(&task))
    }

    /// Whether nothing was heard of a session for so long that it gets no new work.
    pub(super) fn is_suspect(&self, session: &Session) -> bool {
        self.clock_ms.saturating_sub(session.last_seen_ms) >= self.settings.scheduler.suspect_after_ms
    }

    /// A node that failed this task for its own reasons gets it again only where nobody else can.
    fn may_have(&self, task: &Task, session: &Session) -> bool {
        !task.avoid.contains(&session.node) || !self.has_other_node(task)
    }

    /// Whether a live node that the task does not avoid serves its model.
    pub(super) fn has_other_node(&self, task: &Task) -> bool {
        self.sessions.values().any(|s| {
            !s.draining
                && s.offers(&task.spec.queue, &task.spec.model)
                && !task.avoid.contains(&s.node)
                && !self.health.is_aside(&s.node)
        })
    }

    /// Whether any live node serves `model` from `queue`.
    pub(super) fn is_served(&self, queue: &QueueName, model: &ModelName) -> bool {
        self.sessions.values().any(|s| s.offers(queue, model))
    }

    fn assign(&mut self, id: TaskId, session: SessionId) {
        self.unqueue(id);
        let token = LeaseToken::from_bytes(self.draw());
        let accept_by = self.clock_ms + self.settings.scheduler.accept_timeout_ms;
        let task = self.tasks.get_mut(&id).expect("waiting tasks are live");
        let target = self.sessions.get_mut(&session).expect("the caller chose a live session");
        task.state = task.state.apply(Event::Assign { token, session }).expect("waiting tasks are queued");
        task.counters.attempts += 1;
        task.accepted = false;
        let node = target.node.clone();
        task.note(self.now, Milestone::Assigned { node: node.name.clone() });
        task.node = Some(node.clone());
        self.shares.given(task.tag);
        self.health.given(&node, token);
        task.progress = Advance::default();
        target.give(token, self.clock_ms, accept_by);
        let index = target.lane_of(&task.spec.queue).expect("a session that offers a queue has its lane");
        self.tokens.insert(token, id);
        let inline = task.inline.clone();
        let assign = Assign {
            token,
            attempt: task.counters.attempts,
            spec: task.spec.clone(),
            inline: inline.clone(),
        };
        let counters = task.counters;
        self.emit(Effect::Store(StoreOp::Assign { id, token, node, counters }));
        let attach = (!inline.is_empty()).then_some((id, inline));
        self.emit(Effect::Lane { session, index, message: assign.into(), attach });
        self.tell_followers(id);
    }
}
