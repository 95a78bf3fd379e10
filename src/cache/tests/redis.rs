//! A Redis server under faults: no state is shown that the scheduler has left long ago, and no reader waits for it.
//!
//! `LAMAGRID_CACHE_FAULTS` is the number of faults; `make chaos` asks for fifty.
#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]
#![expect(clippy::print_stdout, reason = "the test reports its figures")]

mod server;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lamagrid_cache::{
    Change, Feed, Lookup, MAX_STALE, Notice, Publisher, Redis, StateCache, StateReader, StateSource,
    TaskState, Version, Write,
};
use lamagrid_config::{CacheConfig, RedisUrl};
use lamagrid_domain::{Counters, Owner, Stages, Status, TaskId};
use lamagrid_process::{new_task_id, random_bytes};
use lamagrid_protocol::message::TaskInfo;
use server::Server;

const PATIENCE: Duration = Duration::from_secs(5);
const RECOVERY: Duration = Duration::from_secs(40);
/// Tasks that live at a time.
const TASKS: usize = 60;
const READERS: usize = 3;

fn owner() -> Owner {
    "me".parse().unwrap()
}

fn state(id: TaskId, status: Status, attempts: u32) -> TaskState {
    let info = TaskInfo {
        id,
        model: "lama".parse().unwrap(),
        queue: "gpu".parse().unwrap(),
        status,
        failure: None,
        position: (status == Status::Queued).then_some(1),
        wait_ms: None,
        node: None,
        counters: Counters { attempts, ..Counters::default() },
        stages: Stages::default(),
        created_wall_ms: 1,
        finished_wall_ms: None,
    };
    TaskState::told(owner(), info)
}

/// The states of a task with their times; `None` once it was removed.
type Life = Vec<(Instant, Option<TaskState>)>;

/// A scheduler without tasks of its own: it moves them at random, and knows every state that they had.
#[derive(Default)]
struct Truth {
    lives: Mutex<HashMap<TaskId, Life>>,
    asked: AtomicU64,
}

impl Truth {
    fn moved(&self, id: TaskId, state: Option<TaskState>) {
        self.lives.lock().unwrap().entry(id).or_default().push((Instant::now(), state));
    }

    /// The oldest and the newest version that a call may show that began then and ends now; `None` of a removed task.
    fn bounds(&self, id: TaskId, began: Instant) -> [Option<Version>; 2] {
        let lives = self.lives.lock().unwrap();
        let life = &lives[&id];
        let version = |(_, state): &(Instant, Option<TaskState>)| state.as_ref().map(TaskState::version);
        let earliest = began.checked_sub(MAX_STALE).unwrap_or(began);
        // A state was shown rightly if it was left after this moment.
        let first = life.iter().rposition(|(at, _)| *at <= earliest).unwrap_or(0);
        [version(&life[first]), version(life.last().unwrap())]
    }
}

/// Answers readers with the truth.
struct Source(Arc<Truth>);

impl StateSource for Source {
    type Error = String;

    async fn ask(&self, _owner: &Owner, id: TaskId, _patience: Duration) -> Result<Option<TaskInfo>, String> {
        self.0.asked.fetch_add(1, Ordering::Relaxed);
        let lives = self.0.lives.lock().unwrap();
        Ok(lives.get(&id).and_then(|life| life.last().unwrap().1.as_ref()).map(|state| state.info.clone()))
    }
}

/// Moves tasks through their lives until told to end.
fn live(truth: &Truth, feed: &Feed, ids: &Mutex<Vec<TaskId>>, ends: &AtomicBool) {
    let step = |id: TaskId, state: TaskState, change: Change| {
        truth.moved(id, Some(state));
        feed.send(vec![change]);
    };
    let accept = || {
        let (id, accepted) = (new_task_id(), |id| state(id, Status::Queued, 0));
        let TaskInfo { model, queue, created_wall_ms, .. } = accepted(id).info;
        step(id, accepted(id), Change::Accepted { id, owner: owner(), model, queue, created_wall_ms });
        id
    };
    *ids.lock().unwrap() = (0..TASKS).map(|_| accept()).collect();
    while !ends.load(Ordering::Relaxed) {
        let [at, dice] = random_bytes();
        let at = usize::from(at) % TASKS;
        let id = ids.lock().unwrap()[at];
        let now = truth.lives.lock().unwrap()[&id].last().unwrap().1.clone();
        let Some(now) = now else { continue };
        let attempts = now.info.counters.attempts;
        let counters = |attempts| Counters { attempts, ..Counters::default() };
        match now.info.status {
            Status::Queued => {
                let change = Change::Assigned { id, node: "n".to_owned(), counters: counters(attempts + 1) };
                step(id, state(id, Status::Processing, attempts + 1), change);
            }
            Status::Processing if dice < 80 => {
                let change = Change::Requeued { id, counters: counters(attempts) };
                step(id, state(id, Status::Queued, attempts), change);
            }
            Status::Processing => {
                let ended = state(id, Status::Completed, attempts);
                let retention = Duration::from_secs(3_600);
                step(id, ended.clone(), Change::Ended { state: Box::new(ended), retention });
            }
            Status::Completed | Status::Failed | Status::Cancelled => {
                truth.moved(id, None);
                feed.send(vec![Change::Forgotten { id }]);
                let next = accept();
                ids.lock().unwrap()[at] = next;
            }
        }
        std::thread::sleep(Duration::from_millis(4));
    }
}

#[derive(Default)]
struct Figures {
    shown: u64,
    wrong: Vec<String>,
    took: Vec<Duration>,
}

/// Reads at random, and compares what is shown with what the tasks were.
async fn read(
    truth: Arc<Truth>,
    reader: Arc<StateReader<Source>>,
    ids: Arc<Mutex<Vec<TaskId>>>,
    ends: Arc<AtomicBool>,
) -> Figures {
    let mut figures = Figures::default();
    let mut lately: Vec<TaskId> = Vec::new();
    while !ends.load(Ordering::Relaxed) {
        // Also tasks that are gone by now.
        lately.extend(ids.lock().unwrap().iter().take(5 + usize::from(random_bytes::<1>()[0] % 20)));
        lately.drain(..lately.len().saturating_sub(40));
        let began = Instant::now();
        let states = reader.states(&owner(), &lately, PATIENCE).await.unwrap();
        figures.took.push(began.elapsed());
        for (id, shown) in lately.iter().zip(states) {
            figures.shown += 1;
            let [oldest, newest] = truth.bounds(*id, began);
            let is_right = match shown.as_ref().map(TaskState::version) {
                // A state may be shown for a while after the task was removed.
                Some(shown) => {
                    oldest.is_some_and(|oldest| oldest <= shown)
                        && newest.is_none_or(|newest| shown <= newest)
                }
                None => newest.is_none(),
            };
            if !is_right {
                figures.wrong.push(format!("{id}: {oldest:?} to {newest:?}, shown {shown:?}"));
            }
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    figures
}

/// Faults without `LAMAGRID_CACHE_FAULTS`: the first ones, which differ most.
const FEW: usize = 4;
const FAULTS: [&str; 11] = [
    "flush",
    "freeze",
    "snapshot",
    "full",
    "kill",
    "restart",
    "read-only",
    "short freeze",
    "evict",
    "clients",
    "scripts",
];

/// Carries out a fault and its end. Returns after the server can be used again.
fn fault(server: &mut Server, kind: &str) {
    let nap = |ms| std::thread::sleep(Duration::from_millis(ms));
    match kind {
        "kill" => {
            server.kill();
            nap(700);
            server.restart();
        }
        "freeze" | "short freeze" => {
            server.freeze();
            nap(if kind == "freeze" { 2_000 } else { 300 });
            server.thaw();
        }
        "flush" => drop(server.ask("FLUSHALL")),
        "full" => {
            server.ask("CONFIG SET maxmemory-policy noeviction");
            server.ask("CONFIG SET maxmemory 1");
            nap(700);
            server.ask("CONFIG SET maxmemory 0");
        }
        "restart" => server.restart(),
        // It comes back with states that were left long ago.
        "snapshot" => {
            server.ask("SAVE");
            nap(300);
            server.restart();
        }
        "read-only" => {
            server.ask("REPLICAOF 127.0.0.1 1");
            nap(700);
            server.ask("REPLICAOF NO ONE");
        }
        "evict" => {
            server.ask("CONFIG SET maxmemory-policy allkeys-random");
            server.ask("CONFIG SET maxmemory 1mb");
            nap(700);
            server.ask("CONFIG SET maxmemory 0");
        }
        "clients" => drop(server.ask("CLIENT KILL TYPE normal SKIPME yes")),
        "scripts" => drop(server.ask("SCRIPT FLUSH")),
        other => panic!("no such fault: {other}"),
    }
}

fn wait(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + RECOVERY;
    while !holds() {
        assert!(Instant::now() < until, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn percentile(took: &mut [Duration], share: f64) -> Duration {
    took.sort_unstable();
    took[((took.len() - 1) as f64 * share) as usize]
}

#[test]
fn no_fault_of_redis_shows_a_wrong_state_or_makes_readers_wait() {
    let faults: usize = std::env::var("LAMAGRID_CACHE_FAULTS").map_or(FEW, |text| text.parse().unwrap());
    let mut server = Server::start();
    let config = server.config();
    let feed = Feed::start(&config).unwrap().unwrap();
    let truth = Arc::new(Truth::default());
    let (ids, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
    let scheduler = {
        let (truth, feed, ids, ends) =
            (Arc::clone(&truth), feed.clone(), Arc::clone(&ids), Arc::clone(&ends));
        std::thread::spawn(move || live(&truth, &feed, &ids, &ends))
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let readers: Vec<_> = (0..READERS)
        .map(|_| Arc::new(StateReader::new(Arc::new(Redis::new(&config)), Source(Arc::clone(&truth)))))
        .collect();
    let reading: Vec<_> = readers
        .iter()
        .map(|reader| {
            let (truth, reader) = (Arc::clone(&truth), Arc::clone(reader));
            runtime.spawn(read(truth, reader, Arc::clone(&ids), Arc::clone(&ends)))
        })
        .collect();
    let hits = || readers.iter().map(|reader| reader.figures().hits).sum::<u64>();
    let is_used = |since: u64| feed.figures().is_up && hits() > since + 200;
    wait("a first use of the cache", || is_used(0));
    for n in 0..faults {
        let kind = FAULTS[n % FAULTS.len()];
        fault(&mut server, kind);
        let (before, began) = (hits(), Instant::now());
        wait(&format!("use of the cache after fault {n} ({kind})"), || is_used(before));
        println!("fault {n} ({kind}): used again after {} ms", began.elapsed().as_millis());
    }
    ends.store(true, Ordering::Relaxed);
    scheduler.join().unwrap();
    let (mut shown, mut wrong, mut took) = (0, Vec::new(), Vec::new());
    for figures in reading.into_iter().map(|reading| runtime.block_on(reading).unwrap()) {
        shown += figures.shown;
        wrong.extend(figures.wrong);
        took.extend(figures.took);
    }
    let asked = truth.asked.load(Ordering::Relaxed);
    let (p50, p99) = (percentile(&mut took, 0.5), percentile(&mut took, 0.99));
    println!(
        "redis: faults {faults} shown {shown} asked {asked} wrong {} interruptions {} p50 {} us p99 {} us longest {} us",
        wrong.len(),
        feed.figures().interruptions,
        p50.as_micros(),
        p99.as_micros(),
        took.last().unwrap().as_micros()
    );
    assert!(wrong.is_empty(), "{:#?}", &wrong[..wrong.len().min(5)]);
    assert!(p99 < Duration::from_millis(50), "{p99:?}");
}

fn write(state: TaskState) -> Write {
    Write { id: state.info.id, version: state.version(), state: Some(state), keep: Duration::from_secs(60) }
}

async fn connected(cache: &Redis) {
    let until = Instant::now() + RECOVERY;
    while cache.get(&[]).await.is_err() {
        assert!(Instant::now() < until, "no connection");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn get(cache: &Redis, id: TaskId) -> Option<TaskState> {
    look(cache, id).await.states.remove(0)
}

async fn look(cache: &Redis, id: TaskId) -> Lookup {
    // A busy host may be late once.
    for _ in 0..100 {
        if let Ok(lookup) = cache.get(&[id]).await {
            return lookup;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the cache does not answer");
}

#[tokio::test]
async fn what_is_newer_stays_and_two_grids_share_a_server() {
    let server = Server::start();
    let other = CacheConfig { prefix: "other".to_owned(), ..server.config() };
    let (one, two) = (Redis::new(&server.config()), Redis::new(&other));
    let (mut publisher, mut second) = (one.publisher(), two.publisher());
    connected(&one).await;
    connected(&two).await;
    assert_eq!(one.get(&[]).await.unwrap().moment, None, "no feed yet");
    publisher.begin().await.unwrap();
    second.begin().await.unwrap();
    let id = new_task_id();
    let moment = one.get(&[]).await.unwrap().moment.unwrap();
    publisher.publish(&[write(state(id, Status::Processing, 1))]).await.unwrap();
    one.put_if_newer(moment, &[state(id, Status::Queued, 0)]).await.unwrap();
    assert_eq!(get(&one, id).await.unwrap().info.status, Status::Processing);
    assert_eq!(get(&two, id).await, None, "another grid's prefix");
    one.put_if_newer(moment, &[state(id, Status::Completed, 1)]).await.unwrap();
    assert_eq!(get(&one, id).await.unwrap().info.status, Status::Completed);
    publisher.publish(&[write(state(id, Status::Processing, 1))]).await.unwrap();
    assert_eq!(get(&one, id).await.unwrap().info.status, Status::Completed, "final states are final");
    // A removed task leaves a mark, and the place in a queue is the one thing that a reader adds to the feed's word.
    let gone =
        Write { id, version: Version::of(Status::Completed, 1), state: None, keep: Duration::from_secs(10) };
    publisher.publish(&[gone]).await.unwrap();
    one.put_if_newer(moment, &[state(id, Status::Processing, 2)]).await.unwrap();
    assert_eq!(get(&one, id).await, None, "a removed task");
    let mut waiting = state(new_task_id(), Status::Queued, 0);
    waiting.info.position = None;
    publisher.publish(&[write(waiting.clone())]).await.unwrap();
    waiting.info.position = Some(4);
    let moment = look(&one, id).await.moment.unwrap();
    one.put_if_newer(moment, &[waiting.clone()]).await.unwrap();
    assert_eq!(get(&one, waiting.info.id).await, Some(waiting));
    // Another scheduler with the same prefix: its epoch counts, and the first one hears of it.
    let mut rival = one.publisher();
    rival.begin().await.unwrap();
    assert_eq!(get(&one, id).await, None);
    one.put_if_newer(moment, &[state(id, Status::Completed, 1)]).await.unwrap();
    assert_eq!(get(&one, id).await, None, "asked for in an epoch that is over");
    let refused = publisher.publish(&[]).await.unwrap_err().to_string();
    assert!(refused.contains("cache.prefix"), "{refused}");
    assert!(rival.publish(&[]).await.is_ok());
}

#[tokio::test]
async fn subscribers_hear_changes_through_redis() {
    let server = Server::start();
    let cache = Redis::new(&server.config());
    let mut heard = cache.subscribe();
    assert_eq!(heard.next().await, Some(Notice::Gap), "subscribed");
    let mut publisher = cache.publisher();
    publisher.begin().await.unwrap();
    let queued = state(new_task_id(), Status::Queued, 0);
    publisher.publish(&[write(queued.clone())]).await.unwrap();
    assert_eq!(heard.next().await, Some(Notice::Changed(Arc::new(queued))));
}

#[tokio::test]
async fn passwords_are_needed_hidden_and_read_again() {
    let server = Server::start();
    server.ask("CONFIG SET requirepass s3cret");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "wr0ng\n").unwrap();
    let config = CacheConfig { password_file: file.path().to_owned(), ..server.config() };
    let cache = Redis::new(&config);
    let mut publisher = cache.publisher();
    for text in [publisher.begin().await.unwrap_err().to_string(), format!("{cache:?} {publisher:?}")] {
        assert!(!text.contains("wr0ng"), "{text}");
    }
    let refused = publisher.begin().await.unwrap_err().to_string();
    assert!(refused.contains("password"), "{refused}");
    assert!(cache.get(&[]).await.is_err());
    std::fs::write(file.path(), "s3cret\n").unwrap();
    publisher.begin().await.unwrap();
    connected(&cache).await;
    let socket = server.config().url.secret().to_owned();
    let config = CacheConfig { url: RedisUrl::new(&format!("{socket}?pass=s3cret")), ..server.config() };
    assert!(!format!("{config:?}").contains("s3cret"));
    Redis::new(&config).publisher().begin().await.unwrap();
}

#[tokio::test]
async fn what_is_no_redis_server_is_refused_and_costs_no_time() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", server.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        loop {
            let (mut stream, _) = server.accept().await.unwrap();
            let mut buffer = [0; 64];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_url = format!("redis://{}", silent.local_addr().unwrap());
    let base = Server::start();
    for url in [url, silent_url, "redis://127.0.0.1:1".to_owned()] {
        let cache = Redis::new(&CacheConfig { url: RedisUrl::new(&url), ..base.config() });
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            let began = Instant::now();
            assert!(cache.get(&[new_task_id()]).await.is_err(), "{url}");
            longest = longest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(cache.publisher().begin().await.is_err(), "{url}");
        assert!(longest < Duration::from_millis(50), "{url}: {longest:?}");
    }
    serving.abort();
}
