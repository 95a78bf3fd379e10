//! The torch backend: TorchScript models around upstream's pixel pipeline.
//!
//! Does not: know the inputs and outputs of a network; `network` does.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tch::Device;

use lamagrid_domain::{Failure, FailureKind, MemoryUse, ModelName, ModelOffer, Params, Scalar, Stages};
use lamagrid_imaging::{HdStrategy, InpaintError, Model, Patch, inpaint, inpaint_fixed};
use lamagrid_node::backend::{Answer, Backend, FileState, Progress, SilentProgress, Work, stopped};
use lamagrid_node::memory::{self, PeakMeter};
use lamagrid_node::model_cache::{ModelCache, Residency};
use lamagrid_node::settings::ModelPlan;
use lamagrid_node::signature::{Signature, Sizes};
use lamagrid_weights::{Confirmed, Environment, Ledger, Weights};

use crate::network::{self, Network};

/// Upstream's default strategy for lama; then its resize limit, crop trigger and crop margin.
const DEFAULT_STRATEGY: &str = "Crop";
const DEFAULT_RESIZE_LIMIT_PX: i64 = 2_048;
const DEFAULT_CROP_TRIGGER_PX: i64 = 800;
const DEFAULT_CROP_MARGIN_PX: i64 = 196;

/// The name of the check by loading, in the ledger.
const LOAD_CHECK: &str = "load";

/// The torch backend on one device.
pub(crate) struct Torch {
    plans: Vec<ModelPlan>,
    cache: ModelCache<Network>,
    device: Device,
    ledger: Ledger,
    /// The most memory that a task used beside its model, in bytes; kept free when a model is loaded.
    work_bytes: u64,
    /// The number of threads that libtorch chose.
    own_threads: i32,
}

impl Torch {
    /// Creates the backend without loading a model. `budget` is the memory for models and their work, in bytes; `ledger`
    /// remembers the checks of files.
    pub(crate) fn new(plans: Vec<ModelPlan>, device: Device, budget: u64, ledger: Ledger) -> Self {
        let own_threads = tch::get_num_threads();
        Self { plans, cache: ModelCache::new(budget), device, ledger, work_bytes: 0, own_threads }
    }

    fn plan(&self, model: &ModelName) -> Result<&ModelPlan, Failure> {
        let unknown =
            || Failure::new(FailureKind::UnknownModel, format!("this node does not serve the model {model}"));
        self.plans.iter().find(|plan| plan.name == *model).ok_or_else(unknown)
    }

    /// Evicts models until `bytes` of `model` and its work fit.
    fn make_room(&mut self, model: &ModelName, bytes: u64) -> Result<(), Failure> {
        let needed = bytes.saturating_add(self.work_bytes);
        let evicted = self.cache.make_room(model, needed);
        let evicted = evicted.map_err(|error| Failure::new(FailureKind::OutOfMemory, error.to_string()))?;
        for evicted in evicted {
            tracing::info!(model = %evicted, for_model = %model, "model left memory");
        }
        Ok(())
    }

    /// Loads a model without putting it into the cache, once there is room for it.
    fn read(&mut self, plan: &ModelPlan, progress: &dyn Progress) -> Result<Loaded, Failure> {
        let model = &plan.name;
        let files = plan.weights(&Environment::of_process());
        let located = files.iter().map(|weights| network::locate(model, weights, &self.ledger, progress));
        let files = located.collect::<Result<Vec<_>, _>>()?;
        let file_bytes = plan.file_bytes();
        self.make_room(model, file_bytes)?;
        let before = memory::resident_bytes();
        let mut network = Network::load(plan, &files, self.device, progress);
        if is_out_of_memory(&network) && evict_idle(&mut self.cache, model) {
            network = Network::load(plan, &files, self.device, progress);
        }
        let network = network?;
        // Memory that earlier models returned to this process is not resident anew, so the files are the least.
        let grown = match self.device {
            Device::Cpu => memory::resident_bytes().saturating_sub(before),
            _ => 0,
        };
        let bytes = grown.max(file_bytes);
        self.make_room(model, bytes)?;
        Ok(Loaded { network, bytes })
    }
}

/// A model that was loaded, and its memory in bytes.
struct Loaded {
    network: Network,
    bytes: u64,
}

fn is_out_of_memory<T>(result: &Result<T, Failure>) -> bool {
    result.as_ref().is_err_and(|failure| failure.kind == FailureKind::OutOfMemory)
}

/// Evicts all models that are not in use, because memory ran out; returns whether any left.
fn evict_idle(cache: &mut ModelCache<Network>, in_use: &ModelName) -> bool {
    let evicted = cache.evict_idle(in_use);
    for model in &evicted {
        tracing::warn!(%model, for_model = %in_use, "memory ran out: model left memory");
    }
    !evicted.is_empty()
}

impl Backend for Torch {
    fn models(&self) -> Vec<ModelOffer> {
        let offer = |plan: &ModelPlan| ModelOffer {
            model: plan.name.clone(),
            queue: plan.offered_queue(),
            routed: plan.queue.is_none(),
            loaded: self.cache.contains(&plan.name),
            present: plan.is_present(),
            memory_bytes: self.cache.bytes_of(&plan.name).unwrap_or_else(|| plan.file_bytes()),
            pinned: plan.pin,
        };
        self.plans.iter().map(offer).collect()
    }

    fn files(&self, model: &ModelName) -> Vec<PathBuf> {
        self.plan(model).map_or_else(|_| Vec::new(), ModelPlan::files)
    }

    fn file_state(&self, model: &ModelName) -> FileState {
        let Ok(plan) = self.plan(model) else { return FileState::Verified };
        let files = plan.weights(&Environment::of_process());
        if !files.iter().all(Weights::is_present) {
            let missing = files.iter().find(|weights| !weights.can_be_had());
            return missing.map_or(FileState::Fetchable, |weights| {
                FileState::Unusable(format!("there is no file {}. Put it there", weights.describe()))
            });
        }
        let needed = plan.file_bytes();
        if needed > self.cache.budget() {
            return FileState::Unusable(self.cache.does_not_fit(model, needed).to_string());
        }
        let has_passed = |weights: &Weights| {
            let checks = weights.sum_check().into_iter();
            let checks = checks.chain((!weights.requires_sum()).then(|| LOAD_CHECK.to_owned()));
            weights
                .path()
                .is_some_and(|path| checks.into_iter().any(|check| self.ledger.has_passed(&path, &check)))
        };
        if files.iter().all(has_passed) { FileState::Verified } else { FileState::Unverified }
    }

    fn verify(&mut self, model: &ModelName) -> Result<(), Failure> {
        let plan = self.plan(model)?.clone();
        let mut unconfirmed = Vec::new();
        for weights in plan.weights(&Environment::of_process()) {
            let confirmed = weights.confirm().map_err(|error| network::load_failure(model, &error))?;
            let Some(path) = weights.path() else { continue };
            match (confirmed, weights.sum_check()) {
                (Confirmed::Yes, Some(check)) => network::record(&self.ledger, &path, &check),
                (Confirmed::Yes, None) | (Confirmed::No, _) => unconfirmed.push(path),
            }
        }
        if !unconfirmed.is_empty() {
            if !self.cache.contains(model) {
                self.read(&plan, &SilentProgress)?;
            }
            unconfirmed.iter().for_each(|path| network::record(&self.ledger, path, LOAD_CHECK));
        }
        tracing::info!(%model, "model verified");
        Ok(())
    }

    fn load(&mut self, model: &ModelName, progress: &dyn Progress) -> Result<Duration, Failure> {
        if self.cache.contains(model) {
            return Ok(Duration::ZERO);
        }
        let began = Instant::now();
        let plan = self.plan(model)?.clone();
        let Loaded { network, bytes } = self.read(&plan, progress)?;
        let took = began.elapsed();
        let residency = if plan.pin { Residency::Pinned } else { Residency::Evictable };
        self.cache.insert(plan.name, network, bytes, residency);
        tracing::info!(
            model = %model, device = ?self.device, load_ms = took.as_millis(), mib = bytes >> 20, in_memory_mib = self.cache.bytes() >> 20, loads = self.cache.loads(),
            "model loaded"
        );
        Ok(took)
    }

    fn set_threads(&mut self, threads: u32) {
        let threads = i32::try_from(threads).ok().filter(|threads| *threads > 0).unwrap_or(self.own_threads);
        tch::set_num_threads(threads);
        tracing::info!(threads, "libtorch uses another number of threads");
    }

    fn run(&mut self, work: Work<'_>, progress: &dyn Progress) -> Result<Answer, Failure> {
        let began = Instant::now();
        let model = work.model;
        let &Signature { sizes, paste, .. } = &self.plan(model)?.signature;
        let network = self.cache.get(model).ok_or_else(|| {
            Failure::new(FailureKind::Internal, format!("the model {model} was not loaded"))
        })?;
        let meter = PeakMeter::start();
        let before = memory::resident_bytes();
        let strategy = strategy(work.params)?;
        let mut inferring = Duration::ZERO;
        let mut passes = 0;
        let mut pixels = 0;
        let mut forward = |patch: &Patch<'_>| {
            let (pass, of) = patch.pass();
            passes = of;
            pixels = pixels.max(patch.shape().0 as u64 * patch.shape().1 as u64);
            if progress.step(steps(pass), steps(of)).is_break() {
                return Err(stopped());
            }
            let mut answer = network.forward(patch, self.device);
            if is_out_of_memory(&answer) && evict_idle(&mut self.cache, model) {
                answer = network.forward(patch, self.device);
            }
            let answer = answer?;
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
        let memory = self.memory_use(work.model, meter.bytes().saturating_sub(before), pixels);
        let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
        let pixels = began.elapsed().saturating_sub(inferring);
        Ok(Answer {
            image,
            stages: Stages { infer_ms: ms(inferring), pixels_ms: ms(pixels), ..Stages::default() },
            memory,
        })
    }
}

impl Torch {
    /// The memory of a task that used `work_bytes` beside its model; known on the processor only.
    fn memory_use(&mut self, model: &ModelName, work_bytes: u64, pixels: u64) -> Option<MemoryUse> {
        if self.device != Device::Cpu {
            return None;
        }
        self.work_bytes = self.work_bytes.max(work_bytes);
        let model_bytes = self.cache.bytes_of(model)?;
        Some(MemoryUse { model_bytes, peak_bytes: model_bytes.saturating_add(work_bytes), pixels })
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
