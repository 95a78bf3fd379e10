//! Narrows the detected hardware by a file that people edit: the result is the node's offer to its scheduler.
//!
//! The file can cap memory and cores, leave GPUs and models out, and add labels. For tests it can report another device.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use serde::Serialize;

use lamagrid_domain::{ModelName, ModelOffer, NodeInfo, NodeKind, NodeName};

use crate::error::CapabilityError;
use crate::file_content::{
    CapabilityFile, DEVICE_WANTED, GpuEntry, ID_WANTED, LABELS_WANTED, MODELS_WANTED, NAME_WANTED,
    PretendedDevice,
};
use crate::gpu::Gpu;
use crate::visible::CudaEnvironment;
use crate::{Hardware, Remark, Roots};

/// Maximum number of labels of a node.
const MAX_LABELS: usize = 32;
const MAX_LABEL_BYTES: usize = 64;
/// More memory than any device has, for devices whose memory is unknown or made up: 16 TiB.
const MOST_MIB: u64 = 16 << 20;

/// A device as a node reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceDescription {
    /// The device's name: `cpu`, `cuda:0`, ...
    pub device: String,
    /// The GPU's model name; `None` without a GPU.
    pub gpu: Option<String>,
    /// The device's memory in bytes; 0 if unknown.
    pub memory_bytes: u64,
}

/// The offer of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// The hardware, capped.
    #[serde(flatten)]
    pub hardware: Hardware,
    /// Words that the requirements of queues may ask for.
    pub labels: Vec<String>,
    /// Models that the node does not offer, whatever flags and configuration say.
    pub leave_out: Vec<ModelName>,
    /// A device that is reported instead of the real one; for tests.
    pub pretend: Option<DeviceDescription>,
}

impl Capabilities {
    /// Detects the hardware, and narrows it by `file`.
    ///
    /// # Errors
    /// [`CapabilityError`] if the file cannot be read, or for its first wrong key.
    pub fn detect(
        roots: &Roots,
        cuda: &CudaEnvironment,
        file: Option<&Path>,
    ) -> Result<Self, CapabilityError> {
        // The file's syntax first: a wrong file is reported before a slow driver has answered.
        let file = file.map(CapabilityFile::read).transpose()?;
        let mut found = Self { hardware: Hardware::detect(roots, cuda), ..Self::default() };
        if let Some(file) = file {
            found.narrow(&file)?;
        }
        Ok(found)
    }

    fn narrow(&mut self, file: &CapabilityFile) -> Result<(), CapabilityError> {
        let content = &file.content;
        self.labels = labels(file)?;
        for text in &content.leave_out {
            let wrong = |_| file.wrong("leave_out", &format!("with {text:?}"), MODELS_WANTED);
            self.leave_out.push(text.parse().map_err(wrong)?);
        }
        let cpu = &mut self.hardware.cpu;
        if let Some(cores) = file.number("cpu.cores", content.cpu.cores, "cores", cpu.cores.into())? {
            cpu.cores = u32::try_from(cores).unwrap_or(cpu.cores);
        }
        cap_memory(file, "cpu.memory_mib", content.cpu.memory_mib, &mut cpu.memory_bytes)?;
        for (index, entry) in content.gpus.iter().enumerate() {
            self.narrow_gpu(file, index, entry)?;
        }
        self.pretend = content.pretend.as_ref().map(|device| pretended(file, device)).transpose()?;
        Ok(())
    }

    fn narrow_gpu(
        &mut self,
        file: &CapabilityFile,
        index: usize,
        entry: &GpuEntry,
    ) -> Result<(), CapabilityError> {
        let key = |name: &str| format!("gpus[{index}].{name}");
        let id = entry.id.as_deref().filter(|id| !id.trim().is_empty());
        let id = id.ok_or_else(|| file.wrong(&key("id"), "missing", ID_WANTED))?;
        let memory_key = key("memory_mib");
        let Some(gpu) = self.hardware.gpus.iter_mut().find(|gpu| gpu.id == id) else {
            // A GPU that is lost must not keep the others from working.
            file.number(&memory_key, entry.memory_mib, "MiB", MOST_MIB)?;
            self.hardware.remarks.push(Remark::warning(format!(
                "the capability file `{}` names the GPU {id}, which was not found now; remove its entry if it is gone for good",
                file.path.display()
            )));
            return Ok(());
        };
        cap_memory(file, &memory_key, entry.memory_mib, &mut gpu.memory_bytes)?;
        gpu.in_use = entry.in_use.unwrap_or(true);
        Ok(())
    }

    /// Describes the device of a worker: a GPU, or the processor without one.
    #[must_use]
    pub fn describe(&self, gpu: Option<&Gpu>) -> DeviceDescription {
        if let Some(pretend) = &self.pretend {
            return pretend.clone();
        }
        match gpu {
            Some(gpu) => DeviceDescription {
                device: gpu.device.clone(),
                gpu: Some(gpu.name.clone()).filter(|name| !name.is_empty()),
                memory_bytes: gpu.memory_bytes,
            },
            None => DeviceDescription {
                device: "cpu".into(),
                gpu: None,
                memory_bytes: self.hardware.cpu.memory_bytes,
            },
        }
    }

    /// Describes this process as a node on `gpu`, or on the processor without one.
    #[must_use]
    pub fn node_info(
        &self,
        name: NodeName,
        kind: NodeKind,
        models: Vec<ModelOffer>,
        gpu: Option<&Gpu>,
    ) -> NodeInfo {
        let device = self.describe(gpu);
        let cpu = &self.hardware.cpu;
        let id = gpu.filter(|gpu| self.pretend.is_none() && !gpu.id.is_empty()).map(|gpu| gpu.id.as_str());
        NodeInfo {
            name,
            kind,
            version: env!("CARGO_PKG_VERSION").into(),
            device: device.device.into(),
            gpu: device.gpu.map(Into::into),
            memory_bytes: device.memory_bytes,
            cores: cpu.cores,
            models,
            pid: std::process::id(),
            withheld: Vec::new(),
            labels: self.labels.iter().map(|label| label.as_str().into()).collect(),
            device_id: id.map(Into::into),
            host_memory_bytes: cpu.memory_bytes,
            cpu_features: cpu.features.iter().map(|&feature| feature.into()).collect(),
        }
    }

    /// True if the file does not leave this model out.
    #[must_use]
    pub fn offers(&self, model: &ModelName) -> bool {
        !self.leave_out.contains(model)
    }

    /// A capability file with these values, for people to edit.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::from(
            "# The offer of a node to its scheduler. `lamagrid-node capabilities --write FILE` wrote the detected hardware; edit it, and\n\
             # start the node with `lamagrid-node --capabilities FILE` or `lamagrid pynode --capabilities FILE`. A key that is\n\
             # left out keeps the value that is found at the start.\n\n",
        );
        let quoted = |words: Vec<&str>| {
            words.iter().map(|word| toml::Value::from(*word).to_string()).collect::<Vec<_>>().join(", ")
        };
        let labels = quoted(self.labels.iter().map(String::as_str).collect());
        let leave_out = quoted(self.leave_out.iter().map(ModelName::as_str).collect());
        let cpu = &self.hardware.cpu;
        // Writing to a text cannot fail.
        let _ = write!(
            out,
            "# Words that `requires` of a queue may ask for, for example [\"a100\", \"lab-2\"].\nlabels = [{labels}]\n\n\
             # Models that this node does not offer, whatever flags and configuration say.\nleave_out = [{leave_out}]\n\n\
             # Caps for the processor. Found: {}.\n[cpu]\ncores = {}\nmemory_mib = {}\n",
            cpu.features.join(" "),
            cpu.cores,
            cpu.memory_bytes >> 20
        );
        for gpu in &self.hardware.gpus {
            let capability = gpu.compute_capability.as_deref().unwrap_or("unknown");
            let _ = write!(
                out,
                "\n# {}: {}, compute capability {capability}. With `use = false` it gets no worker unless --device names it.\n\
                 [[gpus]]\nid = {}\nmemory_mib = {}\nuse = {}\n",
                gpu.device,
                gpu.name,
                toml::Value::from(gpu.id.as_str()),
                gpu.memory_bytes >> 20,
                gpu.in_use
            );
        }
        out.push_str(
            "\n# For tests: reports this device instead of the real one.\n\
             # [pretend]\n# device = \"cuda:0\"\n# gpu = \"Test GPU\"\n# memory_mib = 8192\n",
        );
        out
    }

    /// Writes the capability file. Keeps an existing file, which may have been edited.
    ///
    /// # Errors
    /// [`CapabilityError::Write`].
    pub fn write(&self, path: &Path) -> Result<(), CapabilityError> {
        let failed = |source| CapabilityError::Write { path: path.to_owned(), source };
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
        file.write_all(self.to_toml().as_bytes()).map_err(failed)
    }
}

fn cap_memory(
    file: &CapabilityFile,
    key: &str,
    value: Option<i64>,
    memory_bytes: &mut u64,
) -> Result<(), CapabilityError> {
    let found_mib = *memory_bytes >> 20;
    let most = if found_mib == 0 { MOST_MIB } else { found_mib };
    match file.number(key, value, "MiB", most)? {
        // The value as it was written keeps the bytes that were rounded off.
        Some(mib) if mib != found_mib => *memory_bytes = mib << 20,
        _ => {}
    }
    Ok(())
}

fn labels(file: &CapabilityFile) -> Result<Vec<String>, CapabilityError> {
    let mut labels: Vec<String> = Vec::new();
    for text in &file.content.labels {
        let is_word = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if text.is_empty() || text.len() > MAX_LABEL_BYTES || !is_word || labels.len() == MAX_LABELS {
            return Err(file.wrong("labels", &format!("with {text:?}"), LABELS_WANTED));
        }
        if !labels.contains(text) {
            labels.push(text.clone());
        }
    }
    Ok(labels)
}

fn pretended(file: &CapabilityFile, given: &PretendedDevice) -> Result<DeviceDescription, CapabilityError> {
    let missing = |key: &str, wanted: &str| file.wrong(key, "missing", wanted);
    let device = given.device.as_deref().ok_or_else(|| missing("pretend.device", DEVICE_WANTED))?;
    let is_cuda = device
        .strip_prefix("cuda:")
        .is_some_and(|index| !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit()));
    if device != "cpu" && !is_cuda {
        return Err(file.wrong("pretend.device", &format!("{device:?}"), DEVICE_WANTED));
    }
    if given.gpu.as_ref().is_some_and(|name| name.trim().is_empty()) {
        return Err(file.wrong("pretend.gpu", "empty", NAME_WANTED));
    }
    let key = "pretend.memory_mib";
    let memory = file.number(key, given.memory_mib, "MiB", MOST_MIB)?;
    let needed = || missing(key, "the device's memory, for example: memory_mib = 8192");
    Ok(DeviceDescription {
        device: device.to_owned(),
        gpu: given.gpu.clone(),
        memory_bytes: memory.ok_or_else(needed)? << 20,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn found() -> Capabilities {
        let gpu = |id: &str, index: usize| Gpu {
            id: id.into(),
            ..Gpu::undetected(format!("cuda:{index}"), "A100".into(), 80 * GIB + 12_345)
        };
        let hardware = Hardware {
            cpu: crate::Cpu { cores: 8, memory_bytes: 64 * GIB + 77, features: vec!["avx2"] },
            gpus: vec![gpu("GPU-a", 0), gpu("GPU-b", 1)],
            remarks: Vec::new(),
        };
        Capabilities { hardware, ..Capabilities::default() }
    }

    fn narrowed(text: &str) -> Result<Capabilities, CapabilityError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        std::fs::write(&path, text).unwrap();
        let file = CapabilityFile::read(&path)?;
        let mut capabilities = found();
        capabilities.narrow(&file)?;
        Ok(capabilities)
    }

    #[test]
    fn a_written_file_changes_nothing_until_it_is_edited() {
        let text = found().to_toml();
        assert_eq!(narrowed(&text).unwrap(), found());
        assert_eq!(narrowed("").unwrap(), found());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        found().write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        let again = found().write(&path).unwrap_err().to_string();
        assert!(again.contains("remove an older file first"), "{again}");
    }

    #[test]
    fn memory_is_capped_models_and_gpus_are_left_out_and_labels_added() {
        let edited = narrowed(
            "labels = ['a100', 'lab-2', 'a100']\nleave_out = ['manga']\n[cpu]\ncores = 2\nmemory_mib = 1024\n\
             [[gpus]]\nid = 'GPU-b'\nmemory_mib = 8192\n[[gpus]]\nid = 'GPU-a'\nuse = false\n",
        )
        .unwrap();
        assert_eq!(edited.labels, ["a100", "lab-2"]);
        assert!(!edited.offers(&"manga".parse().unwrap()) && edited.offers(&"lama".parse().unwrap()));
        assert_eq!((edited.hardware.cpu.cores, edited.hardware.cpu.memory_bytes), (2, GIB));
        let gpus: Vec<_> = edited.hardware.gpus.iter().map(|gpu| (gpu.memory_bytes, gpu.in_use)).collect();
        assert_eq!(gpus, [(80 * GIB + 12_345, false), (8 * GIB, true)]);
        let described = edited.describe(Some(&edited.hardware.gpus[1]));
        assert_eq!((described.device.as_str(), described.memory_bytes), ("cuda:1", 8 * GIB));
        assert_eq!(edited.describe(None).memory_bytes, GIB);
        assert_eq!(narrowed(&edited.to_toml()).unwrap(), edited);
    }

    #[test]
    fn a_pretended_device_replaces_the_real_one() {
        let text = "[pretend]\ndevice = 'cuda:3'\ngpu = 'Test GPU'\nmemory_mib = 4096\n";
        let described = narrowed(text).unwrap().describe(None);
        assert_eq!((described.device.as_str(), described.gpu.as_deref()), ("cuda:3", Some("Test GPU")));
        assert_eq!(described.memory_bytes, 4 * GIB);
    }

    #[test]
    fn a_gpu_that_is_not_there_is_a_remark_and_no_error() {
        let capabilities = narrowed("[[gpus]]\nid = 'GPU-gone'\nmemory_mib = 1\n").unwrap();
        assert!(capabilities.hardware.remarks[0].text.contains("GPU-gone"), "{capabilities:?}");
    }

    #[test]
    fn nonsense_is_refused_with_file_key_and_remedy() {
        for (text, key, remedy) in [
            ("memroy = 1", "`memroy`", "`labels`, `leave_out`, `cpu`, `gpus`, `pretend`"),
            ("[cpu]\nram = 1", "`ram`", "`cores` or `memory_mib`"),
            ("[cpu]\nmemory_mib = 'much'", "line 2, column 14 (`memory_mib", "write a whole number of MiB"),
            ("[cpu]\nmemory_mib = 65537", "`cpu.memory_mib`", "from 1 to 65536, which were found"),
            ("[cpu]\nmemory_mib = 1.5", "memory_mib", "float"),
            ("[cpu]\ncores = 0", "`cpu.cores`", "from 1 to 8"),
            ("[cpu]\ncores = -3", "`cpu.cores`", "from 1 to 8"),
            ("cpu = 3", "`cpu = 3`", "[cpu]"),
            ("labels = 'a100'", "`labels = ", "[\"a100\", \"lab-2\"]"),
            ("labels = ['a b']", "`labels`", "\"a b\""),
            ("labels = [1]", "`labels = ", "a list of at most 32 words"),
            ("leave_out = ['x y']", "`leave_out`", "names of models"),
            ("[gpus]\nid = 'GPU-a'", "`[gpus]`", "[[gpus]]"),
            ("[[gpus]]\nmemory_mib = 1", "`gpus[0].id`", "id = \"GPU-...\""),
            ("[[gpus]]\nid = 7", "line 2, column 6 (`id = 7`)", "the GPU's UUID"),
            ("[[gpus]]\nid = 'GPU-a'\nmemory_mib = 81921", "`gpus[0].memory_mib`", "from 1 to 81920"),
            ("[[gpus]]\nid = 'GPU-a'\nuse = 1", "line 3, column 7 (`use = 1`)", "true or false"),
            ("[[gpus]]\nid = 'GPU-a'\n[[gpus]]\nid = 'GPU-b'\nx = 1", "line 5", "`id`, `memory_mib`, `use`"),
            ("[pretend]\ndevice = 'tpu'\nmemory_mib = 1", "`pretend.device`", "`cpu`, or `cuda:N`"),
            ("[pretend]\ndevice = 'cuda:0'", "`pretend.memory_mib`", "memory_mib = 8192"),
            ("labels = [", "line 1", "`labels = [`"),
        ] {
            let error = narrowed(text).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(remedy), "{text}: {error}");
            assert!(error.contains("node.toml"), "{error}");
        }
        let absent = Capabilities::detect(
            &Roots::default(),
            &CudaEnvironment::default(),
            Some(Path::new("/nonexistent/x.toml")),
        );
        let text = absent.unwrap_err().to_string();
        assert!(text.contains("/nonexistent/x.toml") && text.contains("--write"), "{text}");
    }
}
