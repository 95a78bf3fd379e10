//! Describes a node's capabilities: its models, its device and the queues it serves.

use serde::{Deserialize, Serialize};

use crate::{Label, ModelName, NodeName, QueueName, Reason};

/// The runtime that executes a node's models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// TorchScript through libtorch, in Rust.
    Torch,
    /// Lama Cleaner's own models, in Python.
    Python,
    /// Returns its input as the result; for tests and for measurements without a model.
    Echo,
}

impl NodeKind {
    /// The name shown in logs and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Torch => "torch",
            Self::Python => "python",
            Self::Echo => "echo",
        }
    }
}

/// One model that a node serves, and the queue its tasks come through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelOffer {
    /// The model's name, as tasks give it.
    pub model: ModelName,
    /// The queue that holds this model's tasks. With `routed` it counts only for schedulers before protocol 1.6.
    pub queue: QueueName,
    /// True if the scheduler chooses the queues; false if the node's configuration names `queue` for this model.
    #[serde(default)]
    pub routed: bool,
    /// True if the model is in memory now, so that a task starts at once.
    pub loaded: bool,
    /// True if the model's files are on the node's host, so that a task need not wait for a download.
    #[serde(default = "is_present")]
    pub present: bool,
    /// Memory that the model uses on the device, or will use by the size of its files, in bytes; 0 if unknown.
    #[serde(default)]
    pub memory_bytes: u64,
    /// True if the model stays in memory once it is loaded.
    #[serde(default)]
    pub pinned: bool,
}

/// A configured model that a node does not offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithheldModel {
    /// The model's name.
    pub model: ModelName,
    /// Why it is not offered, with the remedy.
    pub reason: Reason,
}

/// Limit on the withheld models that a registration lists.
const MAX_WITHHELD: usize = 64;
/// Limit on the bytes of their names and reasons: a registration with 256 models has room for as many.
const MAX_WITHHELD_BYTES: usize = 12 * 1024;

impl WithheldModel {
    /// The first of these, as many as a registration has room for.
    #[must_use]
    pub fn that_fit(all: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut left = MAX_WITHHELD_BYTES;
        let fits = |withheld: &Self| {
            let bytes = withheld.model.as_str().len() + withheld.reason.as_str().len();
            left.checked_sub(bytes).map(|less| left = less).is_some()
        };
        all.into_iter().take(MAX_WITHHELD).take_while(fits).collect()
    }
}

/// The kind of device that runs models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceClass {
    /// The processor.
    Cpu,
    /// A graphics processor.
    Gpu,
}

impl DeviceClass {
    /// The name shown in tables and used in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Gpu => "gpu",
        }
    }
}

/// Figures that a node measures all the time; sent with its heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LiveFigures {
    /// Free memory of the device in bytes; `None` if it cannot be read.
    pub free_memory_bytes: Option<u64>,
    /// Memory of the models in memory, in bytes.
    pub model_memory_bytes: u64,
    /// Resident memory of the node's process, in bytes.
    pub resident_bytes: u64,
    /// Utilisation of the device, 0 to 100; `None` if it cannot be read.
    pub utilisation_percent: Option<u8>,
    /// Temperature of the device in degrees Celsius; `None` if it has no sensor.
    pub temperature_c: Option<i16>,
    /// The host's load average of one minute times 100, divided by its cores.
    pub load_percent: u32,
}

/// The memory that an attempt used on its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// Memory of the model alone, in bytes.
    pub model_bytes: u64,
    /// The highest memory of model and activations, in bytes.
    pub peak_bytes: u64,
    /// Pixels of the largest patch that the network got.
    pub pixels: u64,
}

/// The default for nodes with a minor protocol version below 4, which do not send this field.
const fn is_present() -> bool {
    true
}

/// The description that a node sends when it registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The node's name, unique among live nodes.
    pub name: NodeName,
    /// The runtime that executes the models.
    pub kind: NodeKind,
    /// LamaGrid's version on the node.
    pub version: Label,
    /// The device that runs the models: `cpu`, `cuda:0`, ...
    pub device: Label,
    /// The GPU's model name; `None` without a GPU.
    pub gpu: Option<Label>,
    /// Memory of the device in bytes; 0 if unknown.
    pub memory_bytes: u64,
    /// Number of CPU cores of the host.
    pub cores: u32,
    /// The models that the node serves; at most 256.
    pub models: Vec<ModelOffer>,
    /// The node's process id on its host, shown to administrators.
    pub pid: u32,
    /// Configured models that are not offered; at most 64.
    #[serde(default)]
    pub withheld: Vec<WithheldModel>,
    /// Labels that queues may require, such as `a100`; at most 32.
    #[serde(default)]
    pub labels: Vec<Label>,
    /// The device's unique id; `None` if it has none.
    #[serde(default)]
    pub device_id: Option<Label>,
    /// Memory of the host within the limits of the node's process, in bytes; 0 if unknown.
    #[serde(default)]
    pub host_memory_bytes: u64,
    /// Instruction sets of the processor that speed models up, such as `avx2`; at most 32.
    #[serde(default)]
    pub cpu_features: Vec<Label>,
}

impl NodeInfo {
    /// The class of its device: a node that names no processor has a GPU.
    #[must_use]
    pub fn device_class(&self) -> DeviceClass {
        if self.device.as_str() == "cpu" { DeviceClass::Cpu } else { DeviceClass::Gpu }
    }

    /// The queues of this node's models, without duplicates, sorted.
    #[must_use]
    pub fn queues(&self) -> Vec<QueueName> {
        let mut queues: Vec<_> = self.models.iter().map(|m| m.queue.clone()).collect();
        queues.sort();
        queues.dedup();
        queues
    }
}

impl ModelName {
    /// The plugin's name if this names one of Lama Cleaner's plugins (`plugin/RemoveBG`); `None` for a model.
    ///
    /// A plugin receives its task's files unchanged and returns a file that it encoded itself.
    #[must_use]
    pub fn plugin(&self) -> Option<&str> {
        self.as_str().strip_prefix("plugin/")
    }

    /// The queue of a model that the configuration assigns to none. Classical algorithms and the plugins that
    /// upstream runs on the CPU only get `cpu`; all others get `gpu`.
    #[must_use]
    pub fn default_queue(&self) -> QueueName {
        match self.as_str() {
            "cv2" | "plugin/RemoveBG" | "plugin/AnimeSeg" | "plugin/MakeGIF" => QueueName::cpu(),
            _ => QueueName::gpu(),
        }
    }

    /// The command that starts a node which serves this model on this host, for messages.
    #[must_use]
    pub fn node_command(&self) -> String {
        let name = self.as_str();
        match self.plugin() {
            Some(plugin) => format!("lamagrid pynode --plugin {plugin}"),
            None if matches!(name, "lama" | "manga") => format!("lamagrid-node --model {name}"),
            None if PYTHON_MODELS.contains(&name) => format!("lamagrid pynode --model {name}"),
            None => format!("lamagrid-node --model {name}=FILE"),
        }
    }
}

/// Upstream's models that only a Python node runs. `tests/seam/test_weights.py` compares this list with upstream's.
const PYTHON_MODELS: [&str; 11] = [
    "ldm",
    "zits",
    "mat",
    "fcf",
    "cv2",
    "sd1.5",
    "anything4",
    "realisticVision1.4",
    "sd2",
    "paint_by_example",
    "instruct_pix2pix",
];

/// True for the name of one of Lama Cleaner's own models, whose files it knows.
#[must_use]
pub fn is_upstreams_model(name: &str) -> bool {
    matches!(name, "lama" | "manga") || PYTHON_MODELS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugin_names_are_recognized_by_their_prefix() {
        let name = |text: &str| text.parse::<ModelName>().unwrap();
        assert_eq!(name("plugin/RealESRGAN").plugin(), Some("RealESRGAN"));
        assert_eq!(name("sd1.5").plugin(), None);
        assert_eq!(name("plugin/MakeGIF").default_queue(), QueueName::cpu());
        assert_eq!(name("plugin/RealESRGAN").default_queue(), QueueName::gpu());
    }

    #[test]
    fn withheld_models_are_listed_up_to_their_number_and_their_bytes() {
        let withheld = |reason: &str| WithheldModel { model: "m".parse().unwrap(), reason: reason.into() };
        let listed = |reason: &str| WithheldModel::that_fit((0..1_000).map(|_| withheld(reason))).len();
        assert_eq!(listed("short"), MAX_WITHHELD);
        assert_eq!(listed(&"x".repeat(9_999)), MAX_WITHHELD_BYTES / 301);
        assert_eq!(listed(&"é".repeat(300)), MAX_WITHHELD_BYTES / 601);
    }

    #[test]
    fn node_command_starts_a_node_that_serves_the_model() {
        for (name, command) in [
            ("plugin/RemoveBG", "lamagrid pynode --plugin RemoveBG"),
            ("lama", "lamagrid-node --model lama"),
            ("manga", "lamagrid-node --model manga"),
            ("sd1.5", "lamagrid pynode --model sd1.5"),
            ("mine", "lamagrid-node --model mine=FILE"),
        ] {
            assert_eq!(name.parse::<ModelName>().unwrap().node_command(), command);
        }
    }
}
