//! Nodes that serve a queue and model, and the failure of tasks that none serves or can do.

use lamagrid_domain::{DeviceClass, Failure, FailureKind, ModelName, NodeInfo, QueueName, TaskSpec};

use super::needs::Need;
use super::queue_choice::in_words;
use super::route_table::{RouteTable, gib};
use crate::core::state::session::Session;
use crate::core::state::sessions::Sessions;

/// Nodes that a failure lists with their devices.
const MAX_LISTED: usize = 8;
/// Nodes that a failure lists with the reason why they do not offer its model.
const MAX_WITHHOLDING: usize = 3;

/// The connected nodes, and the queues whose tasks they may get.
#[derive(Clone, Copy)]
pub(crate) struct Served<'a> {
    pub(crate) sessions: &'a Sessions,
    pub(crate) routes: &'a RouteTable,
}

impl<'a> Served<'a> {
    /// The nodes that serve `model` from `queue`, or will once its tasks spill.
    fn serving(self, queue: &'a QueueName, model: &'a ModelName) -> impl Iterator<Item = &'a Session> {
        let spills = self.routes.spills(queue);
        self.sessions.values().filter(move |session| {
            session.offers(queue, model) || spills.iter().any(|hop| session.offers(&hop.to, model))
        })
    }

    /// Whether any connected node serves `model` from `queue`.
    pub(crate) fn is_served(self, queue: &'a QueueName, model: &'a ModelName) -> bool {
        self.serving(queue, model).next().is_some()
    }

    /// The most memory of the nodes that serve a model and have a device of this class; `u64::MAX` if that of one is
    /// unknown, `None` if there is no such node.
    pub(crate) fn most_memory(
        self,
        queue: &'a QueueName,
        model: &'a ModelName,
        device: Option<DeviceClass>,
    ) -> Option<u64> {
        let able = self.serving(queue, model).map(Session::info);
        let able = able.filter(|info| device.is_none_or(|device| device == info.device_class()));
        able.map(|info| if info.memory_bytes == 0 { u64::MAX } else { info.memory_bytes }).max()
    }

    /// Tells a task that waited `waited_s` that no node that serves its model can do it.
    pub(crate) fn misfit(self, waited_s: u64, spec: &'a TaskSpec, need: &Need) -> Failure {
        let text = format!(
            "no connected node can do this task of {}: it needs {}; waited {waited_s} s; the nodes that serve it from queue \
             {} are {}; start one with a larger device, or submit with a smaller picture or another hd_strategy",
            spec.model,
            in_words(need),
            spec.queue,
            listed(self.serving(&spec.queue, &spec.model).map(Session::info))
        );
        Failure::new(FailureKind::OutOfMemory, text)
    }

    /// Tells a task that waited `waited_s` why no node can take it: none is connected, none has its model, or none serves
    /// its queue.
    pub(crate) fn unserved(self, waited_s: u64, spec: &TaskSpec) -> Failure {
        let TaskSpec { queue, model, .. } = spec;
        let command = model.node_command();
        let nodes = match self.sessions.len() {
            0 => {
                let text = format!(
                    "no node is connected: waited {waited_s} s for one that serves model {model}; \
                     start one on this host with: {command}"
                );
                return Failure::new(FailureKind::NodeLost, text);
            }
            1 => "one node".to_owned(),
            many => format!("{many} nodes"),
        };
        let with_model = self.sessions.values().filter(|s| s.info().models.iter().any(|o| o.model == *model));
        let joined = |mut names: Vec<&str>| {
            names.sort_unstable();
            names.dedup();
            names.join(", ")
        };
        let mut elsewhere: Vec<&str> = Vec::new();
        for session in with_model.clone() {
            let of_model = session.served().filter(|(offer, _)| offer.model == *model);
            elsewhere.extend(of_model.map(|(_, queue)| queue.as_str()));
        }
        let mut text = if elsewhere.is_empty() {
            let served = self.sessions.values().flat_map(|session| &session.info().models);
            format!(
                "no connected node serves model {model}: waited {waited_s} s; the {nodes} connected serve {}; \
                 start one with: {command}",
                joined(served.map(|offer| offer.model.as_str()).collect())
            )
        } else if let Some(requirement) = self.routes.requirement(queue) {
            format!(
                "no connected node serves queue {queue} with model {model}: waited {waited_s} s; the queue requires \
                 {requirement}; the nodes with that model are {}; start one that meets it, or submit to queue {}",
                listed(with_model.map(Session::info)),
                joined(elsewhere)
            )
        } else {
            format!(
                "no connected node serves queue {queue} with model {model}: waited {waited_s} s; of the {nodes} connected \
                 some serve that model in queue {}: submit to that queue, or set queue = \"{queue}\" in a section \
                 [models.{model}] of a node's configuration",
                joined(elsewhere)
            )
        };
        text.push_str(&self.withheld(model));
        Failure::new(FailureKind::UnknownModel, text)
    }

    /// The reasons of the nodes that have a model and do not offer it, as the end of a text; empty without any.
    fn withheld(self, model: &ModelName) -> String {
        let withholding = self.sessions.values().flat_map(|session| {
            let withheld = session.info().withheld.iter().filter(|withheld| withheld.model == *model);
            withheld.map(|withheld| (&session.info().name, &withheld.reason))
        });
        let shown = withholding.clone().take(MAX_WITHHOLDING);
        let mut text: String =
            shown.map(|(node, reason)| format!("; node {node} does not offer it: {reason}")).collect();
        match withholding.count().saturating_sub(MAX_WITHHOLDING) {
            0 => {}
            more => text.push_str(&format!("; {more} more nodes do not offer it")),
        }
        text
    }
}

/// Nodes with the figures of their devices.
fn listed<'a>(nodes: impl Iterator<Item = &'a NodeInfo>) -> String {
    let nodes: Vec<_> = nodes.collect();
    let memory = |info: &NodeInfo| match info.memory_bytes {
        0 => "unknown memory".to_owned(),
        bytes => gib(bytes),
    };
    let shown = nodes.iter().take(MAX_LISTED);
    let mut texts: Vec<_> =
        shown.map(|info| format!("{} ({}, {})", info.name, info.device, memory(info))).collect();
    if nodes.len() > MAX_LISTED {
        texts.push(format!("{} more", nodes.len() - MAX_LISTED));
    }
    texts.join(", ")
}
