//! The keys that a running scheduler accepts: a copy in memory, refreshed within a second of each change.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use lamagrid_domain::Hash;
use lamagrid_process::wall_clock::wall_ms;

use super::key::{ApiKey, KeyId};
use super::rate::RateLimit;
use super::store::{KeyError, KeyStore, KeyUse};
use super::token::Token;

/// Interval between looks for changes.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// Interval between records of a key's last use.
const RECORD_EVERY_MS: u64 = 10_000;

/// A valid key with its rate limit and its last use. Requests that began before its revocation still hold it.
#[derive(Debug)]
pub(crate) struct LiveKey {
    pub(crate) key: ApiKey,
    hash: Hash,
    rate: Option<Mutex<RateLimit>>,
    /// False once it was revoked.
    valid: AtomicBool,
    used_wall_ms: AtomicU64,
    recorded_wall_ms: AtomicU64,
}

impl LiveKey {
    fn new(key: ApiKey, hash: Hash) -> Self {
        let rate = key.limits.requests_per_second;
        let recorded = key.last_used_wall_ms.unwrap_or(0);
        Self {
            key,
            hash,
            rate: rate.map(|rate| Mutex::new(RateLimit::new(rate, Instant::now()))),
            valid: AtomicBool::new(true),
            used_wall_ms: AtomicU64::new(recorded),
            recorded_wall_ms: AtomicU64::new(recorded),
        }
    }

    /// False once the key was revoked.
    pub(crate) fn is_valid(&self) -> bool {
        self.valid.load(Ordering::Relaxed)
    }

    /// Counts a request.
    ///
    /// # Errors
    /// How long to wait before the next one.
    pub(crate) fn take_request(&self) -> Result<(), Duration> {
        self.used_wall_ms.store(wall_ms(), Ordering::Relaxed);
        self.rate.as_ref().map_or(Ok(()), |rate| rate.lock().take(Instant::now()))
    }

    /// Returns the time of its last use, if it differs from the recorded one by at least `distance_ms`.
    fn unrecorded_use(&self, distance_ms: u64) -> Option<u64> {
        let (used, recorded) =
            (self.used_wall_ms.load(Ordering::Relaxed), self.recorded_wall_ms.load(Ordering::Relaxed));
        // Compared by distance, because the clock may be set back.
        (used.abs_diff(recorded) >= distance_ms).then_some(used)
    }
}

#[derive(Debug, Default)]
struct Shared {
    keys: RwLock<HashMap<KeyId, Arc<LiveKey>>>,
    ended: Mutex<bool>,
    end: Condvar,
}

/// All valid keys. Dropping it ends its thread.
#[derive(Debug)]
pub(crate) struct LiveKeys {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl LiveKeys {
    /// Opens the database in `data_dir` and starts the thread that follows it.
    ///
    /// # Errors
    /// [`KeyError`].
    pub(crate) fn open(data_dir: &Path) -> Result<Self, KeyError> {
        let store = KeyStore::open(data_dir)?;
        let shared = Arc::new(Shared::default());
        let mut version = store.version()?;
        refresh(&store, &shared)?;
        let of_thread = Arc::clone(&shared);
        let follow = move || {
            let shared = of_thread;
            let mut fault = None;
            loop {
                {
                    let mut ended = shared.ended.lock();
                    if !*ended {
                        shared.end.wait_for(&mut ended, LOOK_EVERY);
                    }
                    if *ended {
                        break;
                    }
                }
                let followed = follow_changes(&store, &shared, &mut version);
                log_faults(&mut fault, followed);
            }
            // A last time, so that no use is lost.
            let _ = record(&store, &shared);
        };
        let thread = std::thread::Builder::new().name("api-keys".into()).spawn(follow);
        let thread = thread.map_err(|source| KeyError::Create { path: data_dir.to_owned(), source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The valid key of a token.
    pub(crate) fn check(&self, token: &Token) -> Option<Arc<LiveKey>> {
        let found = self.shared.keys.read().get(&token.id).cloned();
        found.filter(|key| token.is(&key.hash))
    }
}

impl Drop for LiveKeys {
    fn drop(&mut self) {
        *self.shared.ended.lock() = true;
        self.shared.end.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already logged.
            let _ = thread.join();
        }
    }
}

/// Takes changes of other processes over, and records uses that are due.
fn follow_changes(store: &KeyStore, shared: &Shared, version: &mut i64) -> Result<(), KeyError> {
    let now = store.version()?;
    if now != *version {
        refresh(store, shared)?;
        *version = now;
    }
    record(store, shared)
}

/// Logs a fault once, not at every look.
fn log_faults(fault: &mut Option<String>, followed: Result<(), KeyError>) {
    let found = followed.err().map(|error| error.to_string());
    if let Some(error) = found.as_ref().filter(|error| fault.as_ref() != Some(*error)) {
        tracing::warn!(error, "changes of API keys are not seen for now; trying again");
    }
    *fault = found;
}

fn refresh(store: &KeyStore, shared: &Shared) -> Result<(), KeyError> {
    let stored = store.stored()?;
    let mut keys = shared.keys.write();
    let mut before = std::mem::take(&mut *keys);
    for each in stored {
        if each.key.revoked_wall_ms.is_some() {
            continue;
        }
        let live = before.remove(&each.key.id);
        let id = each.key.id.clone();
        keys.insert(id, live.unwrap_or_else(|| Arc::new(LiveKey::new(each.key, each.hash))));
    }
    drop(keys);
    for gone in before.values() {
        gone.valid.store(false, Ordering::Relaxed);
        tracing::info!(key = %gone.key.id, name = gone.key.name, "API key was revoked");
    }
    // There is no later look at them.
    let uses: Vec<_> = before
        .into_iter()
        .filter_map(|(id, gone)| Some(KeyUse { id, at_wall_ms: gone.unrecorded_use(1)? }))
        .collect();
    if uses.is_empty() { Ok(()) } else { store.used(&uses) }
}

fn record(store: &KeyStore, shared: &Shared) -> Result<(), KeyError> {
    let keys: Vec<Arc<LiveKey>> = shared.keys.read().values().cloned().collect();
    let due = keys.into_iter().filter_map(|key| {
        let used = KeyUse { id: key.key.id.clone(), at_wall_ms: key.unrecorded_use(RECORD_EVERY_MS)? };
        Some((key, used))
    });
    let (keys, uses): (Vec<_>, Vec<_>) = due.unzip();
    if uses.is_empty() {
        return Ok(());
    }
    store.used(&uses)?;
    for (key, used) in keys.iter().zip(&uses) {
        key.recorded_wall_ms.store(used.at_wall_ms, Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::key::{KeyLimits, KeyRole, NewKey};
    use super::*;

    fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < Duration::from_secs(1), "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn changes_of_another_process_count_within_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let command = KeyStore::open(dir.path()).unwrap();
        let live = LiveKeys::open(dir.path()).unwrap();
        let new = NewKey { name: "a".into(), role: KeyRole::User, limits: KeyLimits::default() };
        let made = command.create(new).unwrap();
        let token = Token::parse(&made.token).unwrap();
        eventually("a new key is accepted", || live.check(&token).is_some());
        let forged = format!("lg_{}_{}", made.key.id, "0".repeat(64));
        assert!(live.check(&Token::parse(&forged).unwrap()).is_none());
        let held = live.check(&token).unwrap();
        held.take_request().unwrap();
        eventually("its use is recorded", || command.find("a").unwrap().last_used_wall_ms.is_some());
        command.revoke("a").unwrap();
        eventually("a revoked key is refused", || live.check(&token).is_none());
        assert!(!held.is_valid(), "requests that hold it see that, too");
    }

    #[test]
    fn a_use_just_before_the_revocation_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::open(dir.path()).unwrap();
        let new = NewKey { name: "a".into(), role: KeyRole::User, limits: KeyLimits::default() };
        let id = store.create(new).unwrap().key.id;
        let shared = Shared::default();
        refresh(&store, &shared).unwrap();
        let key = shared.keys.read().get(&id).cloned().unwrap();
        key.take_request().unwrap();
        store.revoke("a").unwrap();
        refresh(&store, &shared).unwrap();
        assert!(!key.is_valid());
        assert!(store.find("a").unwrap().last_used_wall_ms.is_some());
    }

    #[test]
    fn a_use_is_recorded_once_in_ten_seconds() {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::open(dir.path()).unwrap();
        let new = NewKey { name: "a".into(), role: KeyRole::User, limits: KeyLimits::default() };
        let made = store.create(new).unwrap();
        let key = LiveKey::new(made.key, Hash::new([0; 32]));
        for (used, recorded, wanted) in
            [(50_000, 41_000, None), (51_000, 41_000, Some(51_000)), (20_000, 41_000, Some(20_000))]
        {
            key.used_wall_ms.store(used, Ordering::Relaxed);
            key.recorded_wall_ms.store(recorded, Ordering::Relaxed);
            assert_eq!(key.unrecorded_use(RECORD_EVERY_MS), wanted);
        }
    }
}
