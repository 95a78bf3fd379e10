//! The queues that a node serves, and why it does not serve the others.

use std::collections::BTreeSet;

use lamagrid_domain::{ModelOffer, NodeInfo, QueueName};
use lamagrid_protocol::message::RefusedQueue;

use super::route_table::RouteTable;

/// The queues of a session.
#[derive(Debug, Default)]
pub(crate) struct LanePlan {
    /// Those that it serves.
    pub(crate) queues: Vec<QueueName>,
    /// For each offer of the node, the queues that its model is served from.
    pub(crate) of_offers: Vec<Vec<usize>>,
    /// Offers that were removed from its description, because no queue has them.
    pub(crate) unserved: Vec<ModelOffer>,
    pub(crate) refused: Vec<RefusedQueue>,
}

#[cfg(test)]
impl LanePlan {
    /// The queues that a node names for its models.
    pub(crate) fn as_offered(info: &NodeInfo) -> Self {
        let queues = info.queues();
        let queue_of = |offer: &ModelOffer| queues.iter().position(|queue| *queue == offer.queue);
        let of_offers = info.models.iter().map(|offer| queue_of(offer).into_iter().collect()).collect();
        Self { queues, of_offers, ..Self::default() }
    }
}

/// The queues that a node may serve at all.
pub(crate) struct LaneRules<'a> {
    pub(crate) routes: &'a RouteTable,
    /// The queues of the configuration.
    pub(crate) known: BTreeSet<&'a QueueName>,
    /// The queues of its certificate; empty for all.
    pub(crate) allowed: &'a [QueueName],
}

impl LaneRules<'_> {
    /// Plans the lanes of a node, and removes its offers that no queue has.
    ///
    /// A queue with a requirement is served by each node that meets it, with all models whose queue the configuration
    /// does not name; one without by the nodes of the models that belong there, or spill into it.
    pub(crate) fn plan(&self, info: &mut NodeInfo) -> LanePlan {
        let mut plan = LanePlan::default();
        for queue in &self.known {
            let serving: Vec<bool> = info.models.iter().map(|offer| self.is_offered(queue, offer)).collect();
            let is_offered = serving.contains(&true);
            if let Some(reason) = self.refusal(queue, info, is_offered) {
                plan.refused.push(RefusedQueue { queue: (*queue).clone(), reason });
                continue;
            }
            if !is_offered {
                continue;
            }
            let index = plan.queues.len();
            plan.queues.push((*queue).clone());
            plan.of_offers.resize_with(info.models.len(), Vec::new);
            let offered = plan.of_offers.iter_mut().zip(serving).filter(|(_, is_served)| *is_served);
            offered.for_each(|(queues, _)| queues.push(index));
        }
        let named = info.models.iter().filter(|offer| !offer.routed).map(|offer| &offer.queue);
        let unknown: BTreeSet<_> = named.filter(|queue| !self.known.contains(queue)).collect();
        plan.refused.extend(unknown.into_iter().map(|queue| RefusedQueue {
            queue: queue.clone(),
            reason: "the scheduler's configuration has no such queue".to_owned(),
        }));
        plan.of_offers.resize_with(info.models.len(), Vec::new);
        let mut queues_of = plan.of_offers.iter();
        let mut is_served = |_: &mut ModelOffer| queues_of.next().is_some_and(|queues| !queues.is_empty());
        plan.unserved = info.models.extract_if(.., |offer| !is_served(offer)).collect();
        plan.of_offers.retain(|queues| !queues.is_empty());
        plan
    }

    /// Whether a model's tasks wait in a queue, or spill into it.
    fn is_offered(&self, queue: &QueueName, offer: &ModelOffer) -> bool {
        self.belongs_to(queue, offer)
            || self.routes.spilling_into(queue).any(|from| self.belongs_to(from, offer))
    }

    fn belongs_to(&self, queue: &QueueName, offer: &ModelOffer) -> bool {
        if !offer.routed {
            return offer.queue == *queue;
        }
        match self.routes.configured_queue(&offer.model) {
            Some(configured) => configured == queue,
            None if self.routes.requirement(queue).is_some() => true,
            None => offer.model.default_queue() == *queue,
        }
    }

    /// Why a node does not get the lane of a queue; `None` also for a queue that it has nothing to do with.
    fn refusal(&self, queue: &QueueName, info: &NodeInfo, is_offered: bool) -> Option<String> {
        if let Some(requirement) = self.routes.requirement(queue) {
            let unmet = requirement.unmet_by(info);
            let no_model = || "each of the node's models is configured for another queue".to_owned();
            if unmet.is_some() || !is_offered {
                return Some(unmet.unwrap_or_else(no_model));
            }
        }
        let is_forbidden = is_offered && !self.allowed.is_empty() && !self.allowed.contains(queue);
        is_forbidden.then(|| "the node's certificate is for other queues".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::policy::route_table::{Requirement, Spill};
    use lamagrid_domain::DeviceClass;

    fn queue(name: &str) -> QueueName {
        name.parse().unwrap()
    }

    /// A node of a gpu with 8 GiB that lets the scheduler choose.
    fn node(models: &[&str]) -> NodeInfo {
        let named: Vec<_> = models.iter().map(|model| ("gpu", *model)).collect();
        let mut info = crate::core::tests::info("n", 1, &named);
        info.models.iter_mut().for_each(|offer| offer.routed = true);
        (info.device, info.memory_bytes) = ("cuda:0".into(), 8 << 30);
        info
    }

    fn planned(routes: &RouteTable, allowed: &[&str], info: &mut NodeInfo) -> (Vec<String>, Vec<String>) {
        let names = ["gpu", "cpu", "big", "labelled"].map(queue);
        let allowed: Vec<_> = allowed.iter().map(|name| queue(name)).collect();
        let rules = LaneRules { routes, known: names.iter().collect(), allowed: &allowed };
        let plan = rules.plan(info);
        assert_eq!(plan.of_offers.len(), info.models.len());
        let refused = plan.refused.iter().map(|refused| format!("{}: {}", refused.queue, refused.reason));
        (plan.queues.iter().map(ToString::to_string).collect(), refused.collect())
    }

    #[test]
    fn without_requirements_a_node_serves_the_default_queues_of_its_models() {
        let mut info = node(&["lama", "cv2"]);
        let (lanes, refused) = planned(&RouteTable::default(), &[], &mut info);
        assert_eq!((lanes, refused), (vec!["cpu".to_owned(), "gpu".to_owned()], vec![]));
        let (lanes, _) = planned(&RouteTable::default(), &[], &mut node(&["lama"]));
        assert_eq!(lanes, ["gpu"]);
    }

    #[test]
    fn a_queue_with_a_requirement_is_served_by_the_nodes_that_meet_it() {
        let mut routes = RouteTable::default();
        let gpu = Requirement { device: Some(DeviceClass::Gpu), ..Requirement::default() };
        routes.set_requirement(
            queue("cpu"),
            Requirement { device: Some(DeviceClass::Cpu), ..Requirement::default() },
        );
        routes.set_requirement(queue("big"), Requirement { memory_bytes: 16 << 30, ..gpu.clone() });
        routes.set_requirement(queue("gpu"), gpu.clone());
        routes.set_requirement(queue("labelled"), Requirement { labels: vec!["a100".into()], ..gpu });
        let (lanes, refused) = planned(&routes, &[], &mut node(&["lama", "cv2"]));
        assert_eq!(lanes, ["gpu"]);
        assert_eq!(
            refused,
            [
                "big: it requires 16 GiB of device memory, the node has 8 GiB",
                "cpu: it requires a cpu, the node has cuda:0",
                "labelled: it requires the label a100, which the node lacks"
            ]
        );
        let mut strong = node(&["lama"]);
        (strong.memory_bytes, strong.labels) = (80 << 30, vec!["a100".into()]);
        assert_eq!(planned(&routes, &[], &mut strong).0, ["big", "gpu", "labelled"]);
        assert_eq!(planned(&routes, &["big", "cpu"], &mut strong).0, ["big"]);
    }

    #[test]
    fn a_model_is_served_from_the_queue_that_its_tasks_spill_into() {
        let mut routes = RouteTable::default();
        let gpu = Requirement { device: Some(DeviceClass::Gpu), ..Requirement::default() };
        routes.set_requirement(queue("gpu"), gpu);
        routes.set_spill(queue("gpu"), Spill { to: queue("cpu"), after_ms: 1 });
        let mut weak = node(&["lama"]);
        weak.device = "cpu".into();
        assert_eq!(planned(&routes, &[], &mut weak).0, ["cpu"]);
    }

    #[test]
    fn a_model_is_served_from_the_queue_that_is_configured_or_named_by_an_old_node() {
        let mut routes = RouteTable::default();
        routes.set_queue("lama".parse().unwrap(), queue("big"));
        assert_eq!(planned(&routes, &[], &mut node(&["lama"])).0, ["big"]);
        let mut old = crate::core::tests::info("n", 1, &[("cpu", "lama"), ("nowhere", "cv2")]);
        let (lanes, refused) = planned(&routes, &[], &mut old);
        assert_eq!((lanes, old.models.len()), (vec!["cpu".to_owned()], 1));
        assert_eq!(refused.last().unwrap(), "nowhere: the scheduler's configuration has no such queue");
    }
}
