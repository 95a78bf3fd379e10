//! Where the Redis server is, how it is connected, and the names of its keys.

use std::fmt;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, IntoConnectionInfo, RedisError, Value};

use lamagrid_config::{CacheConfig, RedisUrl};
use lamagrid_domain::TaskId;

use crate::cache::CacheError;

/// How long connecting may take, with TLS and password.
const CONNECT_PATIENCE: Duration = Duration::from_millis(500);
/// The longest password that is read from a file.
const MAX_PASSWORD_BYTES: u64 = 4_096;
/// The longest text of a server's error that is logged.
const MAX_ERROR_CHARS: usize = 200;

/// A connection, and the server's clock when it was made.
pub(super) struct Connected {
    pub(super) connection: MultiplexedConnection,
    pub(super) clock_ms: u64,
}

/// A server, a password and a prefix.
pub(super) struct Place {
    url: RedisUrl,
    password_file: PathBuf,
    /// In braces: a cluster keeps all keys of one grid together, as scripts need.
    prefix: String,
}

impl Place {
    pub(super) fn new(config: &CacheConfig) -> Self {
        Self {
            url: config.url.clone(),
            password_file: config.password_file.clone(),
            prefix: format!("{{{}}}:1", config.prefix),
        }
    }

    /// The key of the present epoch.
    pub(super) fn head_key(&self) -> String {
        format!("{}:epoch", self.prefix)
    }

    /// The key of a task.
    pub(super) fn key(&self, id: TaskId) -> String {
        format!("{}:task:{id}", self.prefix)
    }

    /// The channel of changes.
    pub(super) fn channel(&self) -> String {
        format!("{}:changes", self.prefix)
    }

    /// The server, without the password.
    pub(super) fn name(&self) -> &RedisUrl {
        &self.url
    }

    /// The client for this server. Reads the password's file, so that a changed password counts at the next connection.
    pub(super) fn client(&self) -> Result<Client, CacheError> {
        let wrong = |_| CacheError::Refused("cache.url is not the URL of a Redis server".to_owned());
        let mut info = self.url.secret().into_connection_info().map_err(wrong)?;
        if let Some(password) = self.password()? {
            let settings = info.redis_settings().clone().set_password(password);
            info = info.set_redis_settings(settings);
        }
        Client::open(info).map_err(|error| CacheError::Refused(describe(&error)))
    }

    fn password(&self) -> Result<Option<String>, CacheError> {
        if self.password_file.as_os_str().is_empty() {
            return Ok(None);
        }
        let unreadable = |error: std::io::Error| {
            CacheError::Refused(format!("cannot read {}: {error}", self.password_file.display()))
        };
        let file = std::fs::File::open(&self.password_file).map_err(unreadable)?;
        let mut text = String::new();
        file.take(MAX_PASSWORD_BYTES).read_to_string(&mut text).map_err(unreadable)?;
        Ok(Some(text.lines().next().unwrap_or("").trim().to_owned()))
    }

    /// Connects, and asks the server's time. It proves that a Redis server answers there.
    pub(super) async fn connect(&self) -> Result<Connected, CacheError> {
        let settings = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_PATIENCE))
            .set_response_timeout(Some(CONNECT_PATIENCE));
        let client = self.client()?;
        let connecting = async {
            let mut connection = client.get_multiplexed_async_connection_with_config(&settings).await?;
            let time: Value = redis::cmd("TIME").query_async(&mut connection).await?;
            Ok::<_, RedisError>((connection, time))
        };
        match tokio::time::timeout(CONNECT_PATIENCE, connecting).await {
            Err(_) => Err(CacheError::Late),
            Ok(Err(error)) => Err(CacheError::Refused(describe(&error))),
            Ok(Ok((connection, time))) => match clock_ms(&time) {
                Some(clock_ms) => Ok(Connected { connection, clock_ms }),
                None => Err(CacheError::Refused("it does not answer as a Redis server does".to_owned())),
            },
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("url", &self.url).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// The answer to `TIME`, in milliseconds.
pub(super) fn clock_ms(time: &Value) -> Option<u64> {
    let (seconds, micros): (u64, u64) = redis::from_redis_value_ref(time).ok()?;
    seconds.checked_mul(1_000)?.checked_add(micros / 1_000)
}

/// The text of an error, bounded, and without anything that the server or the URL may have put in about passwords.
pub(super) fn describe(error: &RedisError) -> String {
    let text = match error.kind() {
        ErrorKind::AuthenticationFailed => {
            "it refuses the password; check cache.url and cache.password_file".to_owned()
        }
        ErrorKind::InvalidClientConfig => "cache.url cannot be used".to_owned(),
        _ => match error.code() {
            Some("WRONGPASS" | "NOAUTH") => {
                "it refuses the password; check cache.url and cache.password_file".to_owned()
            }
            Some(code) => format!("it answers {code}: {}", error.detail().unwrap_or_default()),
            None => error.to_string(),
        },
    };
    text.chars().filter(|c| !c.is_control()).take(MAX_ERROR_CHARS).collect()
}
