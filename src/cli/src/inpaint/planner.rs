//! Decides what is to be done for each picture: reads it, finds its mask, and compares both with the list of results.
//!
//! Does not: submit or write anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;

use lamagrid_client::{Input, new_task_id};
use lamagrid_domain::{
    BlobForm, Failure, FailureKind, ModelName, PictureFormat, PictureSize, Role, Scalar, TaskId,
};
use lamagrid_imaging::codec;

use super::error::InpaintError;
use super::manifest::{Manifest, Record, State};
use super::masks::{Mask, MaskSource};
use super::output_folder::{Existing, OutputFolder, hex, result_name};
use super::walk::FoundPicture;

/// The options that change results.
#[derive(Debug, Clone)]
pub(crate) struct ResultOptions {
    pub(crate) model: ModelName,
    pub(crate) params: BTreeMap<String, Scalar>,
    /// `None` is that of the picture.
    pub(crate) format: Option<PictureFormat>,
    pub(crate) quality: u8,
}

/// The decision about a picture.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Its result, with this name below OUT, is in its place.
    Skip(String),
    /// Its result is in its place, but the list does not say so.
    Note(Record),
    /// It is to be inpainted.
    Run(Box<Work>),
}

/// A picture to inpaint.
#[derive(Debug)]
pub(crate) struct Work {
    /// The first step to record.
    pub(crate) record: Record,
    pub(crate) inputs: Vec<Input>,
    pub(crate) size: PictureSize,
    pub(crate) format: PictureFormat,
    /// The colour profile of the picture, for the result.
    pub(crate) profile: Option<Vec<u8>>,
    pub(crate) task: TaskSource,
    /// Where its mask comes from, for people.
    pub(crate) mask: String,
}

/// Whether the grid may have the task already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskSource {
    New,
    /// From an earlier run.
    TakenUp,
    /// New; the task of an earlier run is no longer wanted.
    Replaces(TaskId),
}

/// Why nothing is done for a picture.
#[derive(Debug)]
pub(crate) enum Fault {
    /// This picture fails.
    Picture(Failure),
    /// The run ends.
    Run(InpaintError),
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self::Picture(failure)
    }
}

impl From<InpaintError> for Fault {
    fn from(error: InpaintError) -> Self {
        Self::Run(error)
    }
}

/// Everything that decides about pictures.
#[derive(Debug)]
pub(crate) struct Planner {
    pub(crate) masks: MaskSource,
    pub(crate) options: ResultOptions,
    pub(crate) output: OutputFolder,
    pub(crate) manifest: Manifest,
    pub(crate) max_pixels: u64,
}

/// A picture as read.
struct Loaded {
    bytes: Bytes,
    format: PictureFormat,
    size: PictureSize,
    mask: Mask,
    key: String,
}

/// Names in the list of results.
struct Names {
    input: String,
    output: String,
}

impl Planner {
    /// Reads a picture and decides. Blocks.
    ///
    /// # Errors
    /// [`Fault`].
    pub(crate) fn plan(&self, picture: &FoundPicture) -> Result<Plan, Fault> {
        let input = text_of(&picture.relative)?;
        let output = text_of(&result_name(&picture.relative, self.options.format))?;
        if !self.manifest.claim(&output) {
            return Err(invalid(format!(
                "another picture of this run has the result {output}; run both apart, with two folders for --out"
            ))
            .into());
        }
        let names = Names { input, output };
        let loaded = self.load(picture)?;
        let last = self.manifest.last(&names.output)?;
        if let Some(last) = last.as_ref().filter(|last| last.input != names.input && last.key != loaded.key)
            && self.output.existing == Existing::Keep
        {
            return Err(invalid(format!(
                "{} is the result of {}; name another folder by --out, or replace it by --overwrite",
                names.output, last.input
            ))
            .into());
        }
        self.decide(names, loaded, last)
    }

    fn decide(&self, names: Names, loaded: Loaded, last: Option<Record>) -> Result<Plan, Fault> {
        let path = self.output.path(&names.output);
        let is_there = path.symlink_metadata().is_ok();
        let same = last.as_ref().filter(|last| last.key == loaded.key);
        if same.is_some_and(|last| last.state == State::Done) && is_there {
            return Ok(Plan::Skip(names.output));
        }
        let unreadable = |error| invalid(format!("its result `{}` cannot be read: {error}", path.display()));
        let current = self.output.hash_of(&names.output).map_err(unreadable)?;
        if let Some(last) = same.filter(|last| last.state == State::Written && current.is_some())
            && last.result == current
        {
            return Ok(Plan::Note(Record { state: State::Done, ..last.clone() }));
        }
        let is_ours = last.as_ref().is_some_and(|last| last.result == current || last.replaces == current);
        if current.is_some() && !is_ours && self.output.existing == Existing::Keep {
            let text = match last {
                Some(_) => "was changed after it was written; keep your change under another name",
                None => "exists and is not of an earlier run; name another folder by --out",
            };
            return Err(invalid(format!("{} {text}, or replace it by --overwrite", names.output)).into());
        }
        let (id, task) = task_of(last.as_ref(), &loaded.key);
        let record = Record {
            input: names.input,
            output: names.output,
            key: loaded.key,
            task: id,
            state: State::Submitted,
            result: None,
            replaces: current,
            failure: None,
        };
        let mask = loaded.mask.shown();
        let profile = codec::rgb_profile(&loaded.bytes);
        let mask_bytes = match loaded.mask {
            Mask::File(file) => file.bytes,
            Mask::Colour(range) => range.mask_of(&loaded.bytes, self.max_pixels)?.into(),
        };
        let inputs = vec![file_of(Role::Image, loaded.bytes), file_of(Role::Mask, mask_bytes)];
        let work = Work { record, inputs, size: loaded.size, format: loaded.format, profile, task, mask };
        Ok(Plan::Run(Box::new(work)))
    }

    fn load(&self, picture: &FoundPicture) -> Result<Loaded, Failure> {
        let path = picture.path.display();
        let bytes = fs::read(&picture.path).map(Bytes::from);
        let bytes = bytes.map_err(|error| invalid(format!("`{path}` cannot be read: {error}")))?;
        let size = codec::upright_size(&bytes);
        let size = size.map_err(|error| invalid(format!("`{path}` cannot be inpainted: {error}")))?;
        let format = match self.options.format.or_else(|| codec::sniff(&bytes)) {
            Some(format) if codec::encodes(format) => format,
            _ => {
                let text = format!("results cannot be of the format of `{path}`; choose one by --format png");
                return Err(invalid(text));
            }
        };
        let mask = self.masks.of_picture(picture, size)?;
        let key = self.key(&bytes, &mask, format)?;
        Ok(Loaded { bytes, format, size, mask, key })
    }

    /// Hash of everything that changes the result.
    fn key(&self, picture: &[u8], mask: &Mask, format: PictureFormat) -> Result<String, Failure> {
        let mask = match mask {
            Mask::File(file) => hex(&file.hash[..]),
            Mask::Colour(range) => format!("{} {}", range.colour, range.tolerance),
        };
        let ResultOptions { model, params, quality, .. } = &self.options;
        let picture = hex(&lamagrid_protocol::hash(picture)[..]);
        let parts = serde_json::to_vec(&(picture, mask, model, params, format, quality));
        let parts = parts.map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
        Ok(hex(&lamagrid_protocol::hash(&parts)[..]))
    }
}

fn file_of(role: Role, bytes: Bytes) -> Input {
    Input { role, form: BlobForm::Encoded, content: bytes.into() }
}

/// The id of a picture's task: that of an earlier run which the grid may still have, else a new one.
fn task_of(last: Option<&Record>, key: &str) -> (TaskId, TaskSource) {
    match last {
        Some(last) if matches!(last.state, State::Submitted | State::Written) => {
            if last.key == key {
                (last.task, TaskSource::TakenUp)
            } else {
                (new_task_id(), TaskSource::Replaces(last.task))
            }
        }
        _ => (new_task_id(), TaskSource::New),
    }
}

fn text_of(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| invalid("its name is not UTF-8; rename it".to_owned()))
}

fn invalid(text: String) -> Failure {
    Failure::new(FailureKind::InvalidInput, text)
}
