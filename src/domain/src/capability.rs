//! What a node says it can do.

use serde::{Deserialize, Serialize};

use crate::{Label, ModelName, NodeName, QueueName};

/// What runs the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// TorchScript through libtorch, in Rust.
    Torch,
    /// Lama Cleaner's own models, in Python.
    Python,
    /// Answers with its input; for tests and measurements without a model.
    Echo,
}

impl NodeKind {
    /// The word in logs and tables.
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
    /// As tasks name it.
    pub model: ModelName,
    /// The resource class of its tasks.
    pub queue: QueueName,
    /// Whether it is in memory now, so that a task starts at once.
    pub loaded: bool,
    /// Whether its files are on the node's host, so that no task waits for a download.
    #[serde(default = "is_present")]
    pub present: bool,
}

/// Nodes of the protocol's minor versions before 4 do not say.
const fn is_present() -> bool {
    true
}

/// What a node registers with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Unique among live nodes.
    pub name: NodeName,
    /// What runs the models.
    pub kind: NodeKind,
    /// LamaGrid's version on that node.
    pub version: Label,
    /// `cpu`, `cuda:0`, ...
    pub device: Label,
    /// The GPU's name, where there is one.
    pub gpu: Option<Label>,
    /// Memory of the device in bytes, 0 where unknown.
    pub memory_bytes: u64,
    /// CPU cores of the host.
    pub cores: u32,
    /// What it serves; at most 256.
    pub models: Vec<ModelOffer>,
    /// Process id on its host, for people who look for it.
    pub pid: u32,
}

impl NodeInfo {
    /// The queues that this node's models come through, each once, sorted.
    #[must_use]
    pub fn queues(&self) -> Vec<QueueName> {
        let mut queues: Vec<_> = self.models.iter().map(|m| m.queue.clone()).collect();
        queues.sort();
        queues.dedup();
        queues
    }
}

impl ModelName {
    /// The plugin's name, if this is not a model that inpaints but one of Lama Cleaner's plugins: `plugin/RemoveBG`.
    ///
    /// A plugin gets the files of its task as they came and gives a file of its own making.
    #[must_use]
    pub fn plugin(&self) -> Option<&str> {
        self.as_str().strip_prefix("plugin/")
    }

    /// The queue of a model that no configuration places: classical ones need no GPU, and upstream runs some plugins
    /// on the processor alone.
    #[must_use]
    pub fn default_queue(&self) -> QueueName {
        match self.as_str() {
            "cv2" | "plugin/RemoveBG" | "plugin/AnimeSeg" | "plugin/MakeGIF" => QueueName::cpu(),
            _ => QueueName::gpu(),
        }
    }

    /// The command that starts a node which serves it on this host, for messages.
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

/// Upstream's models that only a Python node runs; `tests/seam/test_weights.py` holds this list against upstream's.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_told_from_a_model() {
        let name = |text: &str| text.parse::<ModelName>().unwrap();
        assert_eq!(name("plugin/RealESRGAN").plugin(), Some("RealESRGAN"));
        assert_eq!(name("sd1.5").plugin(), None);
        assert_eq!(name("plugin/MakeGIF").default_queue(), QueueName::cpu());
        assert_eq!(name("plugin/RealESRGAN").default_queue(), QueueName::gpu());
    }

    #[test]
    fn each_model_has_the_command_of_a_node_that_can_serve_it() {
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
