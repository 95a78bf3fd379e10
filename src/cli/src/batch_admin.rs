//! `lamagrid batch`: lists, shows, cancels and retries batches.

use serde::Serialize;

use lamagrid_client::{
    ActOnBatch, AdminReply, BatchAct, BatchChanged, BatchInfo, Batches, ListBatches, TASKS_PER_ORDER,
};
use lamagrid_domain::{BatchId, Label, Owner};
use lamagrid_process::wall_clock::wall_ms;

use crate::Answer;
use crate::admin::{Admin, unexpected};
use crate::batch_args::BatchVerb;
use crate::error::CliError;
use crate::output::{Show, columns};
use crate::units::{ago, rfc3339};

impl Admin {
    /// `lamagrid batch`
    pub(crate) fn batch(&self, verb: BatchVerb) -> Result<Answer, CliError> {
        match verb {
            BatchVerb::List => self.list_batches(),
            BatchVerb::Show { id } => {
                let changed = self.act_on_batch(id, BatchAct::Show)?;
                self.format.render(&BatchView::from(changed.batch)).map(Answer::ok)
            }
            BatchVerb::Cancel { id } => self.act_on_all(id, &BatchAct::Cancel, "cancelled"),
            BatchVerb::Retry { id } => self.act_on_all(id, &BatchAct::Retry, "submitted again"),
        }
    }

    fn list_batches(&self) -> Result<Answer, CliError> {
        let (mut batches, mut after) = (Vec::new(), None);
        loop {
            let AdminReply::Batches(Batches { batches: page, next, .. }) =
                self.ask(ListBatches { after, limit: u32::MAX })?
            else {
                return Err(unexpected());
            };
            batches.extend(page.into_iter().map(BatchView::from));
            match next {
                Some(_) => after = next,
                None => break,
            }
        }
        batches.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        self.format.render(&batches).map(Answer::ok)
    }

    /// Repeats an order while tasks may be left that it changes: the scheduler changes a part per request.
    fn act_on_all(&self, id: BatchId, act: &BatchAct, what: &str) -> Result<Answer, CliError> {
        #[derive(Serialize)]
        struct View {
            tasks: u64,
            batch: BatchView,
        }
        let mut changed = self.act_on_batch(id, act.clone())?;
        let mut tasks = changed.tasks;
        while changed.tasks >= TASKS_PER_ORDER as u64 {
            changed = self.act_on_batch(id, act.clone())?;
            tasks += changed.tasks;
        }
        let text = format!("{tasks} tasks of batch {id} were {what}");
        self.done(View { tasks, batch: changed.batch.into() }, text)
    }

    fn act_on_batch(&self, id: BatchId, act: BatchAct) -> Result<BatchChanged, CliError> {
        match self.ask(ActOnBatch { id, act })? {
            AdminReply::BatchChanged(changed) => Ok(changed),
            _ => Err(unexpected()),
        }
    }
}

/// One batch.
#[derive(Debug, Serialize)]
struct BatchView {
    id: BatchId,
    name: Label,
    owner: Owner,
    queued: u64,
    processing: u64,
    completed: u64,
    failed: u64,
    cancelled: u64,
    closed: bool,
    created: String,
    done: Option<String>,
    #[serde(skip)]
    created_wall_ms: u64,
}

impl From<BatchInfo> for BatchView {
    fn from(batch: BatchInfo) -> Self {
        Self {
            id: batch.id,
            name: batch.name,
            owner: batch.owner,
            queued: batch.queued,
            processing: batch.processing,
            completed: batch.completed,
            failed: batch.failed,
            cancelled: batch.cancelled,
            closed: batch.closed,
            created: rfc3339(batch.created_wall_ms),
            done: batch.done_wall_ms.map(rfc3339),
            created_wall_ms: batch.created_wall_ms,
        }
    }
}

impl BatchView {
    fn state(&self) -> &'static str {
        match (self.done.is_some(), self.closed) {
            (true, _) => "done",
            (false, true) => "closed",
            (false, false) => "open",
        }
    }
}

impl Show for BatchView {
    fn table(&self) -> String {
        let rows = [
            ("batch", self.id.to_string()),
            ("name", self.name.to_string()),
            ("owner", self.owner.to_string()),
            ("state", self.state().to_owned()),
            ("waiting", self.queued.to_string()),
            ("running", self.processing.to_string()),
            ("completed", self.completed.to_string()),
            ("failed", self.failed.to_string()),
            ("cancelled", self.cancelled.to_string()),
            ("created", ago(self.created_wall_ms, wall_ms())),
        ];
        columns(&[], rows.map(|(name, value)| vec![name.to_owned(), value]))
    }
}

impl Show for Vec<BatchView> {
    fn table(&self) -> String {
        if self.is_empty() {
            return "no batches; `lamagrid inpaint` makes them".to_owned();
        }
        let header =
            ["BATCH", "NAME", "STATE", "WAITING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "CREATED"];
        let row = |batch: &BatchView| {
            let counts = [batch.queued, batch.processing, batch.completed, batch.failed, batch.cancelled];
            let mut row = vec![batch.id.to_string(), batch.name.to_string(), batch.state().to_owned()];
            row.extend(counts.map(|count| count.to_string()));
            row.push(batch.created.clone());
            row
        };
        columns(&header, self.iter().map(row))
    }
}
