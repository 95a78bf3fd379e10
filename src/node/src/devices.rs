//! Detects the hardware of a node, and decides which workers it starts, each on which device.

use lamagrid_config::Device;
use lamagrid_hardware::{Capabilities, CapabilityError, CudaEnvironment, Gpu, Hardware, Roots};

use crate::flags::Flags;

/// The variable that limits a process to some GPUs.
pub const VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";

/// Detects the hardware that this process may use, narrowed by the capability file of the flags.
///
/// # Errors
/// [`CapabilityError`] for a wrong capability file.
pub fn detect(flags: &Flags) -> Result<Capabilities, CapabilityError> {
    let variable = |name| std::env::var(name).ok();
    let cuda = CudaEnvironment {
        visible_devices: variable(VISIBLE_DEVICES),
        device_order: variable("CUDA_DEVICE_ORDER"),
    };
    Capabilities::detect(&Roots::default(), &cuda, flags.capabilities.as_deref())
}

/// The device of one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerDevice {
    /// The worker's `--device`.
    pub device: Device,
    /// The only GPU that the worker sees; `None` leaves its view as it is.
    pub gpu: Option<Gpu>,
}

impl WorkerDevice {
    /// A worker on the processor.
    pub const CPU: Self = Self { device: Device::Cpu, gpu: None };

    /// A worker that sees only this GPU, as CUDA's first.
    fn on(gpu: &Gpu) -> Self {
        Self { device: Device::Cuda(0), gpu: Some(gpu.clone()) }
    }
}

/// Plans the workers for these devices, in their order: `auto` is one worker per GPU in use, or one without a GPU.
///
/// A GPU that the driver's library does not list is left to the worker, which asks CUDA itself.
#[must_use]
pub fn plan(devices: &[Device], hardware: &Hardware) -> Vec<WorkerDevice> {
    let workers = |&device: &Device| -> Vec<WorkerDevice> {
        match device {
            Device::Cpu => vec![WorkerDevice::CPU],
            Device::Cuda(index) => {
                let gpu = hardware.cuda_gpus().nth(index.into());
                vec![gpu.map_or(WorkerDevice { device, gpu: None }, WorkerDevice::on)]
            }
            Device::Auto if hardware.cuda_gpus().next().is_none() => {
                vec![WorkerDevice { device, gpu: None }]
            }
            Device::Auto => {
                let used: Vec<_> =
                    hardware.cuda_gpus().filter(|gpu| gpu.in_use).map(WorkerDevice::on).collect();
                if used.is_empty() { vec![WorkerDevice::CPU] } else { used }
            }
        }
    };
    devices.iter().flat_map(workers).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware(gpus: usize) -> Hardware {
        let gpu = |index: usize| {
            let mut gpu = Gpu::undetected(format!("cuda:{index}"), "A100".into(), 1 << 36);
            gpu.id = format!("GPU-{index}");
            gpu
        };
        Hardware { gpus: (0..gpus).map(gpu).collect(), ..Hardware::default() }
    }

    fn planned(devices: &[Device], hardware: &Hardware) -> Vec<String> {
        let text = |worker: WorkerDevice| match worker.gpu {
            Some(gpu) => format!("{} of {}", worker.device, gpu.id),
            None => worker.device.to_string(),
        };
        plan(devices, hardware).into_iter().map(text).collect()
    }

    #[test]
    fn auto_is_one_worker_per_gpu_and_other_devices_limit() {
        let two = hardware(2);
        assert_eq!(planned(&[Device::Auto], &two), ["cuda:0 of GPU-0", "cuda:0 of GPU-1"]);
        assert_eq!(planned(&[Device::Cuda(1)], &two), ["cuda:0 of GPU-1"]);
        assert_eq!(planned(&[Device::Cpu, Device::Cuda(0)], &two), ["cpu", "cuda:0 of GPU-0"]);
        // The worker tells that there is no such GPU.
        assert_eq!(planned(&[Device::Cuda(7)], &two), ["cuda:7"]);
        assert_eq!(planned(&[Device::Auto], &hardware(0)), ["auto"]);
        assert_eq!(planned(&[Device::Cuda(0)], &hardware(0)), ["cuda:0"]);
    }

    #[test]
    fn gpus_that_a_file_switches_off_get_a_worker_only_by_name() {
        let mut two = hardware(2);
        two.gpus[0].in_use = false;
        assert_eq!(planned(&[Device::Auto], &two), ["cuda:0 of GPU-1"]);
        assert_eq!(planned(&[Device::Cuda(0)], &two), ["cuda:0 of GPU-0"]);
        two.gpus[1].in_use = false;
        assert_eq!(planned(&[Device::Auto], &two), ["cpu"]);
    }
}
