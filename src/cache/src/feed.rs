//! Publishes the scheduler's committed changes from a thread of its own, in batches.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use lamagrid_config::CacheConfig;
use lamagrid_process::Backoff;

use crate::cache::{CacheError, Publisher};
use crate::feed_queue::{Change, FeedQueue};
use crate::freshness::{COLLECT, LIFE};
use crate::remote::Redis;

/// Groups of changes that may wait for the thread; if there are more, the epoch ends.
const WAITING: usize = 4_096;
/// Interval between two beats: several fit into [`LIFE`].
const BEAT: Duration = Duration::from_millis(400);
/// Pauses between attempts to begin a new epoch.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// An epoch that has lasted this long counts as a success.
const STEADY: Duration = Duration::from_secs(1);

const _: () = assert!(BEAT.as_millis() * 3 <= LIFE.as_millis());

/// Counts of the feed's work, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FeedFigures {
    /// True while the cache gets all changes.
    pub is_up: bool,
    /// States published.
    pub published: u64,
    /// Epochs that ended because the cache was away or the feed too slow.
    pub interruptions: u64,
}

#[derive(Debug, Default)]
struct Counters {
    is_up: AtomicBool,
    published: AtomicU64,
    interruptions: AtomicU64,
    /// Changes were dropped since the feed last looked.
    lost: AtomicBool,
}

/// The feed of one scheduler: the entrance for its changes. It never waits.
#[derive(Debug, Clone)]
pub struct Feed {
    changes: mpsc::Sender<Vec<Change>>,
    counters: Arc<Counters>,
}

impl Feed {
    /// Starts the feed's thread, which ends when the last copy of the feed is dropped; `None` without a Redis server:
    /// readers then ask the scheduler.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(config: &CacheConfig) -> std::io::Result<Option<Self>> {
        if config.url.is_empty() {
            return Ok(None);
        }
        let publisher = Redis::new(config).publisher();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let Prepared { feed, feeder, waiting } = prepare(Box::new(publisher), config.url.to_string());
        let run = move || runtime.block_on(feeder.run(waiting));
        std::thread::Builder::new().name("cache".to_owned()).spawn(run)?;
        Ok(Some(feed))
    }

    /// Hands changes over, in the order of their commits. If too many wait they are dropped, and readers ask the scheduler.
    pub fn send(&self, changes: Vec<Change>) {
        if !changes.is_empty() && self.changes.try_send(changes).is_err() {
            self.counters.lost.store(true, Ordering::Release);
        }
    }

    /// Counts of its work.
    #[must_use]
    pub fn figures(&self) -> FeedFigures {
        FeedFigures {
            is_up: self.counters.is_up.load(Ordering::Relaxed),
            published: self.counters.published.load(Ordering::Relaxed),
            interruptions: self.counters.interruptions.load(Ordering::Relaxed),
        }
    }
}

/// A feed that is to run on a thread of its own.
struct Prepared {
    feed: Feed,
    feeder: Feeder,
    waiting: mpsc::Receiver<Vec<Change>>,
}

fn prepare(publisher: Box<dyn Publisher>, place: String) -> Prepared {
    let (changes, waiting) = mpsc::channel(WAITING);
    let counters = Arc::new(Counters::default());
    let now = Instant::now();
    let feeder = Feeder {
        publisher,
        place,
        counters: Arc::clone(&counters),
        began: now,
        queue: FeedQueue::default(),
        backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE),
        state: State::Away { next_try: now },
        collects_until: None,
        was_told: None,
    };
    Prepared { feed: Feed { changes, counters }, feeder, waiting }
}

#[derive(Debug, Clone, Copy)]
enum State {
    Up { next_beat: Instant },
    Away { next_try: Instant },
}

/// The feed's thread.
struct Feeder {
    publisher: Box<dyn Publisher>,
    place: String,
    counters: Arc<Counters>,
    queue: FeedQueue,
    backoff: Backoff,
    /// The beginning of the present epoch.
    began: Instant,
    state: State,
    /// Until then changes gather in the channel and wake nobody; `None` while the next one is waited for.
    collects_until: Option<Instant>,
    /// Whether the last log line said that the cache is fed.
    was_told: Option<bool>,
}

impl Feeder {
    async fn run(mut self, mut waiting: mpsc::Receiver<Vec<Change>>) {
        loop {
            let (State::Up { next_beat: due } | State::Away { next_try: due }) = self.state;
            let due = self.collects_until.map_or(due, |until| until.min(due));
            let is_collecting = self.collects_until.is_some();
            tokio::select! {
                first = waiting.recv(), if !is_collecting => {
                    let Some(first) = first else { break };
                    self.take_in(first);
                    self.collects_until = Some(Instant::now() + COLLECT);
                }
                () = tokio::time::sleep_until(due) => {}
            }
            // As many as may wait: a scheduler that goes on sending does not keep the thread here.
            for _ in 0..WAITING {
                let Ok(more) = waiting.try_recv() else { break };
                self.take_in(more);
            }
            self.act().await;
        }
        if let State::Up { .. } = self.state {
            // The scheduler ends in order: readers see its last states until its epoch is over.
            let _ = self.publisher.publish(&self.queue.take()).await;
        }
    }

    fn take_in(&mut self, changes: Vec<Change>) {
        changes.into_iter().for_each(|change| self.queue.apply(change));
    }

    async fn act(&mut self) {
        let now = Instant::now();
        if self.counters.lost.swap(false, Ordering::AcqRel) {
            self.queue.forget();
            self.end_epoch("too many changes waited").await;
        }
        let is_collected = self.collects_until.is_some_and(|until| now >= until);
        if is_collected {
            self.collects_until = None;
        }
        match self.state {
            State::Away { next_try } if now < next_try => self.queue.drop_waiting(),
            State::Away { .. } => self.begin().await,
            State::Up { next_beat } if now >= next_beat || (is_collected && self.queue.is_urgent()) => {
                self.publish().await;
            }
            State::Up { .. } => {}
        }
    }

    async fn begin(&mut self) {
        match self.publisher.begin().await {
            Ok(()) => {
                self.began = Instant::now();
                self.queue.publish_again();
                self.counters.is_up.store(true, Ordering::Relaxed);
                if self.was_told != Some(true) {
                    tracing::info!(cache = %self.place, "the cache of states is fed");
                }
                self.was_told = Some(true);
                self.publish().await;
            }
            Err(error) => {
                self.queue.drop_waiting();
                self.tell_away(&error.to_string());
                self.state = State::Away { next_try: Instant::now() + self.backoff.pause() };
            }
        }
    }

    async fn publish(&mut self) {
        let writes = self.queue.take();
        match self.publisher.publish(&writes).await {
            Ok(()) => {
                self.counters.published.fetch_add(writes.len() as u64, Ordering::Relaxed);
                // A server that takes beats and refuses states must not be tried again and again.
                if self.began.elapsed() > STEADY {
                    self.backoff.reset();
                }
                self.state = State::Up { next_beat: Instant::now() + BEAT };
            }
            Err(error) => self.end_epoch(&error.to_string()).await,
        }
    }

    async fn end_epoch(&mut self, reason: &str) {
        if matches!(self.state, State::Up { .. }) || self.counters.is_up.load(Ordering::Relaxed) {
            self.counters.interruptions.fetch_add(1, Ordering::Relaxed);
        }
        self.queue.drop_waiting();
        // Without an answer the epoch runs out by itself.
        let _: Result<(), CacheError> = self.publisher.interrupt().await;
        self.tell_away(reason);
        self.state = State::Away { next_try: Instant::now() + self.backoff.pause() };
    }

    fn tell_away(&mut self, reason: &str) {
        self.counters.is_up.store(false, Ordering::Relaxed);
        if self.was_told != Some(false) {
            tracing::warn!(cache = %self.place, reason,
                "the cache of states is not fed: readers ask the scheduler until it is back");
        }
        self.was_told = Some(false);
    }
}

impl fmt::Debug for Feeder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feeder")
            .field("place", &self.place)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use lamagrid_domain::TaskId;

    use super::*;
    use crate::cache::{Answer, Write};

    /// Takes all, and counts.
    #[derive(Debug, Clone, Default)]
    struct Counting {
        calls: Arc<AtomicUsize>,
        writes: Arc<AtomicUsize>,
    }

    impl Publisher for Counting {
        fn begin(&mut self) -> Answer<'_, ()> {
            Box::pin(std::future::ready(Ok(())))
        }

        fn publish<'a>(&'a mut self, writes: &'a [Write]) -> Answer<'a, ()> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            self.writes.fetch_add(writes.len(), Ordering::Relaxed);
            Box::pin(std::future::ready(Ok(())))
        }

        fn interrupt(&mut self) -> Answer<'_, ()> {
            Box::pin(std::future::ready(Ok(())))
        }
    }

    const GROUPS: usize = 200;

    #[test]
    fn commits_that_follow_each_other_wake_the_thread_once_per_interval() {
        let published = Counting::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let Prepared { feed, feeder, waiting } = prepare(Box::new(published.clone()), "test".to_owned());
        let sending = std::thread::spawn(move || {
            for n in 0..GROUPS {
                let id = TaskId::from_bytes((n as u128).to_be_bytes());
                feed.send(vec![Change::Forgotten { id }]);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let (mut wakes, began) = (0_u32, Instant::now());
        let mut run = std::pin::pin!(feeder.run(waiting));
        runtime.block_on(std::future::poll_fn(|context| {
            wakes += 1;
            run.as_mut().poll(context)
        }));
        sending.join().unwrap();
        assert_eq!(published.writes.load(Ordering::Relaxed), GROUPS);
        // The first change of an interval and its end; beats, the first attempt and the last one.
        let intervals = u32::try_from(began.elapsed().as_millis() / COLLECT.as_millis()).unwrap();
        assert!(wakes <= 2 * intervals + 8, "{wakes} in {intervals} intervals");
    }
}
