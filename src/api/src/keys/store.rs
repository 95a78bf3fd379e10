//! The database of API keys, `api.db` in the data directory.
//!
//! Does not: keep secrets; a key's hash is enough to recognise it.
//!
//! Several processes use it: `lamagrid key` writes, the scheduler reads and records the last use.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};

use lamagrid_domain::Hash;
use lamagrid_process::wall_clock::wall_ms;

use super::key::{ApiKey, KeyId, KeyLimits, NewKey};
use super::token::Token;

const FILE: &str = "api.db";
/// The version of the tables, kept in `user_version`.
const VERSION: i64 = 1;
/// How long to wait for another process's write.
const BUSY: Duration = Duration::from_secs(5);
/// Longest name of a key, in characters.
const MAX_NAME_CHARS: usize = 64;
/// Limit on keys, revoked ones included: a running scheduler holds all of them in memory.
const MAX_KEYS: i64 = 10_000;

const TABLES: &str = "
CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    hash BLOB NOT NULL,
    requests_per_second INTEGER,
    max_tasks INTEGER,
    max_task_bytes INTEGER,
    max_bytes INTEGER,
    max_priority INTEGER NOT NULL,
    created_wall_ms INTEGER NOT NULL,
    last_used_wall_ms INTEGER,
    revoked_wall_ms INTEGER
) STRICT;
CREATE UNIQUE INDEX valid_names ON keys (name) WHERE revoked_wall_ms IS NULL;
CREATE TABLE idempotency (
    owner TEXT NOT NULL,
    key TEXT NOT NULL,
    request BLOB NOT NULL,
    task BLOB NOT NULL,
    created_wall_ms INTEGER NOT NULL,
    PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency (created_wall_ms);
";

const COLUMNS: &str = "id, name, role, hash, requests_per_second, max_tasks, max_task_bytes, max_bytes, max_priority, \
                       created_wall_ms, last_used_wall_ms, revoked_wall_ms";

/// Why the database of API keys could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be opened, read or written.
    #[error("cannot use {}: {source}; check its permissions and the disk", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
    /// The file cannot be created.
    #[error("cannot create {}: {source}; check the permissions of the data directory", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A later version of the program wrote it.
    #[error("{} was written by a later version of lamagrid (tables {found}); install that one", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version of its tables.
        found: i64,
    },
    /// The name of a key is invalid.
    #[error("a key's name has 1 to {MAX_NAME_CHARS} printable characters, not {0:?}; choose another one")]
    Name(String),
    /// A valid key has this name.
    #[error("there is a key named {0:?} already: revoke it, or choose another name")]
    NameTaken(String),
    /// No key has this id or name.
    #[error("there is no key {0:?}: `lamagrid key list` shows all of them")]
    Unknown(String),
    /// The database holds as many keys as it may.
    #[error("there are {MAX_KEYS} keys, and no more are allowed, revoked ones included; share some of them")]
    TooMany,
}

/// A key, and its token, which cannot be shown again.
#[derive(Debug, Clone)]
pub struct CreatedKey {
    /// The key.
    pub key: ApiKey,
    /// The token to send.
    pub token: String,
}

/// A key with the hash of its secret.
#[derive(Debug, Clone)]
pub(crate) struct StoredKey {
    pub(crate) key: ApiKey,
    pub(crate) hash: Hash,
}

/// A key's last use.
#[derive(Debug)]
pub(crate) struct KeyUse {
    pub(crate) id: KeyId,
    pub(crate) at_wall_ms: u64,
}

/// The keys on disk.
#[derive(Debug)]
pub struct KeyStore {
    connection: Connection,
    path: PathBuf,
}

impl KeyStore {
    /// Opens the database in `data_dir`, which must exist, and creates it if it is missing.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn open(data_dir: &Path) -> Result<Self, KeyError> {
        let (connection, path) = open_database(data_dir)?;
        Ok(Self { connection, path })
    }

    /// Creates a key and returns its token.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn create(&self, new: NewKey) -> Result<CreatedKey, KeyError> {
        let NewKey { name, role, limits } = new;
        let is_name = (1..=MAX_NAME_CHARS).contains(&name.chars().count())
            && name.trim() == name
            && !name.chars().any(char::is_control);
        if !is_name {
            return Err(KeyError::Name(name.chars().take(MAX_NAME_CHARS).collect()));
        }
        let count = "SELECT count(*) FROM keys";
        if self.connection.query_row(count, [], |row| row.get::<_, i64>(0)).map_err(|e| self.error(e))?
            >= MAX_KEYS
        {
            return Err(KeyError::TooMany);
        }
        let token = Token::draw();
        let key = ApiKey {
            id: token.id.clone(),
            name,
            role,
            limits,
            created_wall_ms: wall_ms(),
            last_used_wall_ms: None,
            revoked_wall_ms: None,
        };
        let insert =
            format!("INSERT INTO keys ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)");
        let inserted = self.connection.execute(
            &insert,
            params![
                key.id.as_str(),
                key.name,
                role.as_str(),
                token.hash().as_slice(),
                limits.requests_per_second,
                limits.max_tasks.map(stored),
                limits.max_task_bytes.map(stored),
                limits.max_bytes.map(stored),
                limits.max_priority,
                stored(key.created_wall_ms),
            ],
        );
        match inserted {
            Ok(_) => Ok(CreatedKey { key, token: token.text() }),
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => {
                Err(KeyError::NameTaken(key.name))
            }
            Err(error) => Err(self.error(error)),
        }
    }

    /// All keys, the oldest first.
    ///
    /// # Errors
    /// [`KeyError::Database`].
    pub fn list(&self) -> Result<Vec<ApiKey>, KeyError> {
        Ok(self.stored()?.into_iter().map(|stored| stored.key).collect())
    }

    /// The key with this id, or the valid one, else the newest, with this name.
    ///
    /// # Errors
    /// [`KeyError::Unknown`], [`KeyError::Database`].
    pub fn find(&self, id_or_name: &str) -> Result<ApiKey, KeyError> {
        let select = format!(
            "SELECT {COLUMNS} FROM keys WHERE id = ?1 OR name = ?1
             ORDER BY id = ?1 DESC, revoked_wall_ms IS NULL DESC, created_wall_ms DESC LIMIT 1"
        );
        let found =
            self.connection.query_row(&select, [id_or_name], key_of).optional().map_err(|e| self.error(e))?;
        found.map(|stored| stored.key).ok_or_else(|| KeyError::Unknown(id_or_name.chars().take(80).collect()))
    }

    /// Revokes a key. A running scheduler refuses it within a second. A revoked key stays as it is.
    ///
    /// # Errors
    /// [`KeyError::Unknown`], [`KeyError::Database`].
    pub fn revoke(&self, id_or_name: &str) -> Result<ApiKey, KeyError> {
        let key = self.find(id_or_name)?;
        let update = "UPDATE keys SET revoked_wall_ms = ? WHERE id = ? AND revoked_wall_ms IS NULL";
        let revoked = self.connection.execute(update, params![stored(wall_ms()), key.id.as_str()]);
        revoked.map_err(|error| self.error(error))?;
        self.find(key.id.as_str())
    }

    /// All keys with their hashes.
    pub(crate) fn stored(&self) -> Result<Vec<StoredKey>, KeyError> {
        let read = || -> rusqlite::Result<Vec<StoredKey>> {
            let select = format!("SELECT {COLUMNS} FROM keys ORDER BY created_wall_ms, id");
            let mut statement = self.connection.prepare_cached(&select)?;
            statement.query_map([], key_of)?.collect()
        };
        read().map_err(|error| self.error(error))
    }

    /// A number that changes when another process has written.
    pub(crate) fn version(&self) -> Result<i64, KeyError> {
        let version = self.connection.query_row("PRAGMA data_version", [], |row| row.get(0));
        version.map_err(|error| self.error(error))
    }

    /// Records when keys were last used.
    pub(crate) fn used(&self, uses: &[KeyUse]) -> Result<(), KeyError> {
        let write = || -> rusqlite::Result<()> {
            let all = self.connection.unchecked_transaction()?;
            for KeyUse { id, at_wall_ms } in uses {
                let update = "UPDATE keys SET last_used_wall_ms = ? WHERE id = ?";
                all.prepare_cached(update)?.execute(params![stored(*at_wall_ms), id.as_str()])?;
            }
            all.commit()
        };
        write().map_err(|error| self.error(error))
    }

    fn error(&self, source: rusqlite::Error) -> KeyError {
        KeyError::Database { path: self.path.clone(), source }
    }
}

/// Opens the database, with its tables.
pub(crate) fn open_database(data_dir: &Path) -> Result<(Connection, PathBuf), KeyError> {
    let path = data_dir.join(FILE);
    // SQLite gives its other files the mode of this one.
    let create = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    create.map_err(|source| KeyError::Create { path: path.clone(), source })?;
    let open = || -> rusqlite::Result<(Connection, i64)> {
        let mut connection = Connection::open(&path)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        let all = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let found: i64 = all.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found == 0 {
            all.execute_batch(TABLES)?;
            all.pragma_update(None, "user_version", VERSION)?;
        }
        all.commit()?;
        Ok((connection, found.max(VERSION)))
    };
    match open().map_err(|source| KeyError::Database { path: path.clone(), source })? {
        (connection, VERSION) => Ok((connection, path)),
        (_, found) => Err(KeyError::Newer { path, found }),
    }
}

/// SQLite has no unsigned integers.
fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn key_of(row: &Row<'_>) -> rusqlite::Result<StoredKey> {
    let wrong = |column: usize, name: &str| {
        rusqlite::Error::InvalidColumnType(column, name.to_owned(), rusqlite::types::Type::Text)
    };
    let limit = |column: usize| row.get::<_, Option<i64>>(column).map(|number| number.map(i64::unsigned_abs));
    let key = ApiKey {
        id: KeyId::parse(row.get_ref(0)?.as_str()?).ok_or_else(|| wrong(0, "id"))?,
        name: row.get(1)?,
        role: row.get_ref(2)?.as_str()?.parse().map_err(|_| wrong(2, "role"))?,
        limits: KeyLimits {
            requests_per_second: row.get(4)?,
            max_tasks: limit(5)?,
            max_task_bytes: limit(6)?,
            max_bytes: limit(7)?,
            max_priority: row.get(8)?,
        },
        created_wall_ms: limit(9)?.unwrap_or(0),
        last_used_wall_ms: limit(10)?,
        revoked_wall_ms: limit(11)?,
    };
    let hash: [u8; 32] = row.get(3)?;
    Ok(StoredKey { key, hash: Hash::new(hash) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::key::KeyRole;
    use super::*;

    fn new(name: &str) -> NewKey {
        NewKey { name: name.to_owned(), role: KeyRole::User, limits: KeyLimits::default() }
    }

    #[test]
    fn keys_are_created_found_and_revoked_by_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let (scheduler, command) = (KeyStore::open(dir.path()).unwrap(), KeyStore::open(dir.path()).unwrap());
        let before = scheduler.version().unwrap();
        let limits = KeyLimits { max_tasks: Some(3), max_priority: -2, ..KeyLimits::default() };
        let made = command.create(NewKey { limits, role: KeyRole::Operator, ..new("ci") }).unwrap();
        assert_ne!(scheduler.version().unwrap(), before);
        let [stored] = &scheduler.stored().unwrap()[..] else { panic!("one key") };
        assert_eq!((&stored.key, stored.key.limits.max_tasks), (&made.key, Some(3)));
        assert!(Token::parse(&made.token).unwrap().is(&stored.hash));
        assert!(matches!(command.create(new("ci")), Err(KeyError::NameTaken(_))));
        let revoked = command.revoke("ci").unwrap();
        assert!(revoked.revoked_wall_ms.is_some());
        assert_eq!(command.revoke(revoked.id.as_str()).unwrap(), revoked, "again changes nothing");
        let again = command.create(new("ci")).unwrap();
        assert_eq!(command.find("ci").unwrap().id, again.key.id);
        assert!(matches!(command.find("x"), Err(KeyError::Unknown(_))));
        scheduler.used(&[KeyUse { id: again.key.id.clone(), at_wall_ms: 5 }]).unwrap();
        assert_eq!(command.find("ci").unwrap().last_used_wall_ms, Some(5));
    }

    #[test]
    fn the_file_is_private_and_holds_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::open(dir.path()).unwrap();
        let token = store.create(new("a")).unwrap().token;
        let secret = &token[token.len() - 64..];
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{path:?}");
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(64).any(|part| part == secret.as_bytes()), "{path:?}");
        }
    }

    #[test]
    fn names_are_checked_and_later_versions_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = KeyStore::open(dir.path()).unwrap();
        for name in ["", " a", "a\n", &"x".repeat(65)] {
            assert!(matches!(store.create(new(name)), Err(KeyError::Name(_))), "{name:?}");
        }
        store.connection.pragma_update(None, "user_version", 9).unwrap();
        assert!(matches!(KeyStore::open(dir.path()), Err(KeyError::Newer { found: 9, .. })));
    }
}
