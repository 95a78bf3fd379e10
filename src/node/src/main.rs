//! `lamagrid-node`: supervises one worker process per device. Does not link libtorch.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use lamagrid_config::libtorch;
use lamagrid_domain::{FailureKind, NodeKind};
use lamagrid_node::backend::{Backend, Echo};
use lamagrid_node::flags::{BackendChoice, Flags};
use lamagrid_node::settings::Settings;
use lamagrid_node::supervisor::{EXIT_CONFIG, Plan, Supervisor};
use lamagrid_node::worker::{self, DeviceInfo};
use lamagrid_session::hardware::Hardware;

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
    // A worker installs its signal handlers later, once it has a session to close.
    let supervisor = (!flags.worker_echo).then(|| Supervisor::new(flags.lifeline.into())).transpose()?;
    let settings = Settings::load(flags)?;
    if !flags.once.is_empty() {
        return once(&plans(flags, &settings)?);
    }
    let process = settings.log_name(if flags.worker_echo { "worker" } else { "node" });
    let _logs = lamagrid_logs::init(&process, &settings.config.log, &settings.log_dir)?;
    let Some(supervisor) = supervisor else { return echo(flags, &settings) };
    for remark in &settings.remarks {
        tracing::warn!("configuration: {remark}");
    }
    let plans = plans(flags, &settings)?;
    let Hardware { cores, memory_bytes, gpus } = Hardware::detect();
    let (memory_mib, gpus) = (memory_bytes >> 20, gpus.join(", "));
    tracing::info!(
        node.id = %settings.name, workers = plans.len(), cores, memory_mib, gpus,
        sockets = %settings.endpoints.dir().display(), "node is starting"
    );
    Ok(supervisor.run(plans))
}

fn echo(flags: &Flags, settings: &Settings) -> anyhow::Result<u8> {
    let info = worker::describe(settings, NodeKind::Echo, DeviceInfo::cpu());
    let backend = Echo::new(info.models.clone());
    // Each slot gets a thread, because an echo task only sleeps.
    let backends: Vec<Box<dyn Backend + Send>> =
        (0..settings.slots).map(|_| Box::new(backend.clone()) as Box<dyn Backend + Send>).collect();
    worker::run(settings, info, flags.lifeline.into(), backends)
}

/// Runs the first worker in the foreground until it ends; returns its exit code.
fn once(plans: &[Plan]) -> anyhow::Result<u8> {
    let plan = plans.first().context("there is no device")?;
    let mut command = std::process::Command::new(&plan.program);
    command.args(&plan.args).envs(plan.env.iter().map(|(name, value)| (name, value)));
    let status = command.status().with_context(|| format!("cannot start {}", plan.program.display()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FailureKind::Internal.exit_code()))
}

fn plans(flags: &Flags, settings: &Settings) -> anyhow::Result<Vec<Plan>> {
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
    let several = settings.devices.len() > 1;
    let plan = |(index, device): (usize, &lamagrid_config::Device)| {
        let name = if several { format!("{}-{index}", settings.name) } else { settings.name.to_string() };
        let mut args = flags.for_worker(&name, &device.to_string());
        if flags.backend == BackendChoice::Echo {
            args.push("--worker-echo".into());
        }
        let (program, env, libtorch) = (program.clone(), env.clone(), libtorch.clone());
        let cancel_restarts_per_minute = settings.config.node.cancel_restarts_per_minute;
        Plan { name, program, args, env, cancel_restarts_per_minute, libtorch }
    };
    Ok(settings.devices.iter().enumerate().map(plan).collect())
}
