//! Remembers idempotency keys for a day: a repeated request gets the task of the first one.
//!
//! Does not: remember responses. A repeated request submits the same task under the same id, which the scheduler
//! recognises, so that a request that was lost on the way is made good.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};

use lamagrid_domain::{Hash, Owner, TaskId};
use lamagrid_process::wall_clock::wall_ms;

use crate::keys::{KeyError, open_database};
use crate::problem::{Fault, Problem};

/// How long a key is remembered.
const DAY_MS: u64 = 86_400_000;
/// Longest key, in bytes.
const MAX_KEY_BYTES: usize = 255;
/// Keys of one owner; its oldest ones are forgotten first.
const MAX_OF_ONE: u64 = 50_000;
/// One in this many new keys deletes old ones.
const PRUNE_EVERY: u64 = 64;

/// A key as a program sent it: printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Checks the value of the header.
    ///
    /// # Errors
    /// 400.
    pub(crate) fn parse(text: &str) -> Result<Self, Problem> {
        let text = text.trim().trim_matches('"');
        let is_key =
            (1..=MAX_KEY_BYTES).contains(&text.len()) && text.bytes().all(|b| (b'!'..=b'~').contains(&b));
        if is_key {
            return Ok(Self(text.to_owned()));
        }
        Err(Problem::bad(format!(
            "an Idempotency-Key has 1 to {MAX_KEY_BYTES} printable ASCII characters without spaces; draw a random one"
        )))
    }
}

/// The remembered keys.
#[derive(Debug, Clone)]
pub(crate) struct Idempotency(Arc<Mutex<Store>>);

#[derive(Debug)]
struct Store {
    connection: Connection,
    remembered: u64,
}

impl Idempotency {
    pub(crate) fn open(data_dir: &Path) -> Result<Self, KeyError> {
        let (connection, _) = open_database(data_dir)?;
        Ok(Self(Arc::new(Mutex::new(Store { connection, remembered: 0 }))))
    }

    /// The task of the first request with this key; that is `new`, if this is the first one.
    ///
    /// # Errors
    /// 422 if the key belongs to another request.
    pub(crate) async fn task(
        &self,
        owner: &Owner,
        key: &IdempotencyKey,
        request: Hash,
        new: TaskId,
    ) -> Result<TaskId, Problem> {
        let (owner, text) = (owner.clone(), key.0.clone());
        let found = self.run(move |store| store.task(&owner, &text, request, new)).await?;
        if found.request == request {
            return Ok(found.task);
        }
        let text = "the Idempotency-Key was used for another request; draw a new one for each task";
        Err(Problem::new(Fault::KeyReused, text).about(found.task))
    }

    /// Forgets a key whose task was refused, so that the request can be repeated.
    pub(crate) async fn forget(&self, owner: &Owner, key: &IdempotencyKey) -> Result<(), Problem> {
        let (owner, text) = (owner.clone(), key.0.clone());
        let delete = "DELETE FROM idempotency WHERE owner = ? AND key = ?";
        self.run(move |store| store.connection.execute(delete, [owner.as_str(), &text]).map(|_| ())).await
    }

    /// Works on the database on a thread that may wait for the disk.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        let store = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || work(&mut store.lock())).await;
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                tracing::error!(%error, "idempotency keys cannot be stored");
                Err(Problem::new(Fault::Busy, "the Idempotency-Key cannot be stored; try again later"))
            }
            Err(_) => Err(Problem::new(Fault::Internal, "storing the Idempotency-Key failed; see the log")),
        }
    }
}

/// A remembered request.
struct Remembered {
    request: Hash,
    task: TaskId,
}

impl Store {
    fn task(&mut self, owner: &Owner, key: &str, request: Hash, new: TaskId) -> rusqlite::Result<Remembered> {
        let now = wall_ms();
        self.remembered += 1;
        if self.remembered.is_multiple_of(PRUNE_EVERY) {
            self.prune(owner, now)?;
        }
        let all = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let select = "SELECT request, task, created_wall_ms FROM idempotency WHERE owner = ? AND key = ?";
        let found: Option<([u8; 32], [u8; 16], i64)> = all
            .query_row(select, [owner.as_str(), key], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        // Compared by distance, because the clock may be set back.
        if let Some((request, task, _)) =
            found.filter(|(_, _, created)| now.abs_diff(created.unsigned_abs()) < DAY_MS)
        {
            return Ok(Remembered { request: Hash::new(request), task: TaskId::from_bytes(task) });
        }
        let insert = "INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?)";
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        all.execute(
            insert,
            params![owner.as_str(), key, request.as_slice(), new.as_bytes().as_slice(), now],
        )?;
        all.commit()?;
        Ok(Remembered { request, task: new })
    }

    fn prune(&self, owner: &Owner, now: u64) -> rusqlite::Result<()> {
        let oldest = i64::try_from(now.saturating_sub(DAY_MS)).unwrap_or(i64::MAX);
        self.connection.execute("DELETE FROM idempotency WHERE created_wall_ms < ?", [oldest])?;
        let excess = "DELETE FROM idempotency WHERE owner = ?1 AND key IN (
            SELECT key FROM idempotency WHERE owner = ?1 ORDER BY created_wall_ms DESC LIMIT -1 OFFSET ?2)";
        self.connection
            .execute(excess, params![owner.as_str(), i64::try_from(MAX_OF_ONE).unwrap_or(i64::MAX)])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_stands_for_one_request_of_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let (key, other) = (IdempotencyKey::parse("\"a-1\"").unwrap(), IdempotencyKey::parse("b").unwrap());
        let (local, stranger) = (Owner::local(), "key:1".parse::<Owner>().unwrap());
        let (one, two) = (Hash::new([1; 32]), Hash::new([2; 32]));
        let id = |n| TaskId::from_bytes([n; 16]);
        let keys = Idempotency::open(dir.path()).unwrap();
        assert_eq!(keys.task(&local, &key, one, id(1)).await.unwrap(), id(1));
        drop(keys);
        let keys = Idempotency::open(dir.path()).unwrap();
        assert_eq!(keys.task(&local, &key, one, id(2)).await.unwrap(), id(1), "also after a restart");
        assert_eq!(keys.task(&local, &key, two, id(3)).await.unwrap_err().status(), 422);
        assert_eq!(keys.task(&stranger, &key, two, id(4)).await.unwrap(), id(4));
        assert_eq!(keys.task(&local, &other, one, id(5)).await.unwrap(), id(5));
        keys.forget(&local, &key).await.unwrap();
        assert_eq!(keys.task(&local, &key, two, id(6)).await.unwrap(), id(6));
    }

    #[tokio::test]
    async fn old_keys_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Idempotency::open(dir.path()).unwrap();
        let (key, hash) = (IdempotencyKey::parse("a").unwrap(), Hash::new([1; 32]));
        let id = |n| TaskId::from_bytes([n; 16]);
        keys.task(&Owner::local(), &key, hash, id(1)).await.unwrap();
        keys.0.lock().connection.execute("UPDATE idempotency SET created_wall_ms = 5", []).unwrap();
        assert_eq!(keys.task(&Owner::local(), &key, hash, id(2)).await.unwrap(), id(2));
        keys.0.lock().connection.execute("UPDATE idempotency SET created_wall_ms = 5", []).unwrap();
        keys.0.lock().prune(&Owner::local(), wall_ms()).unwrap();
        let left = "SELECT count(*) FROM idempotency";
        assert_eq!(keys.0.lock().connection.query_row(left, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
    }

    #[test]
    fn keys_are_bounded_and_printable() {
        for text in ["", " ", "a b", "é", "\u{7f}", &"x".repeat(256)] {
            assert!(IdempotencyKey::parse(text).is_err(), "{text:?}");
        }
    }
}
