//! The configuration of queues and models, as routing reads it.

use std::collections::BTreeMap;

use lamagrid_config::{Config, RequiredDevice, RequiresConfig};
use lamagrid_domain::{DeviceClass, Label, ModelName, NodeInfo, QueueName};

use super::needs::{Need, NeedTable};

const GIB: u64 = 1 << 30;

/// The nodes that a queue requires.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Requirement {
    /// `None` if each class of device will do.
    pub(crate) device: Option<DeviceClass>,
    /// Least memory of the device, in bytes; 0 if it does not matter.
    pub(crate) memory_bytes: u64,
    pub(crate) labels: Vec<Label>,
}

impl Requirement {
    fn of(config: &RequiresConfig) -> Option<Self> {
        let device = match config.device {
            RequiredDevice::Unset | RequiredDevice::Any => None,
            RequiredDevice::Gpu => Some(DeviceClass::Gpu),
            RequiredDevice::Cpu => Some(DeviceClass::Cpu),
        };
        let labels = config.labels.iter().map(|label| label.as_str().into()).collect();
        config.is_set().then(|| Self { device, memory_bytes: config.memory_gib * GIB, labels })
    }

    /// Why a node does not meet it; `None` if it does.
    pub(crate) fn unmet_by(&self, node: &NodeInfo) -> Option<String> {
        let device = self.device.filter(|device| *device != node.device_class());
        let missing: Vec<&str> =
            self.labels.iter().filter(|label| !node.labels.contains(label)).map(Label::as_str).collect();
        if let Some(device) = device {
            return Some(format!("it requires a {}, the node has {}", device.as_str(), node.device));
        }
        if node.memory_bytes < self.memory_bytes {
            let has = match node.memory_bytes {
                0 => "an unknown amount".to_owned(),
                bytes => gib(bytes),
            };
            return Some(format!(
                "it requires {} of device memory, the node has {has}",
                gib(self.memory_bytes)
            ));
        }
        (!missing.is_empty())
            .then(|| format!("it requires the label {}, which the node lacks", missing.join(", ")))
    }

    /// Whether every node that meets it can serve the need. A queue that requires no memory promises none: placement
    /// finds the nodes whose memory is enough.
    pub(crate) fn covers(&self, need: &Need) -> bool {
        let has_device = self.device.is_none() || need.device.is_none() || self.device == need.device;
        has_device && (self.memory_bytes == 0 || need.memory_bytes <= self.memory_bytes)
    }
}

impl std::fmt::Display for Requirement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.device.map(|device| format!("a {}", device.as_str())));
        parts.extend((self.memory_bytes > 0).then(|| format!("{} of memory", gib(self.memory_bytes))));
        parts.extend(self.labels.iter().map(|label| format!("the label {label}")));
        if parts.is_empty() { f.write_str("any node") } else { f.write_str(&parts.join(", ")) }
    }
}

/// Bytes for people.
pub(crate) fn gib(bytes: u64) -> String {
    let tenths = u128::from(bytes) * 10 / u128::from(GIB);
    match (tenths / 10, tenths % 10) {
        (0, _) => format!("{} MiB", bytes >> 20),
        (whole, 0) => format!("{whole} GiB"),
        (whole, part) => format!("{whole}.{part} GiB"),
    }
}

/// The queue whose nodes may also take the tasks of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spill {
    pub(crate) to: QueueName,
    /// How long a task waits before that; in a chain, from the time on at which it spilled to the queue before.
    pub(crate) after_ms: u64,
}

/// A step of a chain of spills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hop {
    pub(crate) to: QueueName,
    /// How long a task waits in all before that.
    pub(crate) waited_ms: u64,
}

/// Queues and models by name. Without configuration it is empty: models are served from their default queues.
#[derive(Debug, Default)]
pub(crate) struct RouteTable {
    requirements: BTreeMap<QueueName, Requirement>,
    spills: BTreeMap<QueueName, Spill>,
    /// For each queue with a spill, all queues that its tasks spill to, one after the other.
    chains: BTreeMap<QueueName, Vec<Hop>>,
    /// The queues that the configuration names for models.
    models: BTreeMap<ModelName, QueueName>,
    pub(crate) needs: NeedTable,
}

impl RouteTable {
    /// Names were checked when the configuration was read.
    pub(crate) fn of(config: &Config) -> Self {
        let mut table = Self::default();
        for (name, queue) in &config.queues {
            let Ok(name) = name.parse::<QueueName>() else { continue };
            if let Ok(to) = queue.spill_to.parse() {
                table.set_spill(name.clone(), Spill { to, after_ms: queue.spill_after_s * 1_000 });
            }
            if let Some(requirement) = Requirement::of(&queue.requires) {
                table.set_requirement(name, requirement);
            }
        }
        for (name, model) in &config.models {
            let Ok(name) = name.parse::<ModelName>() else { continue };
            table.needs.set(&name, model.need);
            if let Ok(queue) = model.queue.parse() {
                table.models.insert(name, queue);
            }
        }
        table
    }

    pub(crate) fn set_requirement(&mut self, queue: QueueName, requirement: Requirement) {
        self.requirements.insert(queue, requirement);
    }

    pub(crate) fn set_spill(&mut self, queue: QueueName, spill: Spill) {
        self.spills.insert(queue, spill);
        self.chains = self.spills.keys().map(|from| (from.clone(), self.chain(from))).collect();
    }

    /// The configuration has no circle; this ends even if there is one.
    fn chain(&self, from: &QueueName) -> Vec<Hop> {
        let (mut hops, mut last, mut waited_ms) = (Vec::<Hop>::new(), from, 0_u64);
        while let Some(Spill { to, after_ms }) = self.spills.get(last) {
            if to == from || hops.iter().any(|hop| hop.to == *to) {
                break;
            }
            waited_ms = waited_ms.saturating_add(*after_ms);
            hops.push(Hop { to: to.clone(), waited_ms });
            last = to;
        }
        hops
    }

    #[cfg(test)]
    pub(crate) fn set_queue(&mut self, model: ModelName, queue: QueueName) {
        self.models.insert(model, queue);
    }

    pub(crate) fn requirement(&self, queue: &QueueName) -> Option<&Requirement> {
        self.requirements.get(queue)
    }

    /// The queues with a requirement, by name.
    pub(crate) fn requirements(&self) -> &BTreeMap<QueueName, Requirement> {
        &self.requirements
    }

    /// The queues that the tasks of a queue spill to, one after the other.
    pub(crate) fn spills(&self, queue: &QueueName) -> &[Hop] {
        self.chains.get(queue).map_or(&[], Vec::as_slice)
    }

    /// The queues whose tasks may spill into this one, at once or over others.
    pub(crate) fn spilling_into<'a>(&'a self, queue: &'a QueueName) -> impl Iterator<Item = &'a QueueName> {
        let leads_there = move |(_, hops): &(&QueueName, &Vec<Hop>)| hops.iter().any(|hop| hop.to == *queue);
        self.chains.iter().filter(leads_there).map(|(from, _)| from)
    }

    /// The queue that the configuration names for a model.
    pub(crate) fn configured_queue(&self, model: &ModelName) -> Option<&QueueName> {
        self.models.get(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str) -> QueueName {
        name.parse().unwrap()
    }

    #[test]
    fn spills_follow_each_other_after_the_time_of_each_and_end_in_a_circle() {
        let mut table = RouteTable::default();
        for (from, to, after_ms) in [("a", "b", 10), ("b", "c", 5), ("c", "b", 1)] {
            table.set_spill(queue(from), Spill { to: queue(to), after_ms });
        }
        let hops = |from| -> Vec<_> {
            let hops = table.spills(&queue(from)).iter();
            hops.map(|hop| (hop.to.to_string(), hop.waited_ms)).collect()
        };
        assert_eq!(hops("a"), [("b".to_owned(), 10), ("c".to_owned(), 15)]);
        assert_eq!(hops("c"), [("b".to_owned(), 1)]);
        assert_eq!(hops("d"), []);
        let last = queue("c");
        let into: Vec<_> = table.spilling_into(&last).map(QueueName::as_str).collect();
        assert_eq!(into, ["a", "b"]);
    }
}
