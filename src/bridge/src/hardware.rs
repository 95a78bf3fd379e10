//! `_native.cuda_gpus`: the GPUs that CUDA would show to a process.

use pyo3::prelude::*;

use lamagrid_hardware::{CudaEnvironment, Hardware, Roots};

use crate::enter::outside;

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
