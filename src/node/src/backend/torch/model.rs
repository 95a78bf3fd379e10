//! TorchScript models of lama's signature: `m(image f32 1x3xHxW in 0..=1, mask i64 1x1xHxW of 0 and 1)` gives
//! f32 `1x3xHxW`.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lamagrid_domain::{Failure, FailureKind, ModelName, ModelOffer, Params, Scalar, Stages};
use lamagrid_imaging::{HdStrategy, InpaintError, PadRule, Patch, inpaint};
use lamagrid_node::backend::{Answer, Backend, Progress, Work, inference_failure, stopped};
use lamagrid_node::settings::{ModelPlan, Source};
use lamagrid_node::weights::Weights;
use tch::kind::Element;
use tch::{CModule, Device, Kind, TchError, Tensor};

/// What upstream's page sends for lama: strategy, resize limit, crop trigger, crop margin.
const DEFAULT_STRATEGY: &str = "Crop";
const DEFAULT_RESIZE_LIMIT_PX: i64 = 2_048;
const DEFAULT_CROP_TRIGGER_PX: i64 = 800;
const DEFAULT_CROP_MARGIN_PX: i64 = 196;

/// The torch backend on one device.
pub(crate) struct Torch {
    plans: Vec<ModelPlan>,
    loaded: BTreeMap<ModelName, CModule>,
    device: Device,
}

impl Torch {
    pub(crate) fn new(plans: Vec<ModelPlan>, device: Device) -> Self {
        Self { plans, loaded: BTreeMap::new(), device }
    }

    fn plan(&self, model: &ModelName) -> Result<&ModelPlan, Failure> {
        let unknown =
            || Failure::new(FailureKind::UnknownModel, format!("this node does not serve the model {model}"));
        self.plans.iter().find(|plan| plan.name == *model).ok_or_else(unknown)
    }
}

impl Backend for Torch {
    fn models(&self) -> Vec<ModelOffer> {
        let offer = |plan: &ModelPlan| ModelOffer {
            model: plan.name.clone(),
            queue: plan.queue.clone(),
            loaded: self.loaded.contains_key(&plan.name),
        };
        self.plans.iter().map(offer).collect()
    }

    fn load(&mut self, model: &ModelName, progress: &dyn Progress) -> Result<Duration, Failure> {
        if self.loaded.contains_key(model) {
            return Ok(Duration::ZERO);
        }
        let began = Instant::now();
        let plan = self.plan(model)?;
        let path = locate(plan)?;
        // A download may have taken minutes.
        if progress.step(0, 0).is_break() {
            return Err(stopped());
        }
        let module = load_module(model, &path, self.device)?;
        let took = began.elapsed();
        tracing::info!(model = %model, path = %path.display(), device = ?self.device, load_ms = took.as_millis(), "model loaded");
        self.loaded.insert(model.clone(), module);
        Ok(took)
    }

    fn run(&mut self, work: Work<'_>, progress: &dyn Progress) -> Result<Answer, Failure> {
        let began = Instant::now();
        let pad = PadRule::multiple_of(self.plan(&work.spec.model)?.pad_modulo);
        let module = self.loaded.get(&work.spec.model).ok_or_else(|| {
            Failure::new(FailureKind::Internal, format!("the model {} was not loaded", work.spec.model))
        })?;
        let strategy = strategy(&work.spec.params)?;
        let mut inferring = Duration::ZERO;
        let mut passes = 0;
        let mut forward = |patch: &Patch<'_>| {
            let (pass, of) = patch.pass();
            passes = of;
            if progress.step(steps(pass), steps(of)).is_break() {
                return Err(stopped());
            }
            let inputs = Inputs::of(patch, self.device).map_err(|error| failure(&error))?;
            let began = Instant::now();
            let answer = tch::no_grad(|| inputs.run(module)).map_err(|error| failure(&error));
            inferring += began.elapsed();
            answer?.checked(patch.shape())
        };
        let image =
            inpaint(work.image, &work.mask, &strategy, &pad, &mut forward).map_err(inpaint_failure)?;
        if progress.step(steps(passes), steps(passes)).is_break() {
            return Err(stopped());
        }
        let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        let pixels = began.elapsed().saturating_sub(inferring);
        Ok(Answer {
            image,
            stages: Stages { infer_ms: ms(inferring), pixels_ms: ms(pixels), ..Stages::default() },
        })
    }
}

/// The file of a model, fetched if it is upstream's and missing.
fn locate(plan: &ModelPlan) -> Result<PathBuf, Failure> {
    match &plan.source {
        Source::File(path) if path.is_file() => Ok(path.clone()),
        Source::File(path) => {
            let text = format!(
                "model {0}: there is no file {1}. Put it there, or start the node with --model {0}=FILE",
                plan.name,
                path.display()
            );
            Err(Failure::new(FailureKind::ModelLoad, text))
        }
        Source::Lama => {
            let weights = Weights::lama(|name| std::env::var(name).ok());
            tracing::debug!(file = weights.describe(), "looking for lama's weights");
            weights.locate().map_err(|error| {
                Failure::new(FailureKind::ModelLoad, format!("model {}: {error}", plan.name))
            })
        }
    }
}

/// Reads the file onto `device`, for inference.
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
        let text = format!(
            "model {model}: {} is not a TorchScript file that libtorch can read: {}. Replace the file (lama is fetched again once its file is gone)",
            path.display(),
            failure.message.trim_end_matches('.')
        );
        Failure::new(FailureKind::ModelLoad, text)
    })
}

/// Upstream's fields, by upstream's names; what is absent is what upstream's page sends for lama.
fn strategy(params: &Params) -> Result<HdStrategy, Failure> {
    let number = |key: &str, default: i64| match params.get(key) {
        None | Some(Scalar::Null) => Ok(default),
        Some(Scalar::Int(value)) => Ok(*value),
        Some(Scalar::Bool(_) | Scalar::Float(_) | Scalar::Text(_)) => {
            Err(Failure::new(FailureKind::InvalidInput, format!("parameter {key} is not a whole number")))
        }
    };
    let name = params.text("hd_strategy").unwrap_or(DEFAULT_STRATEGY);
    Ok(HdStrategy::from_form(
        name,
        number("hd_strategy_resize_limit", DEFAULT_RESIZE_LIMIT_PX)?,
        number("hd_strategy_crop_trigger_size", DEFAULT_CROP_TRIGGER_PX)?,
        number("hd_strategy_crop_margin", DEFAULT_CROP_MARGIN_PX)?,
    ))
}

fn steps(passes: usize) -> u32 {
    u32::try_from(passes).unwrap_or(u32::MAX)
}

fn failure(error: &TchError) -> Failure {
    inference_failure(&error.to_string())
}

/// What lama's `forward` takes.
struct Inputs {
    /// float32 `(1, 3, H, W)`.
    image: Tensor,
    /// int64 `(1, 1, H, W)`.
    mask: Tensor,
}

impl Inputs {
    fn of(patch: &Patch<'_>, device: Device) -> Result<Self, TchError> {
        // A patch's sides are at most 2^24.
        let (height, width) = (patch.shape().0 as i64, patch.shape().1 as i64);
        let image = filled([1, 3, height, width], |write| patch.image_nchw_f32(write))?;
        let mask = filled([1, 1, height, width], |write| patch.mask_nchw_i64(write))?;
        Ok(Self { image: image.f_to_device(device)?, mask: mask.f_to_device(device)? })
    }

    fn run(self, module: &CModule) -> Result<Answered, TchError> {
        let answer = module.forward_ts(&[self.image, self.mask])?;
        let answer = answer.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
        answer.f_contiguous()?.f_resolve_neg().map(Answered)
    }
}

/// A new CPU tensor of `shape`: `fill` gets what writes rows to it, and writes all of them.
///
/// Filled where it lies, in memory of libtorch's own: a copy costs as much again, and memory of ours would have
/// to outlive a model that keeps its input.
fn filled<T: Element + Copy>(
    shape: [i64; 4],
    fill: impl FnOnce(&mut dyn FnMut(usize, &[T])),
) -> Result<Tensor, TchError> {
    let tensor = Tensor::f_empty(shape, (T::KIND, Device::Cpu))?;
    let first = tensor.data_ptr().cast::<MaybeUninit<T>>();
    // SAFETY: a tensor just made is contiguous and has `numel` elements of `T::KIND`, which is `T`; no one else
    // knows of it yet, it lives until the end of this function, and `MaybeUninit` claims nothing of its content.
    #[expect(unsafe_code, reason = "libtorch lends its memory as a pointer")]
    let values = unsafe { std::slice::from_raw_parts_mut(first, tensor.numel()) };
    fill(&mut |at, row| {
        values[at..at + row.len()].write_copy_of_slice(row);
    });
    Ok(tensor)
}

/// What a model gave: a float32 tensor on the CPU, contiguous, with no lazy sign.
struct Answered(Tensor);

impl Answered {
    /// The answer, if it has the shape of what the model was given.
    fn checked(self, (height, width): (usize, usize)) -> Result<Self, Failure> {
        let size = self.0.size();
        if size != [1, 3, height as i64, width as i64] {
            let text = format!(
                "the model answered a tensor of shape {size:?} where [1, 3, {height}, {width}] is needed"
            );
            return Err(Failure::new(FailureKind::Inference, text));
        }
        Ok(self)
    }
}

impl AsRef<[f32]> for Answered {
    fn as_ref(&self) -> &[f32] {
        let first = self.0.data_ptr().cast::<f32>();
        // SAFETY: the tensor is as this type says, so that `numel` values lie there in a row, and stays alive as
        // long as `self`. Nothing writes to it: models run one at a time, and none while an answer is read.
        #[expect(unsafe_code, reason = "libtorch lends its memory as a pointer")]
        let values = unsafe { std::slice::from_raw_parts(first, self.0.numel()) };
        values
    }
}

fn inpaint_failure(error: InpaintError<Failure>) -> Failure {
    match error {
        InpaintError::Forward(failure) => failure,
        InpaintError::MaskShape { .. }
        | InpaintError::EmptyResize { .. }
        | InpaintError::EmptyCrop { .. } => Failure::new(FailureKind::InvalidInput, error.to_string()),
        InpaintError::Image(_) => Failure::new(FailureKind::InvalidInput, error.to_string()),
        InpaintError::AnswerLength { .. } => Failure::new(FailureKind::Inference, error.to_string()),
    }
}
