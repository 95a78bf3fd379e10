//! `_native.cuda_gpus` and `_native.capability_offer`: what a node on this host could use.

use std::path::PathBuf;

use pyo3::prelude::*;

use lamagrid_domain::ModelName;
use lamagrid_hardware::{Capabilities, CudaEnvironment, Hardware, Roots};

use crate::enter::outside;
use crate::errors;

/// The UUIDs of the GPUs that CUDA shows with these values of `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER`, in its order.
///
/// Does not initialize CUDA, which reads these variables only once in a process.
#[pyfunction]
#[pyo3(signature = (visible_devices=None, device_order=None))]
pub(crate) fn cuda_gpus(
    py: Python<'_>,
    visible_devices: Option<String>,
    device_order: Option<String>,
) -> Vec<String> {
    let cuda = CudaEnvironment { visible_devices, device_order };
    let found = outside(py, || Hardware::detect(&Roots::default(), &cuda));
    found.cuda_gpus().map(|gpu| gpu.id.clone()).collect()
}

/// The part of a capability file that concerns the start of nodes.
#[derive(Debug, IntoPyObject)]
pub(crate) struct CapabilityOffer {
    /// The UUIDs of the GPUs that nodes may use, in CUDA's order.
    gpus: Vec<String>,
    /// Models that no node offers.
    leave_out: Vec<String>,
}

/// Reads a capability file, with these values of `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER`.
#[pyfunction]
#[pyo3(signature = (path, visible_devices=None, device_order=None))]
pub(crate) fn capability_offer(
    py: Python<'_>,
    path: PathBuf,
    visible_devices: Option<String>,
    device_order: Option<String>,
) -> PyResult<CapabilityOffer> {
    let cuda = CudaEnvironment { visible_devices, device_order };
    let found = outside(py, || Capabilities::detect(&Roots::default(), &cuda, Some(&path)));
    let found = found.map_err(|error| errors::invalid(py, &error.to_string()))?;
    let in_use = found.hardware.cuda_gpus().filter(|gpu| gpu.in_use);
    Ok(CapabilityOffer {
        gpus: in_use.map(|gpu| gpu.id.clone()).collect(),
        leave_out: found.leave_out.iter().map(ModelName::to_string).collect(),
    })
}
