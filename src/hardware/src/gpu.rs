//! Describes one GPU, or one part of a GPU that is divided (MIG).

use std::path::PathBuf;

use serde::Serialize;

/// The maker of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Vendor {
    /// NVIDIA: usable through CUDA.
    Nvidia,
    /// AMD.
    Amd,
}

/// A GPU, or one instance of a GPU in MIG mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// NVIDIA's UUID (`GPU-...` or `MIG-...`), by which `CUDA_VISIBLE_DEVICES` names it; the bus address of an AMD GPU.
    /// Empty if the driver's library did not name it.
    pub id: String,
    /// The device's name in lists and logs, with the host's index: `cuda:2`, or `cuda:2:1` for instance 1 of GPU 2.
    pub device: String,
    /// Its model name.
    pub name: String,
    /// The memory that programs can use, in bytes; 0 if unknown.
    pub memory_bytes: u64,
    /// CUDA's compute capability, such as `9.0`; `None` if unknown.
    pub compute_capability: Option<String>,
    /// Its maker.
    pub vendor: Vendor,
    /// False if a capability file keeps it from being used.
    pub in_use: bool,
    /// The directory of its live figures; only of an AMD GPU.
    #[serde(skip)]
    pub(crate) sysfs: Option<PathBuf>,
}

impl Gpu {
    /// Describes a GPU that only CUDA has reported, because the driver's library is missing. It has no live figures.
    #[must_use]
    pub fn undetected(device: String, name: String, memory_bytes: u64) -> Self {
        Self {
            id: String::new(),
            device,
            name,
            memory_bytes,
            compute_capability: None,
            vendor: Vendor::Nvidia,
            in_use: true,
            sysfs: None,
        }
    }
}

/// The live figures of a GPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct DeviceFigures {
    pub(crate) free_memory_bytes: Option<u64>,
    pub(crate) utilisation_percent: Option<u8>,
    pub(crate) temperature_c: Option<i16>,
}
