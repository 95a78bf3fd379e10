//! Runs `lamagrid node show`, `undrain`, `remove` and `set`, and `lamagrid stats`.

use std::time::{Duration, Instant};

use serde::Serialize;

use lamagrid_client::{
    AdminReply, AdminRequest, ChangeState, ClientError, GetNode, GetStatistics, NodeChange, NodeDetail,
    RemoveNode, SetNode, UndrainNode,
};
use lamagrid_domain::{Failure, FailureKind, NodeName};
use lamagrid_process::wall_clock::wall_ms;

use crate::Answer;
use crate::admin::{Admin, requester, unexpected};
use crate::args::SetArgs;
use crate::error::CliError;
use crate::node_view::NodeDetailView;
use crate::output::Streams;

/// Interval at which the state of a change is asked for; a node answers within its poll interval.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// A command that waits longer says what for.
const SILENT_FOR: Duration = Duration::from_secs(2);

impl Admin {
    /// `lamagrid node show`
    pub(crate) fn show_node(&self, node: NodeName) -> Result<Answer, CliError> {
        let detail = self.detail(GetNode { node })?;
        self.format.render(&NodeDetailView::new(detail, wall_ms())).map(Answer::ok)
    }

    /// `lamagrid node undrain`
    pub(crate) fn undrain(&self, node: NodeName) -> Result<Answer, CliError> {
        let detail = self.detail(UndrainNode { node, by: requester() })?;
        let text = match &detail.session {
            Some(_) => format!("node {} takes tasks", detail.node),
            None => format!("node {} may connect again; start it if it has ended", detail.node),
        };
        self.done(Ordered::of(&detail), text)
    }

    /// `lamagrid node remove`
    pub(crate) fn remove(&self, node: NodeName) -> Result<Answer, CliError> {
        let detail = self.detail(RemoveNode { node, by: requester() })?;
        let node = &detail.node;
        let text =
            format!("node {node} is removed and refused; lamagrid node undrain {node} takes that back");
        self.done(Ordered::of(&detail), text)
    }

    /// `lamagrid node set`: waits until the node has answered.
    pub(crate) fn set(&self, args: SetArgs, streams: &mut Streams) -> Result<Answer, CliError> {
        let SetArgs { name: node, models, slots, threads, log_level, labels, timeout } = args;
        let split = |labels: String| {
            labels.split(',').map(str::trim).filter(|l| !l.is_empty()).map(Into::into).collect()
        };
        let log_level = log_level.map(Into::into);
        let change = NodeChange { models, slots, threads, log_level, labels: labels.map(split) };
        let began = Instant::now();
        let mut detail = self.detail(SetNode { node: node.clone(), change, by: requester() })?;
        let mut is_told = false;
        loop {
            match detail.change.take() {
                Some(ChangeState { done: true, refusal: None, change }) => {
                    return self.done(Changed { node: &node, change }, format!("node {node} has changed"));
                }
                Some(ChangeState { done: true, refusal: Some(reason), .. }) => {
                    let text = format!("node {node} refused the change, and nothing changed: {reason}");
                    return Err(failed(FailureKind::InvalidInput, text));
                }
                Some(_) => {}
                None => {
                    let text = format!("node {node} has left or was started again before it answered");
                    return Err(failed(FailureKind::NodeLost, text));
                }
            }
            let waited = began.elapsed();
            if waited >= timeout {
                let trouble = format!("the change is still pending: see lamagrid node show {node}");
                let what = format!("the answer of node {node}");
                return Err(ClientError::Timeout { what, waited, trouble: Some(trouble) }.into());
            }
            if waited >= SILENT_FOR && !is_told {
                is_told = true;
                streams.say(&format!("waiting for node {node} to answer\n"));
            }
            std::thread::sleep(ASK_EVERY.min(timeout - waited));
            detail = self.detail(GetNode { node: node.clone() })?;
        }
    }

    /// `lamagrid stats`: fetches page after page.
    pub(crate) fn stats(&self) -> Result<Answer, CliError> {
        let mut lines = Vec::new();
        loop {
            let skip = u32::try_from(lines.len()).unwrap_or(u32::MAX);
            let AdminReply::Statistics(page) = self.ask(GetStatistics { skip })? else {
                return Err(unexpected());
            };
            let is_last = !page.more || page.lines.is_empty();
            lines.extend(page.lines);
            if is_last {
                return self.format.render(&lines).map(Answer::ok);
            }
        }
    }

    fn detail(&self, request: impl Into<AdminRequest>) -> Result<NodeDetail, CliError> {
        match self.ask(request)? {
            AdminReply::NodeDetail(detail) => Ok(detail),
            _ => Err(unexpected()),
        }
    }
}

/// The answer to an order, for programs.
#[derive(Serialize)]
struct Ordered<'a> {
    node: &'a NodeName,
    connected: bool,
    removed: bool,
}

impl<'a> Ordered<'a> {
    fn of(detail: &'a NodeDetail) -> Self {
        let removed = detail.order.as_ref().is_some_and(|order| order.removed);
        Self { node: &detail.node, connected: detail.session.is_some(), removed }
    }
}

/// An executed change, for programs.
#[derive(Serialize)]
struct Changed<'a> {
    node: &'a NodeName,
    change: NodeChange,
}

fn failed(kind: FailureKind, text: String) -> CliError {
    ClientError::from(Failure::new(kind, text)).into()
}
