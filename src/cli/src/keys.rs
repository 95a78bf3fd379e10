//! `lamagrid key`: creates, lists and revokes the API keys of a data directory.
//!
//! Does not: ask the scheduler; it sees each change within a second.

use std::path::Path;

use serde::Serialize;

use lamagrid_api::{ApiKey, CreatedKey, KeyLimits, KeyStore, NewKey};
use lamagrid_domain::rfc3339;
use lamagrid_process::wall_clock::wall_ms;

use crate::Answer;
use crate::error::CliError;
use crate::key_args::CreateKeyArgs;
use crate::output::{Format, Show, columns};
use crate::units::{self, ago};

/// A key as it is shown.
#[derive(Serialize)]
struct View {
    #[serde(flatten)]
    key: ApiKey,
    created: String,
    last_used: Option<String>,
    revoked: Option<String>,
    #[serde(skip)]
    now_ms: u64,
}

impl View {
    fn new(key: ApiKey) -> Self {
        Self {
            created: rfc3339(key.created_wall_ms),
            last_used: key.last_used_wall_ms.map(rfc3339),
            revoked: key.revoked_wall_ms.map(rfc3339),
            now_ms: wall_ms(),
            key,
        }
    }

    fn state(&self) -> &'static str {
        if self.key.revoked_wall_ms.is_some() { "revoked" } else { "valid" }
    }

    fn used(&self) -> String {
        self.key.last_used_wall_ms.map_or_else(|| "never".to_owned(), |at| ago(at, self.now_ms))
    }
}

impl Show for View {
    fn table(&self) -> String {
        let KeyLimits { requests_per_second, max_tasks, max_task_bytes, max_bytes, max_priority } =
            self.key.limits;
        let number =
            |limit: Option<u64>| limit.map_or_else(|| "no limit".to_owned(), |limit| limit.to_string());
        let bytes = |limit: Option<u64>| limit.map_or_else(|| "no limit".to_owned(), units::memory);
        let mut rows = vec![
            ("key", self.key.id.to_string()),
            ("name", self.key.name.clone()),
            ("role", self.key.role.as_str().to_owned()),
            ("state", self.state().to_owned()),
            ("owner", self.key.id.owner().to_string()),
            (
                "requests",
                requests_per_second
                    .map_or_else(|| "no limit".to_owned(), |rate| format!("{rate} per second")),
            ),
            ("tasks", number(max_tasks)),
            ("bytes of a task", bytes(max_task_bytes)),
            ("bytes", bytes(max_bytes)),
            ("priority", format!("up to {max_priority}")),
            ("created", ago(self.key.created_wall_ms, self.now_ms)),
            ("last used", self.used()),
        ];
        rows.extend(self.key.revoked_wall_ms.map(|at| ("revoked", ago(at, self.now_ms))));
        columns(&[], rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]))
    }
}

impl Show for Vec<View> {
    fn table(&self) -> String {
        if self.is_empty() {
            return "there is no API key; create one with `lamagrid key create NAME`".to_owned();
        }
        let row = |view: &View| {
            let role = view.key.role.as_str().to_owned();
            vec![view.key.id.to_string(), view.key.name.clone(), role, view.state().to_owned(), view.used()]
        };
        columns(&["KEY", "NAME", "ROLE", "STATE", "LAST USED"], self.iter().map(row))
    }
}

/// A new key with its token.
#[derive(Serialize)]
struct Created {
    #[serde(flatten)]
    view: View,
    token: String,
}

impl Show for Created {
    fn table(&self) -> String {
        self.token.clone()
    }
}

/// Works on the keys of one data directory.
pub(crate) struct KeyCommand {
    store: KeyStore,
    format: Format,
}

impl KeyCommand {
    /// Creates the data directory if it is missing.
    pub(crate) fn open(data_dir: &Path, format: Format) -> Result<Self, CliError> {
        crate::scheduler::make_private(data_dir)?;
        Ok(Self { store: KeyStore::open(data_dir).map_err(Box::new)?, format })
    }

    /// `lamagrid key create`: prints the token alone, so that a script can take it.
    pub(crate) fn create(&self, args: CreateKeyArgs) -> Result<Answer, CliError> {
        let limits = KeyLimits {
            requests_per_second: args.rate,
            max_tasks: args.max_tasks,
            max_task_bytes: args.max_task_bytes,
            max_bytes: args.max_bytes,
            max_priority: args.max_priority,
        };
        let new = NewKey { name: args.name, role: args.role, limits };
        let CreatedKey { key, token } = self.store.create(new).map_err(Box::new)?;
        let remark = format!("key {} ({}) was created; its token is shown only now", key.id, key.name);
        let text = self.format.render(&Created { view: View::new(key), token })?;
        Ok(Answer { text, remark: Some(remark), code: 0 })
    }

    /// `lamagrid key list`
    pub(crate) fn list(&self) -> Result<Answer, CliError> {
        let views: Vec<_> = self.store.list().map_err(Box::new)?.into_iter().map(View::new).collect();
        self.format.render(&views).map(Answer::ok)
    }

    /// `lamagrid key show`
    pub(crate) fn show(&self, key: &str) -> Result<Answer, CliError> {
        self.format.render(&View::new(self.store.find(key).map_err(Box::new)?)).map(Answer::ok)
    }

    /// `lamagrid key revoke`
    pub(crate) fn revoke(&self, key: &str) -> Result<Answer, CliError> {
        self.format.render(&View::new(self.store.revoke(key).map_err(Box::new)?)).map(Answer::ok)
    }
}
