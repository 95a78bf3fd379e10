//! The networks that libtorch runs: loads their files, and converts their inputs and outputs.
//!
//! Does not: cut, pad or blend. It takes a padded patch and returns the network's output to the pixel pipeline.

use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tch::kind::Element;
use tch::{CModule, Device, Kind, TchError, Tensor};

use lamagrid_config::{Argument, Colour, MaskRange, MaskType, Part};
use lamagrid_domain::{Failure, FailureKind, ModelName};
use lamagrid_imaging::{MaskTones, Patch, Tones};
use lamagrid_node::backend::{Progress, inference_failure, stopped};
use lamagrid_node::settings::{ModelPlan, Source};
use lamagrid_node::signature::Signature;
use lamagrid_weights::{Ledger, Weights, WeightsError};

/// The seed that upstream passes to torch before each pass of manga.
const MANGA_SEED: i64 = 42;

/// A model in memory.
pub(crate) enum Network {
    /// `m(arguments of the signature)` returns `1x3xHxW`; lama's arguments are the image, f32 `1x3xHxW` in 0..=1, and the mask,
    /// i64 `1x1xHxW` of 0 and 1.
    Script { module: CModule, signature: Signature },
    /// `lines(grey f32 1x1xHxW in 0..=255)` returns the same type and range. `inpaintor(grey, lines, mask, noise, ones)`,
    /// all of that shape and the first two in -1..=1, returns grey in -1..=1.
    ///
    /// Source: Lama Cleaner `model/manga.py`, 1.2.5; parity: `tests/models`.
    Manga { lines: CModule, inpaintor: CModule },
}

impl Network {
    /// Loads the files of a plan, in its order, onto `device`.
    pub(crate) fn load(
        plan: &ModelPlan,
        files: &[PathBuf],
        device: Device,
        progress: &dyn Progress,
    ) -> Result<Self, Failure> {
        let model = &plan.name;
        let mut modules = files.iter().map(|path| {
            if progress.loading(0, 0).is_break() {
                return Err(stopped());
            }
            load_module(model, path, device)
        });
        let missing = || Failure::new(FailureKind::Internal, format!("model {model}: it has too few files"));
        let mut next = || modules.next().unwrap_or_else(|| Err(missing()));
        Ok(match plan.source {
            Source::File { .. } | Source::Lama => {
                Self::Script { module: next()?, signature: plan.signature.clone() }
            }
            Source::Manga => Self::Manga { inpaintor: next()?, lines: next()? },
        })
    }

    /// The range and the colours of its output.
    pub(crate) fn tones(&self) -> Tones {
        match self {
            Self::Script { signature, .. } => signature.tones,
            Self::Manga { .. } => Tones::SignedGray,
        }
    }

    /// Runs one forward pass.
    pub(crate) fn forward(&self, patch: &Patch<'_>, device: Device) -> Result<Answered, Failure> {
        let failure = |error: TchError| inference_failure(&error.to_string());
        // A patch's sides are at most 2^24.
        let (height, width) = (patch.shape().0 as i64, patch.shape().1 as i64);
        let run = || match self {
            Self::Script { module, signature } => {
                let tensor = |argument| input(argument, signature, patch)?.f_to_device(device);
                let inputs = signature.inputs.iter().map(tensor).collect::<Result<Vec<_>, _>>()?;
                let began = Instant::now();
                let answer = module.forward_ts(&inputs)?;
                match signature.colour {
                    Colour::Rgb => Answered::new(&answer, began),
                    Colour::Bgr => Answered::new(&answer.f_flip([1])?, began),
                }
            }
            Self::Manga { lines, inpaintor } => {
                let size = [1, 1, height, width];
                let grey = filled(size, |write| patch.gray_nchw_f32(write))?.f_to_device(device)?;
                let ones = MaskTones { keep: 0_i64, hole: 1 };
                let mask = filled(size, |write| patch.mask_nchw(ones, write))?.f_to_device(device)?;
                let began = Instant::now();
                Answered::new(&manga(lines, inpaintor, &grey, &mask)?, began)
            }
        };
        let wanted = [1, self.tones().channels() as i64, height, width];
        tch::no_grad(run).map_err(failure)?.checked(wanted)
    }
}

/// Runs upstream's steps in the same order: the generator is seeded first, because the networks may also draw from it.
fn manga(lines: &CModule, inpaintor: &CModule, grey: &Tensor, mask: &Tensor) -> Result<Tensor, TchError> {
    tch::manual_seed(MANGA_SEED);
    let signed = |tones: &Tensor| tones.f_div_scalar(255)?.f_mul_scalar(2)?.f_sub_scalar(1);
    let lines = lines.forward_ts(&[grey])?.f_clamp(0, 255)?;
    let mask = mask.f_to_kind(Kind::Float)?;
    let (noise, ones) = (mask.f_randn_like()?, mask.f_ones_like()?);
    inpaintor.forward_ts(&[signed(grey)?, signed(&lines)?, mask, noise, ones])
}

/// Creates one argument of a network on the CPU.
fn input(argument: &Argument, signature: &Signature, patch: &Patch<'_>) -> Result<Tensor, TchError> {
    // A patch's sides are at most 2^24.
    let (height, width) = (patch.shape().0 as i64, patch.shape().1 as i64);
    let Signature { image_range, mask_range: MaskRange { keep, hole }, .. } = *signature;
    if argument.0 == [Part::Mask] {
        let size = [1, 1, height, width];
        return match signature.mask_type {
            MaskType::Float => filled(size, |write| patch.mask_nchw(MaskTones { keep, hole }, write)),
            MaskType::Int64 => {
                let tones = MaskTones { keep: keep as i64, hole: hole as i64 };
                filled(size, |write| patch.mask_nchw(tones, write))
            }
            MaskType::Bool => {
                let tones = MaskTones { keep: keep != 0.0, hole: hole != 0.0 };
                filled(size, |write| patch.mask_nchw(tones, write))
            }
        };
    }
    let order = match signature.colour {
        Colour::Rgb => [0, 1, 2],
        Colour::Bgr => [2, 1, 0],
    };
    let channels = |part: &Part| if *part == Part::Mask { 1 } else { 3 };
    let size = [1, argument.0.iter().map(channels).sum(), height, width];
    filled(size, |write| {
        let mut first = 0;
        for part in &argument.0 {
            let mut write = |at: usize, row: &[f32]| write(first + at, row);
            match part {
                Part::Image => patch.image_nchw_f32(image_range, order, write),
                Part::Erased => patch.erased_nchw_f32(image_range, order, write),
                Part::Mask => patch.mask_nchw(MaskTones { keep, hole }, &mut write),
            }
            first += (channels(part) * height * width) as usize; // within the tensor
        }
    })
}

/// Finds a model's file, and downloads it if it is missing. A file that passed its check before is not read again.
pub(crate) fn locate(
    model: &ModelName,
    weights: &Weights,
    ledger: &Ledger,
    progress: &dyn Progress,
) -> Result<PathBuf, Failure> {
    if !weights.can_be_had() && weights.url_variable().is_none() {
        let text = format!(
            "model {model}: there is no file {}. Put it there, or start the node with --model {model}=FILE",
            weights.describe()
        );
        return Err(Failure::new(FailureKind::ModelLoad, text));
    }
    tracing::debug!(%model, file = weights.describe(), "looking for weights");
    let check = weights.sum_check();
    let passed = weights.path().zip(check.as_ref()).filter(|(path, check)| ledger.has_passed(path, check));
    if let Some((path, _)) = passed {
        return Ok(path);
    }
    let was_present = weights.is_present();
    let located = weights.locate(|done, len| match len.filter(|len| *len > 0) {
        Some(len) => progress.loading((done.min(len) * 100 / len) as u32, 100), // at most 100
        None => progress.loading(0, 0),
    });
    let path = located.map_err(|error| load_failure(model, &error))?;
    // An existing file of upstream's is not compared with its sum.
    if let Some(check) = check.filter(|_| !was_present || weights.requires_sum()) {
        record(ledger, &path, &check);
    }
    Ok(path)
}

/// Converts an error about a model's file to a failure.
pub(crate) fn load_failure(model: &ModelName, error: &WeightsError) -> Failure {
    Failure::new(FailureKind::ModelLoad, format!("model {model}: {error}"))
}

/// Records that a file passed a check; without a record it is checked again later.
pub(crate) fn record(ledger: &Ledger, path: &Path, check: &str) {
    if let Err(error) = ledger.record(path, check) {
        tracing::debug!(path = %path.display(), %error, "the check of a file is not recorded");
    }
}

/// Loads the file onto `device` for inference.
fn load_module(model: &ModelName, path: &Path, device: Device) -> Result<CModule, Failure> {
    let read = || {
        let mut module = CModule::load_on_device(path, device)?;
        module.f_set_eval()?;
        Ok(module)
    };
    read().map_err(|error: TchError| {
        let failure = inference_failure(&error.to_string());
        if failure.kind == FailureKind::OutOfMemory {
            return failure;
        }
        // Keep the first sentence; libtorch appends guesses.
        let reason = failure.message.split(". ").next().unwrap_or_default().trim_end_matches('.');
        let text = format!(
            "model {model}: {} is not a TorchScript file that libtorch can read: {reason}. Replace the file; for upstream's, `lamagrid model verify {model}` says whether it is whole, and `lamagrid model pull {model}` fetches it anew",
            path.display()
        );
        Failure::new(FailureKind::ModelLoad, text)
    })
}

/// Creates a CPU tensor of `shape`, which `fill` writes completely.
///
/// The tensor is filled in place, in libtorch's memory: a copy would double the cost, and borrowed memory would have to
/// outlive a model that keeps its input.
fn filled<T: Element + Copy>(
    shape: [i64; 4],
    fill: impl FnOnce(&mut dyn FnMut(usize, &[T])),
) -> Result<Tensor, TchError> {
    let tensor = Tensor::f_empty(shape, (T::KIND, Device::Cpu))?;
    let first = tensor.data_ptr().cast::<MaybeUninit<T>>();
    // SAFETY: a new tensor is contiguous and has `numel` elements of `T::KIND`, which is `T`; nothing else refers to
    // it, it lives until the end of this function, and `MaybeUninit` does not require initialised content.
    #[expect(unsafe_code, reason = "libtorch lends its memory as a pointer")]
    let values = unsafe { std::slice::from_raw_parts_mut(first, tensor.numel()) };
    fill(&mut |at, row| {
        values[at..at + row.len()].write_copy_of_slice(row);
    });
    Ok(tensor)
}

/// The output of a model: a contiguous float32 tensor on the CPU, without a lazy negation.
pub(crate) struct Answered {
    values: Tensor,
    /// Time from the inputs on the device to the output on the CPU.
    pub(crate) took: Duration,
}

impl Answered {
    /// Copies the output to the CPU.
    fn new(answer: &Tensor, began: Instant) -> Result<Self, TchError> {
        let answer = answer.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
        let values = answer.f_contiguous()?.f_resolve_neg()?;
        Ok(Self { values, took: began.elapsed() })
    }

    /// The output, if it has the shape `wanted`.
    fn checked(self, wanted: [i64; 4]) -> Result<Self, Failure> {
        let size = self.values.size();
        if size != wanted {
            let text = format!("the model answered a tensor of shape {size:?} where {wanted:?} is needed");
            return Err(Failure::new(FailureKind::Inference, text));
        }
        Ok(self)
    }
}

impl AsRef<[f32]> for Answered {
    fn as_ref(&self) -> &[f32] {
        let first = self.values.data_ptr().cast::<f32>();
        // SAFETY: this type guarantees `numel` contiguous values, and the tensor lives as long as `self`. Nothing writes
        // to it: models run one at a time, and never while an output is read.
        #[expect(unsafe_code, reason = "libtorch lends its memory as a pointer")]
        let values = unsafe { std::slice::from_raw_parts(first, self.values.numel()) };
        values
    }
}
