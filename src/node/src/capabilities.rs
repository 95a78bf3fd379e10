//! `lamagrid-node capabilities`: shows the offer of this node, or writes it as a file for people to edit.

use std::io::Write;

use anyhow::Context;

use lamagrid_hardware::{Capabilities, Gpu, Severity};

use crate::devices;
use crate::flags::{CapabilitiesFlags, Flags, OutputForm};

const GIB: f64 = (1_u64 << 30) as f64;

/// Runs the command.
///
/// # Errors
/// If the capability file is wrong, or the output cannot be written.
pub fn show(flags: &Flags, options: &CapabilitiesFlags) -> anyhow::Result<()> {
    let found = devices::detect(flags)?;
    if let Some(path) = &options.write {
        found.write(path)?;
    }
    let text = match options.output {
        OutputForm::Json => format!("{}\n", serde_json::to_string_pretty(&found)?),
        OutputForm::Table => table(&found),
    };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

fn table(found: &Capabilities) -> String {
    let cpu = &found.hardware.cpu;
    let mut rows = vec![format!(
        "processor  {} cores, {}; {}",
        cpu.cores,
        memory(cpu.memory_bytes),
        cpu.features.join(" ")
    )];
    rows.extend(found.hardware.gpus.iter().map(gpu_row));
    if let Some(pretend) = &found.pretend {
        rows.push(format!("reported   {}, {}, for tests", pretend.device, memory(pretend.memory_bytes)));
    }
    if !found.labels.is_empty() {
        rows.push(format!("labels     {}", found.labels.join(" ")));
    }
    if !found.leave_out.is_empty() {
        let names: Vec<_> = found.leave_out.iter().map(|model| model.as_str()).collect();
        rows.push(format!("left out   {}", names.join(" ")));
    }
    for remark in &found.hardware.remarks {
        let kind = match remark.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
        };
        rows.push(format!("{kind:<10} {}", remark.text));
    }
    rows.join("\n") + "\n"
}

fn gpu_row(gpu: &Gpu) -> String {
    let capability = gpu.compute_capability.as_ref();
    let capability = capability.map_or_else(String::new, |version| format!(", compute capability {version}"));
    let unused = if gpu.in_use { "" } else { ", not used" };
    format!("{:<10} {}, {}{capability}, {}{unused}", gpu.device, gpu.name, memory(gpu.memory_bytes), gpu.id)
}

fn memory(bytes: u64) -> String {
    if bytes == 0 { "unknown memory".to_owned() } else { format!("{:.1} GiB", bytes as f64 / GIB) }
}
