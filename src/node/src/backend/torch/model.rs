//! The torch backend: TorchScript models around upstream's pixel pipeline.
//!
//! Does not: know the inputs and outputs of a network; `network` does.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tch::Device;

use lamagrid_domain::{Failure, FailureKind, ModelName, ModelOffer, Params, Scalar, Stages};
use lamagrid_imaging::{HdStrategy, InpaintError, Model, Patch, inpaint, inpaint_fixed};
use lamagrid_node::backend::{Answer, Backend, Progress, Work, stopped};
use lamagrid_node::settings::ModelPlan;
use lamagrid_node::signature::{Signature, Sizes};

use crate::network::Network;

/// Upstream's default strategy for lama; then its resize limit, crop trigger and crop margin.
const DEFAULT_STRATEGY: &str = "Crop";
const DEFAULT_RESIZE_LIMIT_PX: i64 = 2_048;
const DEFAULT_CROP_TRIGGER_PX: i64 = 800;
const DEFAULT_CROP_MARGIN_PX: i64 = 196;

/// The torch backend on one device.
pub(crate) struct Torch {
    plans: Vec<ModelPlan>,
    loaded: BTreeMap<ModelName, Network>,
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
            present: plan.is_present(),
            routed: false,
            memory_bytes: 0,
            pinned: false,
        };
        self.plans.iter().map(offer).collect()
    }

    fn files(&self, model: &ModelName) -> Vec<PathBuf> {
        self.plan(model).map_or_else(|_| Vec::new(), ModelPlan::files)
    }

    fn load(&mut self, model: &ModelName, progress: &dyn Progress) -> Result<Duration, Failure> {
        if self.loaded.contains_key(model) {
            return Ok(Duration::ZERO);
        }
        let began = Instant::now();
        let plan = self.plan(model)?;
        let network = Network::load(plan, self.device, progress)?;
        let took = began.elapsed();
        tracing::info!(model = %model, device = ?self.device, load_ms = took.as_millis(), "model loaded");
        self.loaded.insert(model.clone(), network);
        Ok(took)
    }

    fn run(&mut self, work: Work<'_>, progress: &dyn Progress) -> Result<Answer, Failure> {
        let began = Instant::now();
        let &Signature { sizes, paste, .. } = &self.plan(&work.spec.model)?.signature;
        let network = self.loaded.get(&work.spec.model).ok_or_else(|| {
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
            let answer = network.forward(patch, self.device)?;
            inferring += answer.took;
            Ok(answer)
        };
        let model = Model { pad: sizes.pad_rule(), tones: network.tones(), paste, forward: &mut forward };
        let image = match sizes {
            Sizes::MultipleOf(_) => inpaint(work.image, &work.mask, &strategy, model),
            Sizes::Fixed(side) => inpaint_fixed(work.image, &work.mask, side, model),
        };
        let image = image.map_err(inpaint_failure)?;
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

/// Reads the strategy from upstream's form fields; absent fields get upstream's defaults for lama.
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
