//! Formats everything known about one node, for people and programs. The JSON is a contract: keys are only ever added.

use serde::Serialize;

use lamagrid_client::{ChangeState, NodeChange, NodeDetail, NodeOrder, RefusedQueue};
use lamagrid_domain::{LiveFigures, ModelOffer, NodeName};

use crate::output::{Show, columns};
use crate::task_history::{Selection, TaskLines};
use crate::units::{ago, memory, rfc3339};
use crate::view::NodeView;

/// One node.
#[derive(Serialize)]
pub(crate) struct NodeDetailView {
    name: NodeName,
    connected: bool,
    /// Null if it is not connected.
    session: Option<NodeView>,
    refused_queues: Vec<RefusedQueue>,
    order: Option<OrderView>,
    change: Option<ChangeView>,
    tasks: TaskLines,
}

#[derive(Serialize)]
struct OrderView {
    /// `drain` or `removal`.
    kind: &'static str,
    by: String,
    since: String,
    #[serde(skip)]
    since_ago: String,
}

#[derive(Serialize)]
struct ChangeView {
    change: NodeChange,
    /// `pending`, `done` or `refused`.
    state: &'static str,
    reason: Option<String>,
}

impl NodeDetailView {
    /// `now_ms` is the wall clock, for the ages in the table.
    pub(crate) fn new(detail: NodeDetail, now_ms: u64) -> Self {
        let NodeDetail { node, session, refused, order, change, tasks } = detail;
        let order = order.map(|NodeOrder { removed, by, since_wall_ms }| OrderView {
            kind: if removed { "removal" } else { "drain" },
            by,
            since: rfc3339(since_wall_ms),
            since_ago: ago(since_wall_ms, now_ms),
        });
        let change = change.map(|ChangeState { change, done, refusal }| ChangeView {
            change,
            state: match (done, &refusal) {
                (false, _) => "pending",
                (true, None) => "done",
                (true, Some(_)) => "refused",
            },
            reason: refusal,
        });
        Self {
            name: node,
            connected: session.is_some(),
            session: session.map(NodeView::from),
            refused_queues: refused,
            order,
            change,
            tasks: TaskLines::new(tasks, Selection::Tasks, now_ms),
        }
    }
}

impl Show for NodeDetailView {
    fn table(&self) -> String {
        let mut rows = vec![("node", self.name.to_string())];
        match &self.session {
            Some(session) => rows.extend(session_rows(session)),
            None => rows.push(("state", "not connected".to_owned())),
        }
        for RefusedQueue { queue, reason } in &self.refused_queues {
            rows.push(("refused", format!("queue {queue}: {reason}")));
        }
        rows.extend(
            self.order
                .as_ref()
                .map(|order| ("order", format!("{} by {}, {}", order.kind, order.by, order.since_ago))),
        );
        rows.extend(self.change.as_ref().map(|change| ("change", change.text())));
        let table = columns(&[], rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]));
        if self.tasks.is_empty() { table } else { format!("{table}\n\n{}", self.tasks.table()) }
    }
}

fn session_rows(session: &NodeView) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        ("state", session.state.clone()),
        ("tasks", format!("{} of {}", session.running, session.slots)),
        ("kind", session.kind.as_str().to_owned()),
        ("device", session.device_text()),
    ];
    rows.extend(session.device_id.as_ref().map(|id| ("device id", id.to_string())));
    rows.push(("memory", session.memory_text()));
    let host_memory =
        session.host_memory_bytes.map_or_else(String::new, |bytes| format!(", {}", memory(bytes)));
    rows.push(("host", format!("{} cores{host_memory}", session.cores)));
    let listed = |words: Vec<&str>| words.join(", ");
    if !session.cpu_features.is_empty() {
        rows.push(("processor", listed(session.cpu_features.iter().map(|word| word.as_str()).collect())));
    }
    rows.push(("version", session.version.to_string()));
    rows.push(("pid", session.pid.to_string()));
    if !session.labels.is_empty() {
        rows.push(("labels", listed(session.labels.iter().map(|label| label.as_str()).collect())));
    }
    rows.push(("queues", listed(session.queues.iter().map(|queue| queue.as_str()).collect())));
    rows.extend(session.models.iter().map(|offer| ("model", model_text(offer))));
    let withheld = session.withheld.iter();
    rows.extend(withheld.map(|model| ("withheld", format!("{}: {}", model.model, model.reason))));
    rows.extend(session.figures.as_ref().map(|figures| ("figures", figures_text(figures))));
    rows
}

fn model_text(offer: &ModelOffer) -> String {
    let place = match (offer.loaded, offer.present) {
        (true, _) => "loaded",
        (false, true) => "not in memory",
        (false, false) => "not fetched yet",
    };
    let size = (offer.memory_bytes > 0).then(|| memory(offer.memory_bytes));
    let pinned = offer.pinned.then(|| "pinned".to_owned());
    let details: Vec<_> = std::iter::once(place.to_owned()).chain(size).chain(pinned).collect();
    format!("{} ({})", offer.model, details.join(", "))
}

fn figures_text(figures: &LiveFigures) -> String {
    let mut parts = vec![
        format!("models use {}", memory(figures.model_memory_bytes)),
        format!("process uses {}", memory(figures.resident_bytes)),
        format!("load {} %", figures.load_percent),
    ];
    parts.extend(figures.utilisation_percent.map(|percent| format!("device {percent} % busy")));
    parts.extend(figures.temperature_c.map(|degrees| format!("{degrees} °C")));
    parts.join(", ")
}

impl ChangeView {
    fn text(&self) -> String {
        let NodeChange { models, slots, threads, log_level, labels } = &self.change;
        let joined = |words: Vec<&str>| words.join(",");
        let mut parts = Vec::new();
        parts.extend(
            models.as_ref().map(|m| format!("models {}", joined(m.iter().map(|m| m.as_str()).collect()))),
        );
        parts.extend(slots.map(|slots| format!("slots {slots}")));
        parts.extend(threads.map(|threads| format!("threads {threads}")));
        parts.extend(log_level.as_ref().map(|level| format!("log level {level}")));
        parts.extend(
            labels.as_ref().map(|l| format!("labels {}", joined(l.iter().map(|l| l.as_str()).collect()))),
        );
        let reason = self.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        format!("{} {}{reason}", parts.join(", "), self.state)
    }
}
