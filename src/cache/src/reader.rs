//! Reads states for one owner: from the cache, and from the scheduler what the cache does not know.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;

use lamagrid_domain::{Owner, TaskId};
use lamagrid_protocol::message::TaskInfo;

use crate::cache::{Lookup, StateCache};
use crate::seen::Seen;
use crate::state::TaskState;

/// The source of the truth: a client of the scheduler.
pub trait StateSource: Send + Sync {
    /// Why it could not be asked.
    type Error: Send;

    /// The state of a task of this owner; `None` if the owner has no such task.
    fn ask(
        &self,
        owner: &Owner,
        id: TaskId,
        patience: Duration,
    ) -> impl Future<Output = Result<Option<TaskInfo>, Self::Error>> + Send;
}

/// Answers by their origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReaderFigures {
    /// States from the cache.
    pub hits: u64,
    /// States that the scheduler was asked for.
    pub misses: u64,
    /// Look-ups that the cache did not answer.
    pub failures: u64,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    failures: AtomicU64,
}

/// Reads states. The cache only saves questions: an error is always the scheduler's.
#[derive(Debug)]
pub struct StateReader<S> {
    cache: Arc<dyn StateCache>,
    source: S,
    seen: Mutex<Seen>,
    counters: Counters,
}

impl<S: StateSource> StateReader<S> {
    /// A reader of this cache, with `source` for what is not in it.
    pub fn new(cache: Arc<dyn StateCache>, source: S) -> Self {
        Self { cache, source, seen: Mutex::default(), counters: Counters::default() }
    }

    /// The states of tasks of this owner, each with its place in the queue while it waits; `None` for a task that the
    /// owner does not have.
    ///
    /// A state is at most [`MAX_STALE`](crate::MAX_STALE) behind the scheduler's, a place in the queue
    /// [`REFRESH`](crate::REFRESH); this reader never shows a state after a newer one of the same task.
    ///
    /// # Errors
    /// The first of the source's.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn states(
        &self,
        owner: &Owner,
        ids: &[TaskId],
        patience: Duration,
    ) -> Result<Vec<Option<TaskState>>, S::Error> {
        let Lookup { mut states, moment } = self.cache.get(ids).await.unwrap_or_else(|_| {
            self.counters.failures.fetch_add(1, Ordering::Relaxed);
            Lookup::empty(ids.len())
        });
        states.resize(ids.len(), None);
        let mut missing = Vec::new();
        {
            let mut seen = self.seen.lock();
            for (at, id) in ids.iter().enumerate() {
                let is_usable = states[at].as_ref().is_some_and(|state| {
                    (!state.is_queued() || state.info.position.is_some()) && seen.allows(*id, state.version())
                });
                match &states[at] {
                    Some(state) if state.owner != *owner => states[at] = None,
                    Some(state) if is_usable => seen.note(*id, state.version()),
                    _ => missing.push(at),
                }
            }
        }
        let asked = missing.len() as u64;
        self.counters.hits.fetch_add(ids.len() as u64 - asked, Ordering::Relaxed);
        self.counters.misses.fetch_add(asked, Ordering::Relaxed);
        let answers = join_all(missing.iter().map(|at| self.source.ask(owner, ids[*at], patience))).await;
        let mut told = Vec::new();
        for (at, answer) in missing.into_iter().zip(answers) {
            states[at] = answer?.map(|info| TaskState::told(owner.clone(), info));
            if let Some(state) = &states[at] {
                self.saw(&state.info);
                told.push(state.clone());
            }
        }
        if let Some(moment) = moment.filter(|_| !told.is_empty()) {
            let cache = Arc::clone(&self.cache);
            // The caller has its answer and need not wait for this.
            tokio::spawn(async move { cache.put_if_newer(moment, &told).await });
        }
        Ok(states)
    }

    /// The scheduler told a state to this process by another way: no older one is shown after it.
    pub fn saw(&self, info: &TaskInfo) {
        let version = crate::state::Version::of(info.status, info.counters.attempts);
        self.seen.lock().note(info.id, version);
    }

    /// Where its answers came from.
    pub fn figures(&self) -> ReaderFigures {
        ReaderFigures {
            hits: self.counters.hits.load(Ordering::Relaxed),
            misses: self.counters.misses.load(Ordering::Relaxed),
            failures: self.counters.failures.load(Ordering::Relaxed),
        }
    }

    /// The cache, to subscribe to changes.
    pub fn cache(&self) -> &Arc<dyn StateCache> {
        &self.cache
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use lamagrid_domain::Status;
    use tokio::sync::broadcast;

    use super::*;
    use crate::cache::{Answer, Epoch, Moment, Subscription};
    use crate::state::tests::state;

    /// A cache in memory, which a feed vouches for all the time.
    #[derive(Debug)]
    struct Memory {
        epoch: Epoch,
        states: Mutex<HashMap<TaskId, TaskState>>,
    }

    impl Memory {
        fn new(states: &[TaskState]) -> Arc<Self> {
            let states = states.iter().map(|state| (state.info.id, state.clone())).collect();
            Arc::new(Self { epoch: Epoch::draw(), states: Mutex::new(states) })
        }
    }

    impl StateCache for Memory {
        fn get<'a>(&'a self, ids: &'a [TaskId]) -> Answer<'a, Lookup> {
            let states = self.states.lock();
            let states = ids.iter().map(|id| states.get(id).cloned()).collect();
            let moment = Some(Moment { epoch: self.epoch, at_ms: 0 });
            Box::pin(std::future::ready(Ok(Lookup { states, moment })))
        }

        fn put_if_newer<'a>(&'a self, _moment: Moment, states: &'a [TaskState]) -> Answer<'a, ()> {
            let mut kept = self.states.lock();
            for state in states {
                let known = kept.get(&state.info.id).map(TaskState::version);
                if known.is_none_or(|known| known <= state.version()) {
                    kept.insert(state.info.id, state.clone());
                }
            }
            Box::pin(std::future::ready(Ok(())))
        }

        fn subscribe(&self) -> Subscription {
            Subscription(broadcast::channel(1).1)
        }
    }

    /// A scheduler that knows these tasks of `me`, and counts questions.
    #[derive(Default)]
    struct Scheduler {
        tasks: Mutex<HashMap<TaskId, TaskState>>,
        asked: AtomicU64,
    }

    impl StateSource for &Scheduler {
        type Error = &'static str;

        async fn ask(
            &self,
            owner: &Owner,
            id: TaskId,
            _patience: Duration,
        ) -> Result<Option<TaskInfo>, Self::Error> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let tasks = self.tasks.lock();
            Ok(tasks.get(&id).filter(|state| state.owner == *owner).map(|state| state.info.clone()))
        }
    }

    impl Scheduler {
        fn set(&self, state: TaskState) {
            self.tasks.lock().insert(state.info.id, state);
        }

        fn asked(&self) -> u64 {
            self.asked.load(Ordering::Relaxed)
        }
    }

    const PATIENCE: Duration = Duration::from_secs(1);

    async fn status(reader: &StateReader<&Scheduler>, owner: &str, id: u8) -> Option<Status> {
        let (owner, id) = (owner.parse().unwrap(), TaskId::from_bytes([id; 16]));
        let states = reader.states(&owner, &[id], PATIENCE).await.unwrap();
        // The put is a task of its own.
        tokio::task::yield_now().await;
        states[0].as_ref().map(|state| state.info.status)
    }

    #[tokio::test]
    async fn what_the_cache_does_not_know_is_asked_for_once() {
        let scheduler = Scheduler::default();
        scheduler.set(state(1, Status::Completed, 1));
        let reader = StateReader::new(Memory::new(&[]), &scheduler);
        for _ in 0..3 {
            assert_eq!(status(&reader, "me", 1).await, Some(Status::Completed));
        }
        assert_eq!(scheduler.asked(), 1);
        assert_eq!(status(&reader, "me", 2).await, None);
        let figures = reader.figures();
        assert_eq!((figures.hits, figures.misses, figures.failures), (2, 2, 0));
    }

    #[tokio::test]
    async fn another_owners_task_is_unknown() {
        let scheduler = Scheduler::default();
        let reader = StateReader::new(Memory::new(&[state(1, Status::Completed, 1)]), &scheduler);
        assert_eq!(status(&reader, "other", 1).await, None);
        assert_eq!(status(&reader, "me", 1).await, Some(Status::Completed));
        assert_eq!(scheduler.asked(), 0);
    }

    #[tokio::test]
    async fn a_reader_never_goes_back() {
        let scheduler = Scheduler::default();
        let reader = StateReader::new(Memory::new(&[state(1, Status::Processing, 1)]), &scheduler);
        let cancelled = state(1, Status::Cancelled, 1);
        scheduler.set(cancelled.clone());
        reader.saw(&cancelled.info);
        assert_eq!(status(&reader, "me", 1).await, Some(Status::Cancelled));
    }

    #[tokio::test]
    async fn a_waiting_tasks_place_is_asked_for() {
        let scheduler = Scheduler::default();
        let mut queued = state(1, Status::Queued, 0);
        let cache = Memory::new(std::slice::from_ref(&queued));
        queued.info.position = Some(2);
        scheduler.set(queued);
        let reader = StateReader::new(cache, &scheduler);
        for _ in 0..3 {
            assert_eq!(status(&reader, "me", 1).await, Some(Status::Queued));
        }
        assert_eq!(scheduler.asked(), 1);
    }
}
