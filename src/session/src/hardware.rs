//! Detects the hardware of this host without a driver library.
//!
//! Does not: choose the device for models; the worker asks CUDA itself.

use std::path::Path;

/// Processor, memory and GPUs of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hardware {
    /// Number of cores that this process may use.
    pub cores: u32,
    /// Size of the main memory in bytes; 0 if unknown.
    pub memory_bytes: u64,
    /// Names of the NVIDIA GPUs that the kernel driver lists; empty without the driver.
    pub gpus: Vec<String>,
}

impl Hardware {
    /// Reads the hardware of this host.
    #[must_use]
    pub fn detect() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            cores,
            memory_bytes: total_memory(&meminfo),
            gpus: nvidia_gpus(Path::new("/proc/driver/nvidia/gpus")),
        }
    }
}

/// The value of `MemTotal`, in bytes; 0 if it is missing.
fn total_memory(meminfo: &str) -> u64 {
    let kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1_024)
}

/// The names of the GPUs, in the order of their bus addresses.
fn nvidia_gpus(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path().join("information")).collect();
    files.sort();
    let name = |text: &str| {
        text.lines().find_map(|line| line.strip_prefix("Model:")).map(|model| model.trim().to_owned())
    };
    files.iter().filter_map(|file| name(&std::fs::read_to_string(file).ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_gpus_are_read_from_the_kernel() {
        assert_eq!(total_memory("MemTotal:       24689764 kB\nMemFree: 1 kB\n"), 24_689_764 * 1_024);
        assert_eq!(total_memory(""), 0);
        let dir = tempfile::tempdir().unwrap();
        for (bus, model) in [("0000:02:00.0", "NVIDIA A10"), ("0000:01:00.0", "Tesla T4")] {
            let gpu = dir.path().join(bus);
            std::fs::create_dir(&gpu).unwrap();
            std::fs::write(gpu.join("information"), format!("Model: \t\t {model}\nIRQ: 5\n")).unwrap();
        }
        assert_eq!(nvidia_gpus(dir.path()), ["Tesla T4", "NVIDIA A10"]);
        assert!(nvidia_gpus(Path::new("/nonexistent")).is_empty());
        assert!(Hardware::detect().cores >= 1);
    }
}
