//! TorchScript models of lama's signature: `m(image f32 1x3xHxW in 0..=1, mask i64 1x1xHxW of 0 and 1)` gives
//! f32 `1x3xHxW`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lamagrid_domain::{Failure, FailureKind, ModelName, ModelOffer, Params, Scalar, Stages};
use lamagrid_imaging::{
    Bgr, Gray, HdStrategy, Image, InpaintError, PadRule, Rgb, boxes_from_mask, inpaint, mask_to_i64,
    nchw_f32_to_bgr, rgb_to_nchw_f32,
};
use lamagrid_node::backend::{Answer, Backend, Progress, Work, inference_failure, stopped};
use lamagrid_node::settings::{ModelPlan, Source};
use lamagrid_node::weights::Weights;
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
        let passes = passes(&strategy, &work);
        let mut inferring = Duration::ZERO;
        let mut pass = 0;
        let mut forward = |image: &Image<Rgb>, mask: &Gray| {
            if progress.step(pass, passes).is_break() {
                return Err(stopped());
            }
            let began = Instant::now();
            let answer = tch::no_grad(|| run_module(module, image, mask, self.device));
            inferring += began.elapsed();
            pass += 1;
            answer
        };
        let image =
            inpaint(work.image, &work.mask, &strategy, &pad, &mut forward).map_err(inpaint_failure)?;
        if progress.step(passes, passes).is_break() {
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

/// How often the model will run: once, or once per blob of the mask.
fn passes(strategy: &HdStrategy, work: &Work<'_>) -> u32 {
    match *strategy {
        HdStrategy::Crop { trigger, .. } if work.image.height().max(work.image.width()) as i64 > trigger => {
            u32::try_from(boxes_from_mask(&work.mask).len()).unwrap_or(u32::MAX)
        }
        HdStrategy::Crop { .. } | HdStrategy::Resize { .. } | HdStrategy::Original => 1,
    }
}

fn run_module(
    module: &CModule,
    image: &Image<Rgb>,
    mask: &Gray,
    device: Device,
) -> Result<Image<Bgr>, Failure> {
    let (height, width) = image.shape();
    let answer =
        forward(module, image, mask, device).map_err(|error| inference_failure(&error.to_string()))?;
    let size = answer.size();
    // An image's sides are at most 2^24.
    if size != [1, 3, height as i64, width as i64] {
        let text = format!(
            "the model answered a tensor of shape {size:?} where [1, 3, {height}, {width}] is needed"
        );
        return Err(Failure::new(FailureKind::Inference, text));
    }
    let values = to_vec(&answer).map_err(|error| inference_failure(&error.to_string()))?;
    nchw_f32_to_bgr(&values, height, width)
        .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))
}

fn forward(module: &CModule, image: &Image<Rgb>, mask: &Gray, device: Device) -> Result<Tensor, TchError> {
    let (height, width) = (image.height() as i64, image.width() as i64);
    let tensor = |tensor: Tensor, channels| tensor.f_view([1, channels, height, width])?.f_to_device(device);
    let image = tensor(Tensor::f_from_slice(&rgb_to_nchw_f32(image))?, 3)?;
    let mask = tensor(Tensor::f_from_slice(&mask_to_i64(mask))?, 1)?;
    module.forward_ts(&[image, mask])
}

fn to_vec(answer: &Tensor) -> Result<Vec<f32>, TchError> {
    let flat = answer.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?.f_view([-1])?;
    Vec::try_from(&flat)
}

fn inpaint_failure(error: InpaintError<Failure>) -> Failure {
    match error {
        InpaintError::Forward(failure) => failure,
        InpaintError::MaskShape { .. }
        | InpaintError::EmptyResize { .. }
        | InpaintError::EmptyCrop { .. } => Failure::new(FailureKind::InvalidInput, error.to_string()),
        InpaintError::Image(_) => Failure::new(FailureKind::InvalidInput, error.to_string()),
        InpaintError::AnswerShape { .. } => Failure::new(FailureKind::Inference, error.to_string()),
    }
}
