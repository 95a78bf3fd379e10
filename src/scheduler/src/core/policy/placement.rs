//! Which task goes to which session: priorities, credit, affinity.
//!
//! Nothing is assigned without credit. A session's first credits stand for idle slots; the others, up to its overlap,
//! for tasks that it prepares meanwhile. A task is given on such an overlap credit only where no session that may have
//! it has a first one: no task waits behind a busy node while another fitting one is idle. What changes afterwards is
//! put right by `recall`.
//!
//! An isolated task, which shared a node with others when it was lost, goes only to a session that has nothing else,
//! and that session gets nothing else meanwhile. Where all are busy, the one with the least work is kept free for it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use lamagrid_domain::{LeaseToken, ModelName, Owner, QueueName, SessionId, TaskId};
use lamagrid_protocol::message::Assign;

use crate::core::state::fair_queue::Turn;
use crate::core::state::sessions::Session;
use crate::core::state::task::{Lease, Task};
use crate::core::{Core, Effect, StoreOp};

/// Avoided tasks of one owner that are skipped when a session looks for work; more wait for the next look.
const MAX_SKIPPED: usize = 16;
/// Longer queues are not counted through to tell a task its position.
const MAX_COUNTED: usize = 1_000;

/// Where a task stands: higher priority first, then the owner whose turn it is, then by its client's share, then older
/// first. The owner's turn moves on with each task that it is given, so a rank holds for the moment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    priority: Reverse<i8>,
    turn: Turn,
    owner: Owner,
    place: Place,
}

impl Rank {
    pub(crate) fn task(&self) -> TaskId {
        self.place.id
    }
}

/// Where a task stands among those of its owner and priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    tag: u64,
    seq: u64,
    id: TaskId,
}

impl Place {
    fn of(task: &Task) -> Self {
        Self { tag: task.tag(), seq: task.seq(), id: task.id() }
    }
}

/// Tasks of one priority, by their owners.
type Owners = BTreeMap<Owner, BTreeSet<Place>>;

/// The waiting tasks of one model in one queue.
#[derive(Debug, Default)]
pub(crate) struct Waiting(BTreeMap<Reverse<i8>, Owners>);

impl Waiting {
    fn insert(&mut self, task: &Task) {
        let owners = self.0.entry(Reverse(task.priority())).or_default();
        match owners.get_mut(&task.spec().owner) {
            Some(places) => _ = places.insert(Place::of(task)),
            None => _ = owners.insert(task.spec().owner.clone(), BTreeSet::from([Place::of(task)])),
        }
    }

    fn remove(&mut self, task: &Task) -> bool {
        let Some(owners) = self.0.get_mut(&Reverse(task.priority())) else { return false };
        let Some(places) = owners.get_mut(&task.spec().owner) else { return false };
        let was_there = places.remove(&Place::of(task));
        if places.is_empty() {
            owners.remove(&task.spec().owner);
            if owners.is_empty() {
                self.0.remove(&Reverse(task.priority()));
            }
        }
        was_there
    }

    /// About how many go before `task`: a long queue is not counted through, and of each other owner as many as of its
    /// own.
    pub(crate) fn ahead_of(&self, task: &Task) -> u64 {
        let mut ahead = 0;
        for (priority, owners) in self.0.range(..=Reverse(task.priority())) {
            let own = owners.get(&task.spec().owner).filter(|_| priority.0 == task.priority());
            let own_ahead = own.map(|places| {
                let place = Place::of(task);
                let is_last = places.last().is_none_or(|last| *last <= place);
                match places.len() {
                    all if is_last => all - usize::from(places.contains(&place)),
                    all if all > MAX_COUNTED => all,
                    _ => places.range(..place).count(),
                }
            });
            for (owner, places) in owners {
                ahead += match own_ahead {
                    Some(own_ahead) if *owner == task.spec().owner => own_ahead,
                    _ if priority.0 == task.priority() => places.len().min(own_ahead.unwrap_or(0) + 1),
                    _ => places.len(),
                } as u64;
            }
        }
        ahead
    }

    /// Those of a priority below `priority`, of one owner or of all: the last of each owner first, lowest priority first.
    pub(crate) fn below<'a>(
        &'a self,
        priority: i8,
        owner: Option<&'a Owner>,
    ) -> impl Iterator<Item = (i8, u64, TaskId)> + 'a {
        let lower = self.0.range((Bound::Excluded(Reverse(priority)), Bound::Unbounded)).rev();
        lower.flat_map(move |(priority, owners)| {
            let wanted = owners.iter().filter(move |(each, _)| owner.is_none_or(|owner| owner == *each));
            wanted.flat_map(|(_, places)| places.iter().rev()).map(|place| (priority.0, place.seq, place.id))
        })
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = TaskId> {
        self.0.values().flat_map(BTreeMap::values).flatten().map(|place| place.id)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.ids().count()
    }
}

impl Core {
    /// Makes a queued task findable, now or once its delay is over, and counts it.
    pub(crate) fn enqueue(&mut self, id: TaskId) {
        let task = self.tasks.get_mut(id).expect("the caller holds a live task");
        task.enter_queue(self.clock.elapsed_ms());
        let not_before_ms = task.not_before_ms().expect("only queued tasks are enqueued");
        *self.queue_len.entry(task.spec().queue.clone()).or_default() += 1;
        self.admission.task_queued(task.spec());
        if not_before_ms > self.clock.elapsed_ms() {
            self.delayed.insert((not_before_ms, id));
        } else {
            let key = (task.spec().queue.clone(), task.spec().model.clone());
            self.waiting.entry(key).or_default().insert(task);
            self.fair_queue.enter(task.spec(), task.priority());
        }
        self.timers.start_wait(task, &self.settings.scheduler, self.clock.elapsed_ms());
    }

    /// Takes a task out of the indexes of waiting tasks, if it is there.
    pub(crate) fn unqueue(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        self.timers.stop_wait(task);
        let Some(not_before_ms) = task.not_before_ms() else { return };
        task.leave_queue(self.clock.elapsed_ms());
        let key = (task.spec().queue.clone(), task.spec().model.clone());
        if let Some(waiting) = self.waiting.get_mut(&key) {
            if waiting.remove(task) {
                self.fair_queue.leave(task.spec(), task.priority());
            }
            if waiting.0.is_empty() {
                self.waiting.remove(&key);
            }
        }
        self.delayed.remove(&(not_before_ms, id));
        if let Some(len) = self.queue_len.get_mut(&key.0) {
            *len -= 1;
        }
        self.admission.task_unqueued(task.spec());
    }

    /// Gives a waiting task to the best session that can take it, if there is one, behind tasks that go before it.
    pub(crate) fn dispatch_task(&mut self, id: TaskId) {
        while self.best_for(id).is_some() {
            self.assign_in_order(id);
        }
    }

    /// Gives a session work while it has credit and work waits for it.
    pub(crate) fn dispatch_to(&mut self, session: SessionId) {
        while let Some(id) = self.next_for(session) {
            self.assign_in_order(id);
        }
    }

    /// Assigns a task that some session can take, or one that goes before it where it would go.
    fn assign_in_order(&mut self, mut id: TaskId) {
        loop {
            let session = self.best_for(id).expect("some session can take it");
            let rank = self.rank(&self.tasks[id]);
            match self.next_for(session).filter(|next| self.rank(&self.tasks[*next]) < rank) {
                Some(better) => id = better,
                None => {
                    #[cfg(test)]
                    if self.wrong_choice.is_none() {
                        self.wrong_choice = crate::core::check::wrong_choice(self, id, session);
                    }
                    return self.assign(id, session);
                }
            }
        }
    }

    /// Where a task stands at this moment.
    pub(crate) fn rank(&self, task: &Task) -> Rank {
        let spec = task.spec();
        let turn = self.fair_queue.turn(&spec.queue, task.priority(), &spec.owner);
        Rank { priority: Reverse(task.priority()), turn, owner: spec.owner.clone(), place: Place::of(task) }
    }

    /// Raises a waiting task's priority by one: it stands among others then.
    pub(crate) fn raise(&mut self, id: TaskId) {
        let task = self.tasks.get_mut(id).expect("only waiting tasks rise");
        let key = (task.spec().queue.clone(), task.spec().model.clone());
        let waiting = self.waiting.get_mut(&key);
        let in_index = waiting.and_then(|waiting| waiting.remove(task).then_some(waiting));
        if in_index.is_some() {
            self.fair_queue.leave(task.spec(), task.priority());
        }
        task.raise_priority();
        if let Some(waiting) = in_index {
            waiting.insert(task);
            self.fair_queue.enter(task.spec(), task.priority());
        }
    }

    /// The session that a waiting task goes to now.
    fn best_for(&self, id: TaskId) -> Option<SessionId> {
        let task = self.tasks.get(id).filter(|task| task.not_before_ms().is_some())?;
        if self.paused.contains_key(&task.spec().queue) {
            return None;
        }
        let can_take = self.sessions.values().filter(|s| self.can_take(s) && self.may_be_given(task, s));
        // An idle slot beats all else. Then a model in memory beats one that must be loaded; then fewer tasks that
        // wait for a slot there; then whoever was given nothing for longest.
        can_take
            .min_by_key(|s| {
                (
                    self.would_wait_on(s),
                    !s.has_loaded(&task.spec().model),
                    s.waiting(),
                    s.last_assigned_ms,
                    s.id,
                )
            })
            .map(|s| s.id)
    }

    /// Whether a task that is given to this session waits for a slot.
    fn would_wait_on(&self, session: &Session) -> bool {
        fault!(self, OverlapFirst => return session.idle_slots() > 0);
        session.idle_slots() == 0
    }

    /// Whether a session that can take a task may be given this one now.
    pub(crate) fn may_be_given(&self, task: &Task, session: &Session) -> bool {
        self.fits(task, session)
            && if self.runs_alone(task) {
                session.is_unused()
            } else {
                self.kept_free_for(session).is_none_or(|isolated| self.rank(task) < isolated)
            }
    }

    fn runs_alone(&self, task: &Task) -> bool {
        fault!(self, SuspectInCompany => return false);
        self.isolated.contains(&task.id())
    }

    /// Where the first isolated task stands for which a session is kept free: what stands behind it goes elsewhere.
    fn kept_free_for(&self, session: &Session) -> Option<Rank> {
        let waiting = self.isolated.iter().filter_map(|id| self.tasks.get(*id)).filter(|task| {
            task.is_ready(self.clock.elapsed_ms())
                && !self.paused.contains_key(&task.spec().queue)
                && self.runs_alone(task)
                && self.fits(task, session)
        });
        waiting
            .filter(|task| self.soonest_unused(task).is_some_and(|s| s.id == session.id))
            .map(|task| self.rank(task))
            .min()
    }

    /// The session with the least work of those that a task can run on.
    fn soonest_unused(&self, task: &Task) -> Option<&Session> {
        let works = |s: &&Session| {
            s.lanes_connected()
                && !s.draining
                && !self.is_suspect(s)
                && self.breaker.may_work(&s.node, self.clock.elapsed_ms())
                && self.fits(task, s)
        };
        self.sessions.values().filter(works).min_by_key(|s| (s.used(), s.id))
    }

    /// Whether a session has an isolated task, and gets no other one meanwhile.
    fn is_isolating(&self, session: &Session) -> bool {
        fault!(self, SuspectInCompany => return false);
        let is_isolated = |token| self.tokens.get(token).is_some_and(|id| self.isolated.contains(id));
        !self.isolated.is_empty() && session.tokens.keys().any(is_isolated)
    }

    /// Whether a session serves a task and may have it.
    pub(crate) fn fits(&self, task: &Task, session: &Session) -> bool {
        session.offers(&task.spec().queue, &task.spec().model) && self.may_have(task, session)
    }

    fn next_for(&self, session: SessionId) -> Option<TaskId> {
        let session = self.sessions.get(&session).filter(|s| self.can_take(s))?;
        let kept_free_for = self.kept_free_for(session);
        let models = session.info.models.iter();
        models
            .filter(|offer| !self.paused.contains_key(&offer.queue))
            .filter_map(|offer| {
                let waiting = self.waiting.get(&(offer.queue.clone(), offer.model.clone()))?;
                self.first_of(&offer.queue, waiting, session)
            })
            .min()
            .filter(|rank| {
                let isolated = kept_free_for.as_ref();
                isolated.is_none_or(|isolated| rank < isolated || self.isolated.contains(&rank.task()))
            })
            .map(|rank| rank.task())
    }

    /// The first of the waiting tasks of one model that a session may have.
    fn first_of(&self, queue: &QueueName, waiting: &Waiting, session: &Session) -> Option<Rank> {
        for (priority, owners) in &waiting.0 {
            let mut first: Option<(Turn, &Owner, Place)> = None;
            for (owner, places) in owners {
                let turn = self.fair_queue.turn(queue, priority.0, owner);
                if first.is_some_and(|(best, ..)| best < turn) {
                    continue;
                }
                let task = |place: &&Place| &self.tasks[place.id];
                let may_now = |place: &&Place| session.is_unused() || !self.runs_alone(task(place));
                let may_have = |place: &&Place| self.may_have(task(place), session);
                let place = places.iter().filter(may_now).take(MAX_SKIPPED).find(may_have);
                // Owners come in the order of their names, which decides between two that are even.
                if let Some(place) = place.filter(|_| first.is_none_or(|(best, ..)| turn < best)) {
                    first = Some((turn, owner, *place));
                }
            }
            if let Some((turn, owner, place)) = first {
                return Some(Rank { priority: *priority, turn, owner: owner.clone(), place });
            }
        }
        None
    }

    /// Whether a session may be given one more task now.
    pub(crate) fn can_take(&self, session: &Session) -> bool {
        session.has_credit()
            && session.lanes_connected()
            && !session.draining
            && !self.is_suspect(session)
            && self.breaker.may_work(&session.node, self.clock.elapsed_ms())
            && !self.is_isolating(session)
    }

    /// Whether nothing was heard of a session for so long that it gets no new work.
    pub(crate) fn is_suspect(&self, session: &Session) -> bool {
        self.clock.elapsed_ms().saturating_sub(session.last_seen_ms)
            >= self.settings.scheduler.suspect_after_ms
    }

    /// A node that failed this task for its own reasons gets it again only where nobody else can.
    fn may_have(&self, task: &Task, session: &Session) -> bool {
        !task.avoids(&session.node) || !self.has_other_node(task)
    }

    /// Whether a live node that the task does not avoid serves its model.
    pub(crate) fn has_other_node(&self, task: &Task) -> bool {
        self.sessions.values().any(|s| {
            !s.draining
                && s.offers(&task.spec().queue, &task.spec().model)
                && !task.avoids(&s.node)
                && !self.breaker.is_aside(&s.node)
        })
    }

    /// Whether any live node serves `model` from `queue`.
    pub(crate) fn is_served(&self, queue: &QueueName, model: &ModelName) -> bool {
        self.sessions.values().any(|s| s.offers(queue, model))
    }

    fn assign(&mut self, id: TaskId, session: SessionId) {
        self.unqueue(id);
        let token = LeaseToken::from_bytes(self.random_bytes());
        let accept_by = self.clock.elapsed_ms() + self.settings.scheduler.accept_timeout_ms;
        let task = self.tasks.get_mut(id).expect("waiting tasks are live");
        let target = self.sessions.get_mut(&session).expect("the caller chose a live session");
        let node = target.node.clone();
        task.assign(Lease { token, session }, &node, self.clock.now());
        tracing::info!(
            task.id = %id, attempt = task.counters().attempts, %node, session = target.number,
            queue = %task.spec().queue, "task assigned"
        );
        self.fair_queue.given(task.spec(), task.priority(), task.tag());
        self.breaker.given(&node, token);
        target.give(token, self.clock.elapsed_ms(), accept_by);
        let index = target.lane_of(&task.spec().queue).expect("a session that offers a queue has its lane");
        self.tokens.insert(token, id);
        let inline = task.inline().to_vec();
        let assign = Assign {
            token,
            attempt: task.counters().attempts,
            spec: task.spec().clone(),
            inline: inline.clone(),
        };
        let counters = task.counters();
        self.emit(Effect::Store(StoreOp::Assign { id, token, node, counters }));
        let attach = (!inline.is_empty()).then_some((id, inline));
        self.emit(Effect::Lane { session, index, message: assign.into(), attach });
        self.tell_followers(id);
    }
}
