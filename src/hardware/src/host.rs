//! Reads processor, main memory and load from procfs, under the limits of control groups and affinity.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cgroup::Groups;

/// Processor and main memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// Number of cores that this process may keep busy.
    pub cores: u32,
    /// Memory that this process may use, in bytes; 0 if unknown.
    pub memory_bytes: u64,
    /// The instruction sets that matter to models, such as `avx2`.
    pub features: Vec<&'static str>,
}

impl Cpu {
    /// Detects cores and memory below these roots, and the features of the processor that runs this.
    pub(crate) fn detect(proc: &Path, sys: &Path) -> Self {
        let groups = Groups::find(proc, sys);
        let status = read(proc, "self/status");
        let allowed = field(&status, "Cpus_allowed_list:").and_then(list_length).filter(|n| *n > 0);
        let affinity = allowed.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1))
        });
        let total = kib(&read(proc, "meminfo"), "MemTotal:").unwrap_or(0);
        let limit = groups.memory_limit().unwrap_or(u64::MAX);
        Self {
            cores: groups.cores().unwrap_or(u32::MAX).min(affinity),
            memory_bytes: if total == 0 { groups.memory_limit().unwrap_or(0) } else { total.min(limit) },
            features: features(),
        }
    }
}

/// Reads the figures of the host that change. Reading takes no lock and waits for no driver.
#[derive(Debug)]
pub(crate) struct HostFigures {
    proc: PathBuf,
    groups: Groups,
    cores: u32,
}

impl HostFigures {
    pub(crate) fn new(proc: &Path, sys: &Path) -> Self {
        let cores = Cpu::detect(proc, sys).cores.max(1);
        Self { proc: proc.to_owned(), groups: Groups::find(proc, sys), cores }
    }

    /// Main memory in bytes that this process could still use.
    pub(crate) fn memory_free(&self) -> Option<u64> {
        let available = kib(&read(&self.proc, "meminfo"), "MemAvailable:")?;
        Some(self.groups.memory_free().map_or(available, |free| free.min(available)))
    }

    /// Resident memory of this process in bytes.
    pub(crate) fn resident(&self) -> Option<u64> {
        kib(&read(&self.proc, "self/status"), "VmRSS:")
    }

    /// The load average of the last minute, in percent of the cores that this process may use.
    pub(crate) fn load_percent(&self) -> Option<u32> {
        let text = read(&self.proc, "loadavg");
        let load: f64 = text.split_whitespace().next()?.parse().ok()?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
        let percent = (load / f64::from(self.cores) * 100.0).round() as u32;
        Some(percent)
    }
}

fn read(proc: &Path, file: &str) -> String {
    std::fs::read_to_string(proc.join(file)).unwrap_or_default()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// A field in KiB, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let number: u64 = field(text, name)?.trim_end_matches("kB").trim().parse().ok()?;
    number.checked_mul(1_024)
}

/// The number of processors in a list such as `0-3,8`.
fn list_length(list: &str) -> Option<u32> {
    list.split(',').try_fold(0_u32, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    let mut found = Vec::new();
    macro_rules! look {
        ($($feature:tt),*) => { $(if std::arch::is_x86_feature_detected!($feature) { found.push($feature); })* };
    }
    look!("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512vnni", "avx512bf16");
    found
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    let mut found = Vec::new();
    macro_rules! look {
        ($($feature:tt),*) => { $(if std::arch::is_aarch64_feature_detected!($feature) { found.push($feature); })* };
    }
    look!("neon", "fp16", "bf16", "i8mm", "sve");
    found
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    const MEMINFO: &str = "MemTotal:       24689764 kB\nMemFree: 1 kB\nMemAvailable:   20000000 kB\n";
    const STATUS: &str = "Name:\tx\nVmRSS:\t   2048 kB\nCpus_allowed_list:\t0-3,8\n";

    #[test]
    fn cores_and_memory_are_those_of_the_affinity_without_limits() {
        let dir = host(&[("meminfo", MEMINFO), ("self/status", STATUS), ("loadavg", "2.50 1 1 1/9 7\n")]);
        let cpu = Cpu::detect(dir.path(), dir.path());
        assert_eq!((cpu.cores, cpu.memory_bytes), (5, 24_689_764 * 1_024));
        let figures = HostFigures::new(dir.path(), dir.path());
        assert_eq!(figures.memory_free(), Some(20_000_000 * 1_024));
        assert_eq!(figures.resident(), Some(2_048 * 1_024));
        assert_eq!(figures.load_percent(), Some(50));
    }

    #[test]
    fn cores_and_memory_are_those_of_the_group_where_they_are_fewer() {
        let dir = host(&[
            ("meminfo", MEMINFO),
            ("self/status", STATUS),
            ("self/cgroup", "0::/\n"),
            ("self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
            ("fs/cgroup/memory.max", "1073741824\n"),
            ("fs/cgroup/memory.current", "73741824\n"),
            ("fs/cgroup/cpu.max", "200000 100000\n"),
        ]);
        let cpu = Cpu::detect(dir.path(), dir.path());
        assert_eq!((cpu.cores, cpu.memory_bytes), (2, 1 << 30));
        assert_eq!(HostFigures::new(dir.path(), dir.path()).memory_free(), Some(1_000_000_000));
    }

    #[test]
    fn nothing_readable_is_one_core_or_more_and_unknown_memory() {
        let dir = host(&[("meminfo", "MemTotal: lots\n"), ("self/status", "Cpus_allowed_list:\t3-1\n")]);
        let cpu = Cpu::detect(dir.path(), dir.path());
        assert!(cpu.cores >= 1 && cpu.memory_bytes == 0, "{cpu:?}");
        let figures = HostFigures::new(dir.path(), dir.path());
        assert_eq!((figures.memory_free(), figures.resident(), figures.load_percent()), (None, None, None));
    }

    #[test]
    fn this_host_is_detected() {
        let cpu = Cpu::detect(Path::new("/proc"), Path::new("/sys"));
        assert!(cpu.cores >= 1 && cpu.memory_bytes > 0, "{cpu:?}");
    }
}
