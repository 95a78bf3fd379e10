//! Samples the live figures of a device and its host once per second, on a thread of its own.
//!
//! A driver that hangs blocks only that thread: the last figures stay, grow old, and are then left out.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use lamagrid_domain::LiveFigures;

use crate::gpu::{DeviceFigures, Gpu, Vendor};
use crate::host::HostFigures;
use crate::nvidia::Trouble;
use crate::{Roots, amd, nvidia};

/// Interval of the samples.
const EVERY: Duration = Duration::from_secs(1);
/// Figures that are older are left out: the driver hangs.
const TOO_OLD: Duration = Duration::from_secs(10);

/// The figures of one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sample {
    device: DeviceFigures,
    resident_bytes: Option<u64>,
    load_percent: Option<u32>,
}

/// The last sample.
#[derive(Debug)]
struct Latest {
    sample: Sample,
    at: Instant,
    /// True if its age was logged.
    is_reported: bool,
}

/// A thread that samples. Dropping it lets the thread end, without waiting for it.
#[derive(Debug)]
pub struct Sampler {
    latest: Arc<Mutex<Option<Latest>>>,
    /// The memory that the device offers; a capability file may cap it. 0 if unknown.
    memory_bytes: u64,
    /// Closed when dropped, which ends the thread.
    _stop: mpsc::Sender<()>,
}

impl Sampler {
    /// Starts sampling `gpu`, or the processor's memory without one. `memory_bytes` is the memory that the node offers.
    ///
    /// `on_lost` is called once, on the sampler's thread, if the GPU falls off the bus; its argument is the reason with the
    /// remedy.
    ///
    /// # Errors
    /// If the host cannot start a thread.
    pub fn start(
        gpu: Option<Gpu>,
        memory_bytes: u64,
        roots: Roots,
        on_lost: impl FnOnce(&str) + Send + 'static,
    ) -> std::io::Result<Self> {
        let latest = Arc::new(Mutex::new(None));
        let (stop, stopped) = mpsc::channel();
        let theirs = Arc::clone(&latest);
        std::thread::Builder::new().name("figures".into()).spawn(move || {
            let host = HostFigures::new(&roots.proc, &roots.sys);
            let thread = Thread { host, latest: theirs, stopped };
            thread.run(gpu.as_ref(), &roots, on_lost);
        })?;
        Ok(Self { latest, memory_bytes, _stop: stop })
    }

    /// The last figures; `None` before the first sample. While the driver has not answered for ten seconds, only the memory of
    /// the models is known, which the caller gives.
    #[must_use]
    pub fn figures(&self, model_memory_bytes: u64) -> Option<LiveFigures> {
        let mut latest = self.latest.lock();
        let latest = latest.as_mut()?;
        let age = latest.at.elapsed();
        let sample = if age <= TOO_OLD {
            latest.sample
        } else {
            if !std::mem::replace(&mut latest.is_reported, true) {
                let age_s = age.as_secs();
                tracing::warn!(
                    age_s,
                    "the driver gives no figures of the device; it may hang (see `nvidia-smi`)"
                );
            }
            Sample::default()
        };
        let offered = match self.memory_bytes {
            0 => u64::MAX,
            bytes => bytes.saturating_sub(model_memory_bytes),
        };
        Some(LiveFigures {
            free_memory_bytes: sample.device.free_memory_bytes.map(|free| free.min(offered)),
            model_memory_bytes,
            resident_bytes: sample.resident_bytes.unwrap_or(0),
            utilisation_percent: sample.device.utilisation_percent,
            temperature_c: sample.device.temperature_c,
            load_percent: sample.load_percent.unwrap_or(0),
        })
    }
}

/// The state of the sampler's thread.
struct Thread {
    host: HostFigures,
    latest: Arc<Mutex<Option<Latest>>>,
    stopped: mpsc::Receiver<()>,
}

impl Thread {
    fn run(self, gpu: Option<&Gpu>, roots: &Roots, on_lost: impl FnOnce(&str)) {
        let Some(gpu) = gpu else {
            self.repeat(|| self.host.memory_free());
            return;
        };
        match (gpu.vendor, &gpu.sysfs) {
            (Vendor::Amd, Some(dir)) => self.repeat_device(|| Some(amd::sample(dir))),
            (Vendor::Nvidia, _) if !gpu.id.is_empty() => self.watch_nvidia(gpu, roots, on_lost),
            _ => self.repeat_device(|| Some(DeviceFigures::default())),
        }
    }

    fn watch_nvidia(&self, gpu: &Gpu, roots: &Roots, on_lost: impl FnOnce(&str)) {
        let mut lost = None;
        let opened = nvidia::with_gpu(&roots.nvml, &gpu.id, |watched| {
            let mut was_readable = true;
            self.repeat_device(|| match watched.sample() {
                Ok(figures) => {
                    was_readable = true;
                    Some(figures)
                }
                Err(Trouble::Lost(reason)) => {
                    lost = Some(reason);
                    None
                }
                Err(Trouble::Unreadable(reason)) => {
                    if was_readable {
                        tracing::warn!(device = gpu.device, reason, "the GPU gives no figures");
                    }
                    was_readable = false;
                    Some(DeviceFigures::default())
                }
            });
        });
        match opened {
            Ok(()) => {}
            Err(Trouble::Lost(reason)) => lost = Some(reason),
            Err(Trouble::Unreadable(reason)) => {
                tracing::warn!(device = gpu.device, reason, "the GPU gives no figures");
                self.repeat_device(|| Some(DeviceFigures::default()));
            }
        }
        if let Some(reason) = lost {
            on_lost(&reason);
        }
    }

    /// Records the host's figures with these of the processor's memory until the sampler is dropped.
    fn repeat(&self, mut memory_free: impl FnMut() -> Option<u64>) {
        self.repeat_device(|| Some(DeviceFigures { free_memory_bytes: memory_free(), ..Default::default() }));
    }

    /// Records the host's figures with the device's until the sampler is dropped or the device gives `None`.
    fn repeat_device(&self, mut device: impl FnMut() -> Option<DeviceFigures>) {
        loop {
            let Some(figures) = device() else { return };
            let sample = Sample {
                device: figures,
                resident_bytes: self.host.resident(),
                load_percent: self.host.load_percent(),
            };
            *self.latest.lock() = Some(Latest { sample, at: Instant::now(), is_reported: false });
            if self.stopped.recv_timeout(EVERY) != Err(mpsc::RecvTimeoutError::Timeout) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(sampler: &Sampler, model_memory_bytes: u64) -> LiveFigures {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(figures) = sampler.figures(model_memory_bytes) {
                return figures;
            }
            assert!(Instant::now() < deadline, "no sample");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_processor_has_memory_resident_size_and_load() {
        let sampler = Sampler::start(None, 0, Roots::default(), |_| {}).unwrap();
        let figures = first(&sampler, 7);
        assert!(figures.free_memory_bytes.is_some_and(|bytes| bytes > 0), "{figures:?}");
        assert!(figures.resident_bytes > 100_000 && figures.model_memory_bytes == 7, "{figures:?}");
        assert!(figures.utilisation_percent.is_none(), "{figures:?}");
    }

    #[test]
    fn free_memory_is_at_most_the_offered_memory_less_the_models() {
        let sampler = Sampler::start(None, 1_000, Roots::default(), |_| {}).unwrap();
        assert_eq!(first(&sampler, 300).free_memory_bytes, Some(700));
        assert_eq!(first(&sampler, 3_000).free_memory_bytes, Some(0));
    }

    #[test]
    fn a_gpu_without_a_library_has_the_hosts_figures_only() {
        let dir = tempfile::tempdir().unwrap();
        let gpu = Gpu { id: "GPU-x".into(), ..Gpu::undetected("cuda:0".into(), "X".into(), 1) };
        let roots = Roots { nvml: dir.path().join("absent"), ..Roots::default() };
        let sampler = Sampler::start(Some(gpu), 1, roots, |_| {}).unwrap();
        let figures = first(&sampler, 0);
        assert!(figures.free_memory_bytes.is_none() && figures.resident_bytes > 0, "{figures:?}");
    }

    #[test]
    fn figures_of_a_driver_that_hangs_are_left_out() {
        let (stop, _stopped) = mpsc::channel();
        let device = DeviceFigures { free_memory_bytes: Some(1), ..DeviceFigures::default() };
        let sample = Sample { device, ..Sample::default() };
        let latest = Latest { sample, at: Instant::now(), is_reported: false };
        let sampler = Sampler { latest: Arc::new(Mutex::new(Some(latest))), memory_bytes: 0, _stop: stop };
        assert_eq!(sampler.figures(0).unwrap().free_memory_bytes, Some(1));
        let long_ago = Instant::now().checked_sub(TOO_OLD + EVERY).unwrap();
        *sampler.latest.lock() = Some(Latest { sample, at: long_ago, is_reported: false });
        let old = sampler.figures(5).unwrap();
        assert_eq!((old.free_memory_bytes, old.model_memory_bytes), (None, 5));
    }

    #[test]
    fn a_sample_is_cheap() {
        let host = HostFigures::new("/proc".as_ref(), "/sys".as_ref());
        let began = Instant::now();
        for _ in 0..100 {
            let _ = (host.memory_free(), host.resident(), host.load_percent());
        }
        let each = began.elapsed() / 100;
        eprintln!("one sample of the host: {each:?}");
        // Typically 0.1 ms; the limit leaves room for a host under load.
        assert!(each < Duration::from_millis(20), "{each:?}");
    }
}
