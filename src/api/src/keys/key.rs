//! An API key without its secret.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use lamagrid_domain::Owner;

/// Length of a key's id, in hexadecimal digits.
pub(crate) const ID_DIGITS: usize = 16;

/// Identifies one key; not a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl KeyId {
    /// Takes an id of hexadecimal digits; `None` if it is invalid.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_id = text.len() == ID_DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_id.then(|| Self(text.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The owner of the tasks that are submitted with the key. No certificate has a colon in its name.
    #[must_use]
    pub fn owner(&self) -> Owner {
        format!("key:{}", self.0).parse().expect("hexadecimal digits are an owner's name")
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The rights of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyRole {
    /// Submit tasks, and see and cancel those that were submitted with the same key.
    User,
    /// Also see, cancel and retry the tasks of all owners, and see nodes and statistics.
    Operator,
    /// Also fetch the pictures of all owners.
    Admin,
}

/// The error for a word that names no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a role is user, operator or admin")]
pub struct RoleError;

impl KeyRole {
    /// The name in the database and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for KeyRole {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        [Self::User, Self::Operator, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or(RoleError)
    }
}

/// The limits of one key; `None` is no limit of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct KeyLimits {
    /// Requests per second; as many may come at once.
    pub requests_per_second: Option<u32>,
    /// Unfinished tasks.
    pub max_tasks: Option<u64>,
    /// Inputs of one task, in bytes.
    pub max_task_bytes: Option<u64>,
    /// Inputs of all unfinished tasks, in bytes.
    pub max_bytes: Option<u64>,
    /// The highest priority.
    pub max_priority: i8,
}

/// A key to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewKey {
    /// Its name, for people; no two valid keys have the same.
    pub name: String,
    /// Its rights.
    pub role: KeyRole,
    /// Its limits.
    pub limits: KeyLimits,
}

/// A key as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApiKey {
    /// Its id, the middle part of its token.
    pub id: KeyId,
    /// Its name.
    pub name: String,
    /// Its rights.
    pub role: KeyRole,
    /// Its limits.
    pub limits: KeyLimits,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_wall_ms: u64,
    /// When it was last used, to ten seconds; `None` before the first time.
    pub last_used_wall_ms: Option<u64>,
    /// When it was revoked; `None` if it is valid.
    pub revoked_wall_ms: Option<u64>,
}
