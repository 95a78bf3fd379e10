//! Asks the library of the NVIDIA driver (NVML) for GPUs and their figures.
//!
//! Every call may hang if the driver does; so detection has a time limit, and sampling a thread of its own.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use crate::gpu::{DeviceFigures, Gpu, Vendor};
use crate::visible::{CudaEnvironment, Found, HostGpu, select};
use crate::{Remark, Roots};

/// Limit on a whole detection. The driver of a host with eight idle GPUs may take seconds to wake them.
const DETECTION_LIMIT: Duration = Duration::from_secs(10);

/// The visible GPUs of the host.
pub(crate) fn detect(roots: &Roots, cuda: &CudaEnvironment) -> Found {
    let (found, answer) = mpsc::sync_channel(1);
    let theirs = roots.clone();
    let started = std::thread::Builder::new().name("nvml".into()).spawn(move || {
        // The receiver is gone if the answer comes too late.
        let _ = found.send(list(&theirs));
    });
    let listed = match started {
        Ok(_) => answer.recv_timeout(DETECTION_LIMIT),
        Err(_) => Err(mpsc::RecvTimeoutError::Disconnected),
    };
    let Ok(Listed { host, mut remarks }) = listed else {
        let text = format!(
            "the NVIDIA driver gave no answer within {} s; models run on the processor. `nvidia-smi` hangs too if the \
             driver does: restart the host then",
            DETECTION_LIMIT.as_secs()
        );
        return Found { gpus: Vec::new(), remarks: vec![Remark::warning(text)] };
    };
    let Found { gpus, remarks: more } = select(&host, cuda);
    remarks.extend(more);
    Found { gpus, remarks }
}

fn open(library: &Path) -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(library.as_os_str()).init()
}

/// All GPUs of the host, with the remarks about them.
#[derive(Default)]
struct Listed {
    host: Vec<HostGpu>,
    remarks: Vec<Remark>,
}

impl From<Remark> for Listed {
    fn from(remark: Remark) -> Self {
        Self { host: Vec::new(), remarks: vec![remark] }
    }
}

fn list(roots: &Roots) -> Listed {
    let nvml = match open(&roots.nvml) {
        Ok(nvml) => nvml,
        Err(error) => return unopened(&error, roots).into(),
    };
    let count = match nvml.device_count() {
        Ok(count) => count,
        Err(error) => {
            let text = format!("the NVIDIA driver cannot list its GPUs: {}", explained(&error));
            return Remark::warning(text).into();
        }
    };
    let Listed { mut host, mut remarks } = Listed::default();
    if count == 0 {
        remarks.push(Remark::note("the NVIDIA driver lists no GPU; models run on the processor"));
    }
    for index in 0..count {
        let mut gpu = HostGpu { index, id: String::new(), devices: Vec::new() };
        if let Err(error) = inspect(&nvml, &mut gpu, &mut remarks) {
            gpu.devices.clear();
            let which = if gpu.id.is_empty() { String::new() } else { format!(" ({})", gpu.id) };
            remarks.push(Remark::warning(format!("GPU {index}{which} is left out: {}", explained(&error))));
        }
        host.push(gpu);
    }
    Listed { host, remarks }
}

/// Fills in a GPU's UUID and devices.
fn inspect(nvml: &Nvml, gpu: &mut HostGpu, remarks: &mut Vec<Remark>) -> Result<(), NvmlError> {
    let index = gpu.index;
    let whole = nvml.device_by_index(index)?;
    gpu.id = whole.uuid()?;
    // GPUs that cannot be divided answer "not supported".
    if !whole.mig_mode().is_ok_and(|mode| mode.current == 1) {
        gpu.devices.push(describe(&whole, format!("cuda:{index}"), None)?);
        return Ok(());
    }
    let capability = capability(&whole);
    for instance in 0..whole.mig_device_count()? {
        match whole.mig_device_by_index(instance) {
            Ok(device) => {
                gpu.devices.push(describe(&device, format!("cuda:{index}:{instance}"), capability.clone())?);
            }
            Err(NvmlError::NotFound | NvmlError::InvalidArg) => {}
            Err(error) => return Err(error),
        }
    }
    if gpu.devices.is_empty() {
        remarks.push(Remark::warning(format!(
            "GPU {index} ({}) is in MIG mode without an instance, so that no program can use it: create instances \
             (nvidia-smi mig -i {index} -cgi PROFILE -C) or switch MIG off (nvidia-smi -i {index} -mig 0)",
            whole.name().unwrap_or_else(|_| gpu.id.clone())
        )));
    }
    Ok(())
}

fn describe(device: &Device<'_>, label: String, parents: Option<String>) -> Result<Gpu, NvmlError> {
    let memory = device.memory_info()?;
    Ok(Gpu {
        id: device.uuid()?,
        device: label,
        name: device.name()?,
        // The driver keeps the reserved part for itself.
        memory_bytes: memory.total.saturating_sub(memory.reserved),
        compute_capability: parents.or_else(|| capability(device)),
        vendor: Vendor::Nvidia,
        in_use: true,
        sysfs: None,
    })
}

fn capability(device: &Device<'_>) -> Option<String> {
    let found = device.cuda_compute_capability().ok()?;
    Some(format!("{}.{}", found.major, found.minor))
}

/// Why there is no usable library.
fn unopened(error: &NvmlError, roots: &Roots) -> Remark {
    let library = roots.nvml.display();
    let on_bus = std::fs::read_dir(roots.proc.join("driver/nvidia/gpus")).map_or(0, Iterator::count);
    match error {
        NvmlError::LibloadingError(reason) if reason.to_string().contains("No such file") => {
            if on_bus == 0 {
                return Remark::note(format!(
                    "no NVIDIA driver ({library} is not installed); models run on the processor"
                ));
            }
            Remark::warning(format!(
                "the kernel's NVIDIA driver lists {on_bus} GPUs, but its library {library} is missing: install it, or give \
                 the container access to the GPUs"
            ))
        }
        NvmlError::LibloadingError(reason) => {
            Remark::warning(format!("{library} cannot be loaded ({reason}): reinstall the NVIDIA driver"))
        }
        error => Remark::warning(format!("the NVIDIA driver cannot be used: {}", explained(error))),
    }
}

/// The reason with the remedy.
fn explained(error: &NvmlError) -> String {
    match error {
        NvmlError::GpuLost => {
            "it has fallen off the bus (GPU is lost); reset it (nvidia-smi -r) or restart the host, then restart the node"
                .into()
        }
        NvmlError::ResetRequired => "it needs a reset (nvidia-smi -r), then restart the node".into(),
        NvmlError::FailedToLoadSymbol(symbol) => {
            format!("its library lacks a function ({symbol}); update or reinstall the driver")
        }
        NvmlError::DriverNotLoaded => {
            "its kernel module is not loaded; load it (modprobe nvidia) or restart the host".into()
        }
        NvmlError::LibRmVersionMismatch => {
            "its library and its kernel module are of different versions, as after an update; restart the host".into()
        }
        NvmlError::NoPermission => {
            "this user may not use it; check the permissions of /dev/nvidia* and of the container".into()
        }
        other => format!("{other}; `nvidia-smi` says more"),
    }
}

/// The figures of one GPU, read again and again on the thread that owns this.
pub(crate) struct Watched<'nvml> {
    device: Device<'nvml>,
}

/// Why a GPU gives no figures.
pub(crate) enum Trouble {
    /// It has fallen off the bus. It does not come back by itself.
    Lost(String),
    /// Another reason, perhaps for now.
    Unreadable(String),
}

impl From<NvmlError> for Trouble {
    fn from(error: NvmlError) -> Self {
        match error {
            NvmlError::GpuLost | NvmlError::ResetRequired => Self::Lost(explained(&error)),
            other => Self::Unreadable(explained(&other)),
        }
    }
}

/// Opens the library and calls `work` with the GPU of this UUID.
pub(crate) fn with_gpu(library: &Path, id: &str, work: impl FnOnce(Watched<'_>)) -> Result<(), Trouble> {
    let nvml = open(library)?;
    work(Watched { device: nvml.device_by_uuid(id)? });
    Ok(())
}

impl Watched<'_> {
    pub(crate) fn sample(&self) -> Result<DeviceFigures, Trouble> {
        let memory = self.device.memory_info()?;
        // MIG instances have no utilisation, and some GPUs no sensor.
        let utilisation = self.device.utilization_rates().ok().and_then(|rates| u8::try_from(rates.gpu).ok());
        let temperature = self.device.temperature(TemperatureSensor::Gpu).ok();
        Ok(DeviceFigures {
            free_memory_bytes: Some(memory.free),
            utilisation_percent: utilisation,
            temperature_c: temperature.and_then(|degrees| i16::try_from(degrees).ok()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_the_library_gets_a_note_and_one_with_gpus_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let roots =
            Roots { proc: dir.path().into(), sys: dir.path().into(), nvml: dir.path().join("absent.so") };
        let found = detect(&roots, &CudaEnvironment::default());
        assert!(found.gpus.is_empty());
        assert_eq!(found.remarks[0].severity, crate::Severity::Note);
        assert!(found.remarks[0].text.contains("no NVIDIA driver"), "{:?}", found.remarks);
        std::fs::create_dir_all(dir.path().join("driver/nvidia/gpus/0000:01:00.0")).unwrap();
        let found = detect(&roots, &CudaEnvironment::default());
        assert_eq!(found.remarks[0].severity, crate::Severity::Warning);
        assert!(found.remarks[0].text.contains("lists 1 GPUs"), "{:?}", found.remarks);
    }

    #[test]
    fn a_file_that_is_no_library_is_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let nvml = dir.path().join("libnvidia-ml.so.1");
        std::fs::write(&nvml, b"not a library").unwrap();
        let roots = Roots { proc: dir.path().into(), sys: dir.path().into(), nvml };
        let found = detect(&roots, &CudaEnvironment::default());
        assert!(found.remarks[0].text.contains("cannot be loaded"), "{:?}", found.remarks);
    }
}
