//! `lamagrid-torch-worker`: runs TorchScript models through libtorch, on one device.
//!
//! Does not: restart itself, or explain how to install libtorch, without which it ends before its `main`. Its
//! supervisor, `lamagrid-node`, does both.

mod device;
mod model;
mod network;
mod once;

use std::process::ExitCode;

use clap::Parser;
use device::Chosen;
use model::Torch;

use lamagrid_domain::NodeKind;
use lamagrid_node::backend::Backend;
use lamagrid_node::devices;
use lamagrid_node::flags::Flags;
use lamagrid_node::settings::Settings;
use lamagrid_node::supervisor::{EXIT_CONFIG, EXIT_DEVICE};
use lamagrid_node::worker::{self, Backends};
use lamagrid_weights::Ledger;

fn main() -> ExitCode {
    let flags = Flags::parse();
    match run(&flags) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("lamagrid-torch-worker: {error:#}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

fn run(flags: &Flags) -> anyhow::Result<u8> {
    let mut settings = Settings::load(flags)?;
    let process = if flags.once.is_empty() { "worker" } else { "once" };
    let _logs = lamagrid_logs::init(&settings.log_name(process), &settings.config.log, &settings.log_dir)?;
    let found = devices::detect(flags)?;
    settings.leave_out(&found)?;
    let Chosen { device, gpu } = match device::choose(settings.devices.first().copied(), &found.hardware) {
        Ok(chosen) => chosen,
        Err(error) => {
            tracing::error!("{error}");
            return Ok(EXIT_DEVICE);
        }
    };
    let registration = worker::describe(&settings, NodeKind::Torch, &found, gpu);
    let budget = settings.memory_budget(registration.info.memory_bytes);
    let ledger = Ledger::new(settings.ledger()?);
    let mut backend = Torch::new(settings.models.clone(), device, budget, ledger);
    // The number of threads may change the rounding of sums, as in Python's torch. By default torch chooses the same
    // number in both: one per physical core, or OMP_NUM_THREADS.
    if settings.threads > 0 {
        backend.set_threads(settings.threads);
    }
    tracing::info!(threads = tch::get_num_threads(), "libtorch is loaded");
    tracing::info!(budget_mib = budget >> 20, "memory for models");
    if let [image, mask, out] = flags.once.as_slice() {
        let max_pixels = settings.config.limits.max_pixels;
        let files = once::Files { image, mask, out };
        return once::run(&mut backend, registration.info.device.as_str(), &files, max_pixels);
    }
    let backends = Backends { first: Box::new(backend), another: None };
    worker::run(&settings, registration, flags.lifeline.into(), backends)
}
