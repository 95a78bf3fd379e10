//! Queues with requirements, tasks with needs and nodes with different devices, with an account of their own of what
//! fits where.

use lamagrid_config::NeedConfig;
use lamagrid_domain::{
    DeviceClass, MemoryUse, ModelName, NodeInfo, Params, PictureSize, QueueName, Scalar, TaskSpec,
};

use super::random::Random;
use crate::core::{Requirement, RouteTable, Spill};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// The core rounds differently.
const TOLERANCE_BYTES: u64 = 16 * MIB;

/// A model, its memory in MiB, and that of each megapixel.
const MODELS: [(&str, u64, u64); 3] = [("lama", 200, 700), ("manga", 5_000, 600), ("cv2", 0, 0)];
/// Queues with their device and GiB of memory, where queues have requirements.
const QUEUES: [(&str, Option<DeviceClass>, u64); 3] = [
    ("gpu", Some(DeviceClass::Gpu), 0),
    ("cpu", Some(DeviceClass::Cpu), 0),
    ("big", Some(DeviceClass::Gpu), 24),
];

/// The configuration of one episode.
#[derive(Debug, Clone)]
pub(super) struct Routing {
    /// Whether queues have requirements.
    pub(super) is_strict: bool,
    /// Tasks of `gpu` may run on nodes of `cpu` after this wait.
    spill_after_ms: Option<u64>,
    /// Tasks of `big` may run on nodes of `gpu` after this wait, and then on those of `cpu`, too.
    big_spill_after_ms: Option<u64>,
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a plain name")
}

impl Routing {
    pub(super) fn new(random: &mut Random) -> Self {
        let is_strict = random.chance(500);
        let spill_after_ms = (is_strict && random.chance(700)).then(|| random.between(0, 3_000));
        let big_spill_after_ms = (is_strict && random.chance(500)).then(|| random.between(0, 3_000));
        Self { is_strict, spill_after_ms, big_spill_after_ms }
    }

    pub(super) fn queues(&self) -> Vec<QueueName> {
        let names = if self.is_strict { &["gpu", "cpu", "big"][..] } else { &["gpu", "cpu"] };
        names.iter().map(|queue| name(queue)).collect()
    }

    pub(super) fn table(&self) -> RouteTable {
        let mut table = RouteTable::default();
        if !self.is_strict {
            return table;
        }
        for (queue, device, gib) in QUEUES {
            let requirement = Requirement { device, memory_bytes: gib * GIB, labels: Vec::new() };
            table.set_requirement(name(queue), requirement);
        }
        if let Some(after_ms) = self.spill_after_ms {
            table.set_spill(name("gpu"), Spill { to: name("cpu"), after_ms });
        }
        if let Some(after_ms) = self.big_spill_after_ms {
            table.set_spill(name("big"), Spill { to: name("gpu"), after_ms });
        }
        let small = NeedConfig { cpu_up_to_megapixels: 1, ..NeedConfig::default() };
        table.needs.set(&name("lama"), small);
        let only_gpu = NeedConfig { device: lamagrid_config::NeededDevice::Gpu, memory_mib: 5_000, ..small };
        table.needs.set(&name("manga"), only_gpu);
        table
    }

    /// The device of a node: `(device, memory)`.
    pub(super) fn device(random: &mut Random) -> (&'static str, u64) {
        let device = *random.pick(&["cpu", "cpu", "cuda:0", "cuda:1"]);
        (device, GIB * *random.pick(&[0, 0, 2, 8, 48]))
    }

    /// The size of a picture and parameters that let all of it through.
    pub(super) fn picture(random: &mut Random) -> (Option<PictureSize>, Params) {
        let megapixels = *random.pick(&[0, 0, 1, 6, 60, 200]);
        let picture = (megapixels > 0).then_some(PictureSize { height: 1_000, width: 1_000 * megapixels });
        let original = [("hd_strategy".to_owned(), Scalar::Text("Original".to_owned()))];
        (picture, Params::try_from(std::collections::BTreeMap::from(original)).expect("one short parameter"))
    }

    /// Memory of a task's model and of its pixels, and the number of these.
    fn parts(&self, spec: &TaskSpec) -> (u64, u64, u64) {
        let known = MODELS.iter().find(|(model, ..)| *model == spec.model.as_str());
        let (_, model_mib, mib_per_megapixel) = known.copied().unwrap_or(("", 0, 0));
        // Without configuration the built-in figure counts.
        let model_mib = if spec.model.as_str() == "manga" && !self.is_strict { 180 } else { model_mib };
        let pixels = spec.picture.map_or(0, PictureSize::pixels);
        (model_mib * MIB, mib_per_megapixel * MIB * pixels / 1_000_000, pixels)
    }

    /// The memory that a node measures for a task: the truth.
    pub(super) fn measured(&self, spec: &TaskSpec) -> MemoryUse {
        let (model_bytes, more, pixels) = self.parts(spec);
        MemoryUse { model_bytes, peak_bytes: model_bytes + more, pixels }
    }

    /// Whether a node's device can do a task beside others there.
    pub(super) fn fits(&self, spec: &TaskSpec, others: &[&TaskSpec], node: &NodeInfo) -> bool {
        let needs_gpu = self.is_strict && spec.model.as_str() == "manga";
        if needs_gpu && node.device.as_str() == "cpu" {
            return false;
        }
        let (mut bytes, mut models): (u64, Vec<&ModelName>) = (0, Vec::new());
        for each in others.iter().copied().chain([spec]) {
            let (model_bytes, more, _) = self.parts(each);
            bytes += more + if models.contains(&&each.model) { 0 } else { model_bytes };
            models.push(&each.model);
        }
        node.memory_bytes == 0 || bytes <= node.memory_bytes + TOLERANCE_BYTES
    }

    /// Whether a node may have the lane of a queue.
    pub(super) fn meets(&self, queue: &QueueName, node: &NodeInfo) -> bool {
        let Some((_, device, gib)) = QUEUES.iter().find(|(known, ..)| *known == queue.as_str()) else {
            return false;
        };
        let has_device =
            device.is_none_or(|device| (device == DeviceClass::Cpu) == (node.device.as_str() == "cpu"));
        !self.is_strict || has_device && node.memory_bytes >= gib * GIB
    }

    /// Whether a task of `queue` that waited this long may go down the lane of another one.
    pub(super) fn may_spill(&self, queue: &QueueName, to: &QueueName, waited_ms: u64) -> bool {
        let after_ms = match (queue.as_str(), to.as_str()) {
            ("gpu", "cpu") => self.spill_after_ms,
            ("big", "gpu") => self.big_spill_after_ms,
            ("big", "cpu") => self.big_spill_after_ms.zip(self.spill_after_ms).map(|(big, gpu)| big + gpu),
            _ => None,
        };
        after_ms.is_some_and(|after_ms| waited_ms >= after_ms)
    }
}
