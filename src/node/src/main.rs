//! `lamagrid-node`: supervises one worker process per device. Does not link libtorch.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use lamagrid_config::{Device, libtorch};
use lamagrid_domain::{FailureKind, NodeKind};
use lamagrid_hardware::Capabilities;
use lamagrid_node::backend::Echo;
use lamagrid_node::capabilities;
use lamagrid_node::devices::{self, VISIBLE_DEVICES, WorkerDevice};
use lamagrid_node::flags::{BackendChoice, Flags, NodeCommand};
use lamagrid_node::settings::Settings;
use lamagrid_node::supervisor::{EXIT_CONFIG, EXIT_DEVICE, Plan, Plans, Supervisor};
use lamagrid_node::worker::{self, Backends};

fn main() -> ExitCode {
    let flags = Flags::parse();
    match run(&flags) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("lamagrid-node: {error:#}");
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

fn run(flags: &Flags) -> anyhow::Result<u8> {
    if let Some(NodeCommand::Capabilities(options)) = &flags.command {
        capabilities::show(flags, options)?;
        return Ok(0);
    }
    // A worker installs its signal handlers later, once it has a session to close.
    let supervisor = (!flags.worker_echo).then(|| Supervisor::new(flags.lifeline.into())).transpose()?;
    let mut settings = Settings::load(flags)?;
    if !flags.once.is_empty() {
        let found = devices::detect(flags)?;
        return once(&plans(flags, &settings, &found)?);
    }
    let process = settings.log_name(if flags.worker_echo { "worker" } else { "node" });
    let _logs = lamagrid_logs::init(&process, &settings.config.log, &settings.log_dir)?;
    let found = devices::detect(flags)?;
    settings.leave_out(&found)?;
    let Some(supervisor) = supervisor else { return echo(flags, &settings, &found) };
    for remark in &settings.remarks {
        tracing::warn!("configuration: {remark}");
    }
    found.hardware.log_remarks();
    let plans = plans(flags, &settings, &found)?;
    let (cpu, gpus) = (&found.hardware.cpu, &found.hardware.gpus);
    let gpus: Vec<_> = gpus.iter().map(|gpu| format!("{} {}", gpu.device, gpu.name)).collect();
    tracing::info!(
        node.id = %settings.name, workers = plans.workers.len(), cores = cpu.cores,
        memory_mib = cpu.memory_bytes >> 20, gpus = gpus.join(", "),
        sockets = %settings.endpoints.dir().display(), "node is starting"
    );
    Ok(supervisor.run(plans))
}

fn echo(flags: &Flags, settings: &Settings, found: &Capabilities) -> anyhow::Result<u8> {
    let mut gpus = found.hardware.cuda_gpus();
    let gpu = match settings.devices.first() {
        Some(Device::Cuda(index)) => match gpus.nth((*index).into()) {
            Some(gpu) => Some(gpu.clone()),
            None => {
                tracing::error!(device = %Device::Cuda(*index), "the driver lists no such GPU, or it is lost");
                return Ok(EXIT_DEVICE);
            }
        },
        Some(Device::Auto) => gpus.next().cloned(),
        Some(Device::Cpu) | None => None,
    };
    let registration = worker::describe(settings, NodeKind::Echo, found, gpu);
    let backend = Echo::new(registration.info.models.clone());
    // Each slot gets a thread, because an echo task only sleeps.
    let first = Box::new(backend.clone());
    let backends = Backends { first, another: Some(Box::new(move || Box::new(backend.clone()))) };
    worker::run(settings, registration, flags.lifeline.into(), backends)
}

/// Runs the first worker in the foreground until it ends, or one on the processor if its device cannot be used; returns the
/// exit code.
fn once(plans: &Plans) -> anyhow::Result<u8> {
    let first = plans.workers.first().context("there is no device")?;
    match (run_once(first)?, &plans.fallback) {
        (EXIT_DEVICE, Some(fallback)) => run_once(fallback),
        (EXIT_DEVICE, None) => Ok(EXIT_CONFIG),
        (code, _) => Ok(code),
    }
}

fn run_once(plan: &Plan) -> anyhow::Result<u8> {
    let mut command = std::process::Command::new(&plan.program);
    command.args(&plan.args).envs(plan.env.iter().map(|(name, value)| (name, value)));
    let status = command.status().with_context(|| format!("cannot start {}", plan.program.display()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FailureKind::Internal.exit_code()))
}

fn plans(flags: &Flags, settings: &Settings, found: &Capabilities) -> anyhow::Result<Plans> {
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let own_dir = own.parent().context("this program lies nowhere")?.to_owned();
    let mut env = Vec::new();
    let (program, libtorch) = match flags.backend {
        BackendChoice::Echo => {
            if !flags.once.is_empty() {
                anyhow::bail!("--once runs a model, and the echo backend has none: leave --backend echo out");
            }
            (own, None)
        }
        BackendChoice::Torch => {
            settings.check_files()?;
            let found = libtorch::find(&own_dir, |name| std::env::var(name).ok())?;
            let version = found.version.as_deref().unwrap_or("of unknown version");
            tracing::info!(dir = %found.dir.display(), version, "libtorch found");
            let mut path = found.dir.clone().into_os_string();
            if let Some(before) = std::env::var_os("LD_LIBRARY_PATH").filter(|before| !before.is_empty()) {
                path.push(":");
                path.push(before);
            }
            env.push(("LD_LIBRARY_PATH".to_owned(), path));
            (own_dir.join("lamagrid-torch-worker"), Some(found.dir))
        }
    };
    let plan = |name: String, worker: &WorkerDevice| {
        let mut args = flags.for_worker(&name, &worker.device.to_string());
        if flags.backend == BackendChoice::Echo {
            args.push("--worker-echo".into());
        }
        let (program, mut env, libtorch) = (program.clone(), env.clone(), libtorch.clone());
        if let Some(gpu) = &worker.gpu {
            env.push((VISIBLE_DEVICES.to_owned(), gpu.id.clone().into()));
        }
        let cancel_restarts_per_minute = settings.config.node.cancel_restarts_per_minute;
        Plan { name, program, args, env, cancel_restarts_per_minute, libtorch }
    };
    let devices = devices::plan(&settings.devices, &found.hardware);
    let name = |index: usize| match devices.len() {
        1 => settings.name.to_string(),
        _ => format!("{}-{index}", settings.name),
    };
    let workers = devices.iter().enumerate().map(|(index, worker)| plan(name(index), worker)).collect();
    let may_fall_back = settings.devices.contains(&Device::Auto);
    let fallback = may_fall_back.then(|| plan(settings.name.to_string(), &WorkerDevice::CPU));
    Ok(Plans { workers, fallback })
}
