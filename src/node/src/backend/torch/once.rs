//! Runs a model once on two files, for `lamagrid model check` and `lamagrid model verify --run`.
//!
//! Does not: connect to a scheduler. Prints one line of JSON to stdout; errors go to stderr.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;

use lamagrid_domain::{Failure, FailureKind, Params, PictureFormat};
use lamagrid_imaging::codec::{self, CodecError, Metadata};
use lamagrid_node::backend::{Answer, Backend, SilentProgress, Work};

use crate::model::Torch;

/// The files of one run.
pub(crate) struct Files<'a> {
    pub(crate) image: &'a Path,
    /// White in the hole, of the image's size.
    pub(crate) mask: &'a Path,
    /// Where the result is written, as PNG.
    pub(crate) out: &'a Path,
}

/// Loads the first model, runs it, writes the result and prints what it took. Returns the exit code.
pub(crate) fn run(
    backend: &mut Torch,
    device: &str,
    files: &Files<'_>,
    max_pixels: u64,
) -> anyhow::Result<u8> {
    match attempt(backend, device, files, max_pixels) {
        Ok(line) => {
            writeln!(std::io::stdout().lock(), "{line}")?;
            Ok(0)
        }
        Err(error) => match error.downcast_ref::<Failure>() {
            Some(failure) => {
                writeln!(std::io::stderr().lock(), "lamagrid-node: {failure}")?;
                Ok(failure.kind.exit_code())
            }
            None => Err(error),
        },
    }
}

fn attempt(backend: &mut Torch, device: &str, files: &Files<'_>, max_pixels: u64) -> anyhow::Result<String> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}: check the path", path.display()))
    };
    let unreadable = |path: &Path, error: CodecError| {
        Failure::new(FailureKind::InvalidInput, format!("{}: {error}", path.display()))
    };
    let image = codec::decode_upright(&read(files.image)?, max_pixels)
        .map_err(|error| unreadable(files.image, error))?
        .pixels;
    let mask = codec::decode_mask_upright(&read(files.mask)?, max_pixels)
        .map_err(|error| unreadable(files.mask, error))?;
    let (height, width) = image.shape();
    let model = backend.models().into_iter().next().context("no model is named")?.model;
    // Loaded first, because that downloads a missing file.
    let load = backend.load(&model, &SilentProgress)?;
    backend.verify(&model)?;
    let began = Instant::now();
    let work = Work { model: &model, params: &Params::default(), image, mask };
    let Answer { image, stages, memory } = backend.run(work, &SilentProgress)?;
    let run_ms = began.elapsed().as_millis();
    let file = codec::encode(&image, None, PictureFormat::Png, 95, &Metadata::default())?;
    std::fs::write(files.out, file).with_context(|| {
        format!("cannot write {}: check the path and its permissions", files.out.display())
    })?;
    let bytes = |value: Option<u64>| value.map_or_else(|| "null".to_owned(), |value| value.to_string());
    Ok(format!(
        "{{\"device\": {:?}, \"height\": {height}, \"width\": {width}, \"load_ms\": {}, \"run_ms\": {run_ms}, \"infer_ms\": {:.1}, \"model_bytes\": {}, \"peak_bytes\": {}, \"pixels\": {}}}",
        device,
        load.as_millis(),
        stages.infer_ms,
        bytes(memory.map(|memory| memory.model_bytes)),
        bytes(memory.map(|memory| memory.peak_bytes)),
        bytes(memory.map(|memory| memory.pixels)),
    ))
}
