//! Nodes that serve a queue and model, and the failure of tasks that none serves.

use lamagrid_domain::{Failure, FailureKind, ModelName, QueueName};

use crate::core::state::circuit_breaker::CircuitBreaker;
use crate::core::state::sessions::Sessions;
use crate::core::state::task::Task;

/// Whether any connected node serves `model` from `queue`.
pub(crate) fn is_served(sessions: &Sessions, queue: &QueueName, model: &ModelName) -> bool {
    sessions.values().any(|session| session.offers(queue, model))
}

/// Whether a healthy node that the task does not avoid serves its model.
pub(crate) fn has_other_node(sessions: &Sessions, breaker: &CircuitBreaker, task: &Task) -> bool {
    sessions.values().any(|session| {
        !session.is_draining()
            && session.offers(&task.spec().queue, &task.spec().model)
            && !task.avoids(session.node())
            && !breaker.is_aside(session.node())
    })
}

/// Slots of all nodes that serve a queue.
pub(crate) fn slots_of(sessions: &Sessions, queue: &QueueName) -> u64 {
    let serving = sessions.values().filter(|session| session.lane_of(queue).is_some());
    serving.map(|session| u64::from(session.slots())).sum()
}

/// Tells a task that waited `waited_s` why no node can take it: none is connected, none has its model, or none serves
/// its queue.
pub(crate) fn unserved(sessions: &Sessions, waited_s: u64, queue: &QueueName, model: &ModelName) -> Failure {
    let command = model.node_command();
    let nodes = match sessions.len() {
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
    let offers = || sessions.values().flat_map(|session| &session.info().models);
    let listed = |mut names: Vec<&str>| {
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    };
    let elsewhere: Vec<&str> =
        offers().filter(|offer| offer.model == *model).map(|offer| offer.queue.as_str()).collect();
    let text = if elsewhere.is_empty() {
        let served = listed(offers().map(|offer| offer.model.as_str()).collect());
        format!(
            "no connected node serves model {model}: waited {waited_s} s; the {nodes} connected serve {served}; \
             start one with: {command}"
        )
    } else {
        format!(
            "no connected node serves queue {queue} with model {model}: waited {waited_s} s; of the {nodes} connected \
             some serve that model in queue {}: submit to that queue, or set queue = \"{queue}\" in a section \
             [models.{model}] of a node's configuration",
            listed(elsewhere)
        )
    };
    Failure::new(FailureKind::UnknownModel, text)
}
