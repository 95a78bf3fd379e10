//! Detection and sampling against a stand-in for the NVIDIA driver's library, compiled from `tests/hardware/nvml.c`.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails with its test")]

use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lamagrid_domain::LiveFigures;
use lamagrid_hardware::{CudaEnvironment, Gpu, Hardware, Roots, Sampler};

const MIB: u64 = 1 << 20;

/// A driver whose GPUs a test writes down.
struct Driver {
    dir: tempfile::TempDir,
}

impl Driver {
    fn new(state: &str) -> Self {
        Self::compiled(&[], state)
    }

    fn compiled(flags: &[&str], state: &str) -> Self {
        let driver = Self { dir: tempfile::tempdir().unwrap() };
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/hardware/nvml.c");
        let compiled = Command::new("gcc")
            .args(["-O2", "-shared", "-fPIC", "-o"])
            .arg(driver.roots().nvml)
            .args(flags)
            .arg(source)
            .arg("-ldl")
            .status()
            .unwrap();
        assert!(compiled.success());
        driver.write(state);
        driver
    }

    fn write(&self, state: &str) {
        let new = self.dir.path().join("new");
        std::fs::write(&new, state).unwrap();
        // Replaced at once, because a sampler may read it now.
        std::fs::rename(new, self.dir.path().join("state")).unwrap();
    }

    fn roots(&self) -> Roots {
        Roots {
            nvml: self.dir.path().join("libnvidia-ml.so.1"),
            sys: self.dir.path().into(),
            ..Roots::default()
        }
    }

    fn detect(&self, visible: Option<&str>) -> Hardware {
        let cuda = CudaEnvironment { visible_devices: visible.map(str::to_owned), device_order: None };
        Hardware::detect(&self.roots(), &cuda)
    }
}

fn gpus(count: u64) -> String {
    let line =
        |n: u64| format!("gpu GPU-{n}a NVIDIA_H{n} {} {} {} 40 ok\n", 4_096 * (n + 1), 100 * n, 10 * n);
    (0..count).map(line).collect()
}

fn wait_for(sampler: &Sampler, wanted: impl Fn(&LiveFigures) -> bool) -> LiveFigures {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(figures) = sampler.figures(0).filter(&wanted) {
            return figures;
        }
        assert!(Instant::now() < deadline, "last figures: {:?}", sampler.figures(0));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn gpus_have_ids_names_memory_and_the_hosts_index() {
    let driver = Driver::new(&gpus(8));
    let found = driver.detect(None);
    assert!(found.remarks.is_empty(), "{:?}", found.remarks);
    assert_eq!(found.cuda_gpus().count(), 8);
    let last = &found.gpus[7];
    assert_eq!(
        (last.id.as_str(), last.device.as_str(), last.name.as_str()),
        ("GPU-7a", "cuda:7", "NVIDIA H7")
    );
    assert_eq!((last.memory_bytes, last.compute_capability.as_deref()), (32_768 * MIB, Some("9.0")));
    let shown: Vec<_> = driver.detect(Some("GPU-6,1")).gpus.into_iter().map(|gpu| gpu.device).collect();
    assert_eq!(shown, ["cuda:6", "cuda:1"]);
}

#[test]
fn instances_of_a_divided_gpu_are_devices_and_a_parent_without_any_is_a_remark() {
    let driver = Driver::new(
        "gpu GPU-a A100 40960 0 0 40 mig\n\
         instance MIG-1 A100_MIG_3g.20gb 20096 0\ninstance MIG-2 A100_MIG_2g.10gb 9984 0\n\
         gpu GPU-b A100 40960 0 0 40 mig\ngpu GPU-c A100 40960 0 0 40 ok\n",
    );
    let found = driver.detect(None);
    let seen: Vec<_> = found.gpus.iter().map(|gpu| (gpu.device.as_str(), gpu.memory_bytes / MIB)).collect();
    assert_eq!(seen, [("cuda:0:0", 20_096), ("cuda:0:1", 9_984), ("cuda:2", 40_960)]);
    assert_eq!(found.remarks.len(), 1);
    assert!(
        found.remarks[0].text.contains("GPU 1 (A100) is in MIG mode without an instance"),
        "{:?}",
        found.remarks
    );
}

#[test]
fn a_lost_gpu_hides_no_other() {
    let driver = Driver::new(
        &gpus(3).replace("GPU-1a NVIDIA_H1 8192 100 10 40 ok", "GPU-1a NVIDIA_H1 8192 100 10 40 lost"),
    );
    let found = driver.detect(None);
    let seen: Vec<_> = found.gpus.iter().map(|gpu| gpu.device.as_str()).collect();
    assert_eq!(seen, ["cuda:0", "cuda:2"]);
    assert!(
        found.remarks[0].text.contains("GPU 1 is left out: it has fallen off the bus"),
        "{:?}",
        found.remarks
    );
}

#[test]
fn broken_drivers_are_remarks_with_a_remedy() {
    for (flags, state, text) in [
        (vec![], "init 9\n", "kernel module is not loaded"),
        (vec![], "init 18\n", "different versions"),
        (vec![], "init 999\n", "cannot be used"),
        (vec![], "", "lists no GPU"),
        (vec!["-DWITHOUT_INIT"], "", "lacks a function"),
        (
            vec!["-DWITHOUT_MEMORY"],
            "gpu GPU-a A100 4096 0 0 40 ok\n",
            "GPU 0 (GPU-a) is left out: its library lacks a function",
        ),
    ] {
        let found = Driver::compiled(&flags, state).detect(None);
        assert!(found.gpus.is_empty() && found.cpu.cores >= 1);
        assert!(
            found.remarks.len() == 1 && found.remarks[0].text.contains(text),
            "{state}: {:?}",
            found.remarks
        );
    }
}

#[test]
fn figures_follow_the_gpu_until_it_is_lost() {
    let line = |used: u64, busy: u64, state: &str| format!("gpu GPU-a A100 81920 {used} {busy} 61 {state}\n");
    let driver = Driver::new(&line(1_000, 7, "ok"));
    let gpu: Gpu = driver.detect(None).gpus.remove(0);
    let (lost, reason) = mpsc::channel();
    let memory = gpu.memory_bytes;
    let sampler = Sampler::start(Some(gpu), memory, driver.roots(), move |reason| {
        lost.send(reason.to_owned()).unwrap();
    })
    .unwrap();
    let figures = wait_for(&sampler, |figures| figures.free_memory_bytes.is_some());
    assert_eq!(figures.free_memory_bytes, Some(80_920 * MIB));
    assert_eq!((figures.utilisation_percent, figures.temperature_c), (Some(7), Some(61)));
    driver.write(&line(51_200, 93, "ok"));
    let figures = wait_for(&sampler, |figures| figures.utilisation_percent == Some(93));
    assert_eq!(figures.free_memory_bytes, Some(30_720 * MIB));
    driver.write(&line(51_200, 93, "lost"));
    let reason = reason.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(reason.contains("fallen off the bus"), "{reason}");
}

#[test]
fn a_driver_that_hangs_delays_the_start_by_ten_seconds_and_no_thread_of_the_caller() {
    let driver = Driver::new("hang\n");
    let mut gpu = Gpu::undetected("cuda:0".into(), "A100".into(), MIB);
    gpu.id = "GPU-a".into();
    let sampler = Sampler::start(Some(gpu), MIB, driver.roots(), |_| {}).unwrap();
    let began = Instant::now();
    assert_eq!(sampler.figures(0), None);
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    let found = driver.detect(None);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(found.remarks[0].text.contains("no answer within 10 s"), "{:?}", found.remarks);
}
