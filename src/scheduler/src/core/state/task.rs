//! A task that has not ended.

use lamagrid_domain::{
    Advance, Counters, Entry, Event, Hash, LeaseToken, Milestone, QueueName, Role, SessionId, State, TaskId,
    TaskSpec,
};
use lamagrid_protocol::PeerId;

use super::history;
use super::now::Now;
use super::timer_keys::TimerKeys;
use crate::core::node_id::NodeId;
use crate::core::policy::needs::Demand;

/// An attempt: who may deliver it, under which token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) token: LeaseToken,
    pub(crate) session: SessionId,
}

/// A task between its acceptance and its end.
///
/// Invariant: it is queued or assigned, and accepted by its node only while it is assigned.
pub(crate) struct Task {
    spec: TaskSpec,
    digest: Hash,
    state: State,
    counters: Counters,
    /// Order of acceptance.
    seq: u64,
    /// The submitted priority, raised by waiting.
    priority: i8,
    /// Position among the tasks of its owner and priority. See [`super::fair_queue`].
    tag: u64,
    created_wall_ms: u64,
    history: Vec<Entry>,
    timers: TimerKeys,
    /// Its need by the tables.
    demand: Demand,
    /// Nodes of these queues may take it, too: it has waited long enough.
    spilled_to: Vec<QueueName>,
    /// Lease clock when it last entered the queue.
    queued_at_ms: u64,
    /// Milliseconds spent in queues, without the current wait.
    queue_ms: u64,
    /// Lease clock when it last left the queue.
    left_queue_at_ms: u64,
    /// Milliseconds spent in queues of earlier processes of the scheduler, by the wall clock, and on nodes that gave it back.
    earlier_ms: u64,
    /// The node accepted the current attempt.
    accepted: bool,
    /// Inputs kept in the row; the others lie in the spool.
    inline: Vec<Role>,
    /// Nodes that get it again only if no other node can run it.
    avoid: Vec<NodeId>,
    /// The node of the last attempt.
    node: Option<NodeId>,
    followers: Vec<PeerId>,
    /// Last reported step, in memory only.
    progress: Advance,
}

/// The fields of a new task.
pub(crate) struct NewTask {
    pub(crate) spec: TaskSpec,
    pub(crate) digest: Hash,
    /// Order of acceptance.
    pub(crate) seq: u64,
    pub(crate) created_wall_ms: u64,
    /// Inputs kept in the row; the others lie in the spool.
    pub(crate) inline: Vec<Role>,
}

impl Task {
    pub(crate) fn new(new: NewTask) -> Self {
        let NewTask { spec, digest, seq, created_wall_ms, inline } = new;
        Self {
            priority: spec.priority,
            tag: 0,
            spec,
            digest,
            state: State::Queued { not_before_ms: 0 },
            counters: Counters::default(),
            seq,
            created_wall_ms,
            history: Vec::new(),
            timers: TimerKeys::default(),
            demand: Demand::default(),
            spilled_to: Vec::new(),
            queued_at_ms: 0,
            queue_ms: 0,
            left_queue_at_ms: 0,
            earlier_ms: 0,
            accepted: false,
            inline,
            avoid: Vec::new(),
            node: None,
            followers: Vec::new(),
            progress: Advance::default(),
        }
    }

    /// A task as the store remembers it, before its attempt is restored.
    pub(crate) fn recovered(new: NewTask, counters: Counters, history: Vec<Entry>, earlier_ms: u64) -> Self {
        Self { counters, history, earlier_ms, ..Self::new(new) }
    }

    pub(crate) fn id(&self) -> TaskId {
        self.spec.id
    }

    pub(crate) fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    pub(crate) fn digest(&self) -> Hash {
        self.digest
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// When it may run, by the lease clock; `None` if it is assigned.
    pub(crate) fn not_before_ms(&self) -> Option<u64> {
        if let State::Queued { not_before_ms } = self.state { Some(not_before_ms) } else { None }
    }

    /// Whether it waits for a node, without a delay.
    pub(crate) fn is_ready(&self, clock_ms: u64) -> bool {
        self.not_before_ms().is_some_and(|at| at <= clock_ms)
    }

    pub(crate) fn lease(&self) -> Option<Lease> {
        if let State::Assigned { token, session } = self.state {
            Some(Lease { token, session })
        } else {
            None
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.counters
    }

    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    pub(crate) fn priority(&self) -> i8 {
        self.priority
    }

    pub(crate) fn tag(&self) -> u64 {
        self.tag
    }

    pub(crate) fn created_wall_ms(&self) -> u64 {
        self.created_wall_ms
    }

    pub(crate) fn history(&self) -> &[Entry] {
        &self.history
    }

    #[cfg(test)]
    pub(crate) fn history_mut(&mut self) -> &mut Vec<Entry> {
        &mut self.history
    }

    /// Milliseconds spent in queues, without the current wait.
    pub(crate) fn queue_ms(&self) -> u64 {
        self.queue_ms
    }

    /// Lease clock when it last entered the queue.
    pub(crate) fn queued_at_ms(&self) -> u64 {
        self.queued_at_ms
    }

    /// Milliseconds since it last entered the queue.
    pub(crate) fn queued_for_ms(&self, clock_ms: u64) -> u64 {
        clock_ms.saturating_sub(self.queued_at_ms)
    }

    /// Milliseconds spent in queues, with the current wait.
    pub(crate) fn waited_ms(&self, clock_ms: u64) -> u64 {
        self.queue_ms + self.queued_for_ms(clock_ms)
    }

    /// Milliseconds without the current wait that count towards its spill: in queues, also before a restart of the scheduler,
    /// and on nodes of which no slot began with it.
    pub(crate) fn waited_for_spill_ms(&self) -> u64 {
        self.earlier_ms.saturating_add(self.queue_ms)
    }

    /// Milliseconds since it last left the queue.
    pub(crate) fn on_node_for_ms(&self, clock_ms: u64) -> u64 {
        clock_ms.saturating_sub(self.left_queue_at_ms)
    }

    pub(crate) fn demand(&self) -> &Demand {
        &self.demand
    }

    pub(crate) fn set_demand(&mut self, demand: Demand) {
        self.demand = demand;
    }

    /// The other queues whose nodes may take it.
    pub(crate) fn spilled_to(&self) -> &[QueueName] {
        &self.spilled_to
    }

    pub(super) fn add_spilled_to(&mut self, queue: QueueName) {
        self.spilled_to.push(queue);
    }

    pub(crate) fn is_accepted(&self) -> bool {
        self.accepted
    }

    pub(crate) fn inline(&self) -> &[Role] {
        &self.inline
    }

    pub(crate) fn node(&self) -> Option<&NodeId> {
        self.node.as_ref()
    }

    pub(crate) fn avoids(&self, node: &NodeId) -> bool {
        self.avoid.contains(node)
    }

    pub(crate) fn followers(&self) -> &[PeerId] {
        &self.followers
    }

    pub(crate) fn progress(&self) -> Advance {
        self.progress
    }

    pub(crate) fn set_progress(&mut self, progress: Advance) {
        self.progress = progress;
    }

    pub(crate) fn record(&mut self, now: Now, what: Milestone) {
        let attempt = self.counters.attempts;
        history::record(&mut self.history, Entry { at_wall_ms: now.wall_ms, attempt, what });
    }

    /// The next attempt begins.
    pub(crate) fn assign(&mut self, lease: Lease, node: &NodeId, now: Now) {
        self.counters.attempts += 1;
        self.accepted = false;
        self.progress = Advance::default();
        self.take_lease(lease, node, now);
    }

    /// The attempt goes on that ran when the last process ended. No session holds it yet.
    pub(crate) fn restore(&mut self, token: LeaseToken, node: &NodeId, now: Now) {
        self.accepted = true;
        self.take_lease(Lease { token, session: SessionId::from_bytes([0; 16]) }, node, now);
    }

    fn take_lease(&mut self, Lease { token, session }: Lease, node: &NodeId, now: Now) {
        self.apply(Event::Assign { token, session });
        let (node_name, spilled_to) = (node.name.clone(), self.spilled_to.last().cloned());
        self.record(now, Milestone::Assigned { node: node_name, spilled_to });
        self.node = Some(node.clone());
    }

    /// A newer session of its node goes on with the attempt.
    pub(crate) fn adopt(&mut self, session: SessionId) {
        self.apply(Event::Adopt { session });
    }

    /// The node accepted the attempt. False if it had before.
    pub(crate) fn accept(&mut self) -> bool {
        !std::mem::replace(&mut self.accepted, true)
    }

    /// Its node gives it back, and no slot began with it there: it has waited all the time.
    pub(crate) fn count_wait_on_node(&mut self, clock_ms: u64) {
        self.earlier_ms = self.earlier_ms.saturating_add(self.on_node_for_ms(clock_ms));
    }

    /// The attempt ended without an outcome. Nodes of the queues `spills` may take the task by now.
    pub(crate) fn requeue(&mut self, not_before_ms: u64, spills: Vec<QueueName>) {
        self.apply(Event::Requeue { not_before_ms });
        self.spilled_to = spills;
        self.accepted = false;
    }

    /// The delay before its next attempt ends now.
    pub(crate) fn end_delay(&mut self) {
        if let State::Queued { not_before_ms } = &mut self.state {
            *not_before_ms = 0;
        }
    }

    /// Counts a reported failure. Returns how many there are.
    pub(crate) fn count_failure(&mut self) -> u32 {
        self.counters.failures += 1;
        self.counters.failures
    }

    /// Counts a crash of its node. Returns how many there are.
    pub(crate) fn count_crash(&mut self) -> u32 {
        self.counters.crashes += 1;
        self.counters.crashes
    }

    /// The node of the last attempt gets it again only if no other node can run it.
    pub(crate) fn avoid_last_node(&mut self) {
        self.avoid.extend(self.node.clone().filter(|node| !self.avoid.contains(node)));
    }

    /// The state in which it ends.
    pub(crate) fn ended_by(&self, event: Event) -> State {
        self.state.apply(event).expect("queued and assigned tasks can end in every way asked here")
    }

    fn apply(&mut self, event: Event) {
        self.state = self.state.apply(event).expect("the caller moves the task as its state allows");
    }

    pub(super) fn set_tag(&mut self, tag: u64) {
        self.tag = tag;
    }

    pub(super) fn enter_queue(&mut self, clock_ms: u64) {
        self.queued_at_ms = clock_ms;
    }

    pub(super) fn leave_queue(&mut self, clock_ms: u64) {
        self.queue_ms += clock_ms.saturating_sub(self.queued_at_ms);
        self.left_queue_at_ms = clock_ms;
    }

    pub(super) fn raise_priority(&mut self) {
        self.priority += 1;
    }

    #[cfg(test)]
    pub(super) fn timers(&self) -> TimerKeys {
        self.timers
    }

    pub(super) fn timers_mut(&mut self) -> &mut TimerKeys {
        &mut self.timers
    }

    pub(crate) fn add_follower(&mut self, peer: &PeerId) -> bool {
        let is_new = !self.followers.contains(peer);
        if is_new {
            self.followers.push(peer.clone());
        }
        is_new
    }

    pub(crate) fn remove_follower(&mut self, peer: &PeerId) {
        self.followers.retain(|each| each != peer);
    }

    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        let (id, status) = (self.id(), self.state.status());
        let is_assigned = self.lease().is_some();
        invariant!(is_assigned || self.not_before_ms().is_some(), "task {id} is {status} and not removed");
        invariant!(is_assigned || !self.accepted, "task {id} is accepted and {status}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::{spec, task};

    const NOW: Now = Now { mono_ms: 0, wall_ms: 7 };

    fn lease(n: u8) -> Lease {
        Lease { token: LeaseToken::from_bytes([n; 16]), session: SessionId::from_bytes([n; 16]) }
    }

    #[test]
    fn each_attempt_is_counted_accepted_once_and_forgets_the_progress_of_the_last() {
        let (mut task, node) = (task(spec(1)), "n".parse().unwrap());
        for attempt in 1..3 {
            task.assign(lease(attempt), &node, NOW);
            assert_eq!((task.lease(), task.progress()), (Some(lease(attempt)), Advance::default()));
            assert!(task.accept() && !task.accept());
            task.set_progress(Advance { step: 3, of: 9, ..Advance::default() });
            task.check().unwrap();
            task.requeue(50, Vec::new());
            assert!(!task.is_accepted() && !task.is_ready(49) && task.is_ready(50));
            assert_eq!(task.counters().attempts, u32::from(attempt));
            task.check().unwrap();
        }
        task.end_delay();
        assert!(task.is_ready(0));
    }

    #[test]
    fn a_restored_attempt_is_not_counted_again() {
        let mut task = task(spec(1));
        task.restore(lease(1).token, &"n".parse().unwrap(), NOW);
        assert_eq!((task.counters().attempts, task.is_accepted()), (0, true));
        task.adopt(lease(2).session);
        assert_eq!(task.lease(), Some(Lease { session: lease(2).session, ..lease(1) }));
    }

    #[test]
    fn the_current_wait_counts_once_it_is_over() {
        let mut task = task(spec(1));
        task.enter_queue(100);
        assert_eq!((task.queued_for_ms(130), task.queue_ms()), (30, 0));
        task.leave_queue(150);
        task.enter_queue(200);
        task.leave_queue(205);
        assert_eq!(task.queue_ms(), 55);
    }
}
