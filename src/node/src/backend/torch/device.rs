//! Selects the device for the models and checks it before the first kernel runs.
//!
//! It asks the driver's library, because tch reports neither names nor compute capabilities.

use std::ffi::{CStr, c_char, c_int};

use lamagrid_config::Device as Wish;
use lamagrid_hardware::Hardware;

/// torch 2.11.0 for CUDA 13 has kernels for this compute capability and above.
const LEAST_CAPABILITY: (c_int, c_int) = (7, 5);

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error(
        "{device} was asked for but cannot be used: {reason}. Use --device cpu, or install the NVIDIA driver and a torch==2.11.0 with CUDA"
    )]
    Absent { device: String, reason: String },
    #[error(
        "{device} is {name} with compute capability {}.{}, but torch 2.11.0 needs {}.{} or above. Use --device cpu or another GPU",
        found.0, found.1, LEAST_CAPABILITY.0, LEAST_CAPABILITY.1
    )]
    TooOld { device: String, name: String, found: (c_int, c_int) },
}

/// A device for torch.
pub(crate) struct Chosen {
    pub(crate) device: tch::Device,
    /// The GPU; `None` for the processor.
    pub(crate) gpu: Option<lamagrid_hardware::Gpu>,
}

/// Selects the device for `wish`. `auto` falls back to the processor and logs the reason.
pub(crate) fn choose(wish: Option<Wish>, hardware: &Hardware) -> Result<Chosen, DeviceError> {
    let cpu = || Chosen { device: tch::Device::Cpu, gpu: None };
    match wish.unwrap_or(Wish::Auto) {
        Wish::Cpu => Ok(cpu()),
        wish @ Wish::Cuda(index) => cuda(wish, index, hardware),
        Wish::Auto => match cuda(Wish::Cuda(0), 0, hardware) {
            Ok(chosen) => Ok(chosen),
            Err(error @ DeviceError::TooOld { .. }) => {
                tracing::warn!(%error, "the GPU is too old; models run on the processor");
                Ok(cpu())
            }
            Err(DeviceError::Absent { reason, .. }) => {
                tracing::info!(reason, "no usable GPU; models run on the processor");
                Ok(cpu())
            }
        },
    }
}

fn cuda(wish: Wish, index: u16, hardware: &Hardware) -> Result<Chosen, DeviceError> {
    // The driver's library knows the host's index and, unlike CUDA, gives live figures.
    let detected = hardware.cuda_gpus().nth(index.into()).cloned();
    let device = detected.as_ref().map_or_else(|| wish.to_string(), |gpu| gpu.device.clone());
    let absent = |reason: String| DeviceError::Absent { device: device.clone(), reason };
    let gpu = driver::inspect(index).map_err(absent)?;
    if gpu.capability < LEAST_CAPABILITY {
        return Err(DeviceError::TooOld { device, name: gpu.name, found: gpu.capability });
    }
    load_libtorch_cuda().map_err(absent)?;
    if !tch::Cuda::is_available() || tch::Cuda::device_count() <= i64::from(index) {
        return Err(absent(format!("libtorch sees {} CUDA devices", tch::Cuda::device_count())));
    }
    let undetected = || lamagrid_hardware::Gpu::undetected(device, gpu.name, gpu.memory_bytes);
    Ok(Chosen {
        device: tch::Device::Cuda(usize::from(index)),
        gpu: Some(detected.unwrap_or_else(undetected)),
    })
}

/// Loads libtorch's CUDA library, which registers itself. The linker drops it because the program uses none of its
/// symbols; without it CUDA appears to be absent.
fn load_libtorch_cuda() -> Result<(), String> {
    library::open(c"libtorch_cuda.so").map(|_| ())
}

#[expect(unsafe_code, reason = "dlopen and the driver's C functions")]
mod library {
    use std::ffi::{CStr, c_void};

    /// A library that stays loaded for the life of the process.
    #[derive(Clone, Copy)]
    pub(super) struct Library(*mut c_void);

    pub(super) fn open(name: &CStr) -> Result<Library, String> {
        // SAFETY: `name` ends with a zero; the initialisers of these libraries depend on no state of this program.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if handle.is_null() { Err(last_error()) } else { Ok(Library(handle)) }
    }

    fn last_error() -> String {
        // SAFETY: dlerror gives null or a text that lives until the next call on this thread.
        let text = unsafe { libc::dlerror() };
        if text.is_null() {
            return "the loader gives no reason".into();
        }
        // SAFETY: as above, not null.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    impl Library {
        /// The address of `name`.
        pub(super) fn symbol(self, name: &CStr) -> Result<*mut c_void, String> {
            // SAFETY: the handle came from dlopen and is never closed.
            let address = unsafe { libc::dlsym(self.0, name.as_ptr()) };
            if address.is_null() { Err(last_error()) } else { Ok(address) }
        }
    }
}

/// The driver's data about one GPU.
struct Gpu {
    name: String,
    memory_bytes: u64,
    capability: (c_int, c_int),
}

#[expect(unsafe_code, reason = "the driver's C functions")]
mod driver {
    use super::{CStr, Gpu, c_char, c_int, library};

    const CAPABILITY_MAJOR: c_int = 75;
    const CAPABILITY_MINOR: c_int = 76;

    /// Calls a driver function, which returns 0 on success.
    macro_rules! call {
        ($library:expr, $name:literal, ($($type:ty),*), ($($argument:expr),*)) => {{
            let address = $library.symbol($name)?;
            // SAFETY: the signature is the one of the driver's documentation.
            let function: unsafe extern "C" fn($($type),*) -> c_int = unsafe { std::mem::transmute(address) };
            // SAFETY: every pointer is to a live local of the size that the function writes.
            let status = unsafe { function($($argument),*) };
            if status != 0 {
                return Err(format!("{} of the NVIDIA driver fails with {status}", $name.to_string_lossy()));
            }
        }};
    }

    /// Queries the GPU with CUDA's index `index`, which respects `CUDA_VISIBLE_DEVICES`.
    pub(super) fn inspect(index: u16) -> Result<Gpu, String> {
        let cuda = library::open(c"libcuda.so.1").map_err(|reason| format!("no NVIDIA driver ({reason})"))?;
        call!(cuda, c"cuInit", (u32), (0));
        let mut count: c_int = 0;
        call!(cuda, c"cuDeviceGetCount", (*mut c_int), (&raw mut count));
        if c_int::from(index) >= count {
            return Err(format!("the NVIDIA driver shows {count} GPUs"));
        }
        let mut device: c_int = 0;
        call!(cuda, c"cuDeviceGet", (*mut c_int, c_int), (&raw mut device, c_int::from(index)));
        let mut name = [0 as c_char; 256];
        call!(cuda, c"cuDeviceGetName", (*mut c_char, c_int, c_int), (name.as_mut_ptr(), 255, device));
        let mut memory: usize = 0;
        call!(cuda, c"cuDeviceTotalMem_v2", (*mut usize, c_int), (&raw mut memory, device));
        let mut capability = (0, 0);
        for (attribute, value) in
            [(CAPABILITY_MAJOR, &raw mut capability.0), (CAPABILITY_MINOR, &raw mut capability.1)]
        {
            call!(cuda, c"cuDeviceGetAttribute", (*mut c_int, c_int, c_int), (value, attribute, device));
        }
        // SAFETY: the array is longer than the requested size and was filled with zeros.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        Ok(Gpu { name, memory_bytes: memory as u64, capability })
    }
}
