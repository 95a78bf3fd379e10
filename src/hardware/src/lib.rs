//! Detects the processor, memory and GPUs that this process may use, and watches one device while it works.
//!
//! NVIDIA's GPUs come from the driver's library, which is loaded at run time; AMD's from sysfs; processor and memory from
//! procfs, under the limits of control groups and affinity. A source that fails adds a [`Remark`] and hides nothing else.
//! A capability file can only narrow the detected hardware.
//!
//! Does not: choose the device of a model, read the environment, or link a driver.

mod amd;
mod capability_file;
mod cgroup;
mod error;
mod file_content;
mod gpu;
mod host;
mod nvidia;
mod sampler;
mod visible;

pub use capability_file::{Capabilities, DeviceDescription};
pub use error::CapabilityError;
pub use gpu::{Gpu, Vendor};
pub use host::Cpu;
pub use sampler::Sampler;
pub use visible::CudaEnvironment;

use std::path::PathBuf;

use serde::Serialize;

/// Where the operating system and the driver show the hardware. Tests use made-up directories.
#[derive(Debug, Clone)]
pub struct Roots {
    /// Usually `/proc`.
    pub proc: PathBuf,
    /// Usually `/sys`.
    pub sys: PathBuf,
    /// The library of the NVIDIA driver: a name for the dynamic loader, or a path.
    pub nvml: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { proc: "/proc".into(), sys: "/sys".into(), nvml: "libnvidia-ml.so.1".into() }
    }
}

/// How much a remark matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Expected on many hosts, such as a host without a GPU.
    Note,
    /// Hardware that is there cannot be used.
    Warning,
}

/// Something that an operator should know about the detection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// How much it matters.
    pub severity: Severity,
    /// The fault, its device and the remedy.
    pub text: String,
}

impl Remark {
    fn note(text: impl Into<String>) -> Self {
        Self { severity: Severity::Note, text: text.into() }
    }

    fn warning(text: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, text: text.into() }
    }
}

/// The hardware that this process may use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Hardware {
    /// Processor and main memory.
    pub cpu: Cpu,
    /// The visible GPUs: NVIDIA's in CUDA's order, then AMD's.
    pub gpus: Vec<Gpu>,
    /// Faults and peculiarities that were found.
    pub remarks: Vec<Remark>,
}

impl Hardware {
    /// Detects the hardware. A driver that hangs delays this by at most ten seconds.
    #[must_use]
    pub fn detect(roots: &Roots, cuda: &CudaEnvironment) -> Self {
        let visible::Found { mut gpus, mut remarks } = nvidia::detect(roots, cuda);
        let amd = amd::detect(&roots.sys);
        remarks.extend(amd.iter().map(|gpu| {
            Remark::note(format!(
                "{} ({}) is an AMD GPU: it is listed, but lamagrid-node runs models on NVIDIA GPUs and processors only",
                gpu.device, gpu.name
            ))
        }));
        gpus.extend(amd);
        Self { cpu: Cpu::detect(&roots.proc, &roots.sys), gpus, remarks }
    }

    /// The GPUs that CUDA can use, in its order: entry `n` is CUDA's device `n` of this process.
    pub fn cuda_gpus(&self) -> impl Iterator<Item = &Gpu> {
        self.gpus.iter().filter(|gpu| gpu.vendor == Vendor::Nvidia)
    }

    /// The GPU that torch calls `cuda:index`; torch for AMD's GPUs uses the same words.
    #[must_use]
    pub fn torch_gpu(&self, index: usize) -> Option<&Gpu> {
        if self.cuda_gpus().next().is_some() { self.cuda_gpus().nth(index) } else { self.gpus.get(index) }
    }

    /// Logs each remark once. For the process that starts the workers: each worker finds the same.
    pub fn log_remarks(&self) {
        for remark in &self.remarks {
            match remark.severity {
                Severity::Note => tracing::info!("hardware: {}", remark.text),
                Severity::Warning => tracing::warn!("hardware: {}", remark.text),
            }
        }
    }
}
