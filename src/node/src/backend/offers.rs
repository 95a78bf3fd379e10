//! Keeps which models a node offers: only those whose files were verified, or can be downloaded.
//!
//! Does not: verify files; the backend does. The loop that owns this table lets it, one model at a time between tasks.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use lamagrid_domain::{Failure, ModelName, ModelOffer, WithheldModel};
use lamagrid_session::{Offers, panicked};

use super::{Backend, FileState, SilentProgress};

/// The models that are not offered: not verified yet, or not usable.
#[derive(Debug, Default)]
pub struct OfferTable {
    pending: VecDeque<ModelName>,
    withheld: BTreeMap<ModelName, String>,
}

impl OfferTable {
    /// Sorts a backend's models by the state of their files.
    #[must_use]
    pub fn of(backend: &dyn Backend) -> Self {
        let mut table = Self::default();
        for ModelOffer { model, .. } in backend.models() {
            match backend.file_state(&model) {
                FileState::Verified | FileState::Fetchable => {}
                FileState::Unverified => table.pending.push_back(model),
                FileState::Unusable(reason) => table.withhold(model, reason),
            }
        }
        table
    }

    /// The models to register.
    #[must_use]
    pub fn offers(&self, backend: &dyn Backend) -> Offers {
        let is_offered = |offer: &ModelOffer| {
            !self.pending.contains(&offer.model) && !self.withheld.contains_key(&offer.model)
        };
        let withheld = |(model, reason): (&ModelName, &String)| WithheldModel {
            model: model.clone(),
            reason: reason.as_str().into(),
        };
        Offers {
            models: backend.models().into_iter().filter(is_offered).collect(),
            withheld: WithheldModel::that_fit(self.withheld.iter().map(withheld)),
        }
    }

    /// The models that are withheld.
    pub(super) fn withheld(&self) -> Vec<ModelName> {
        self.withheld.keys().cloned().collect()
    }

    /// True if models wait to be verified.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Lets the backend verify the next model. Returns the model if it cannot be used.
    pub(super) fn verify_next(&mut self, backend: &mut dyn Backend) -> Option<ModelName> {
        let model = self.pending.front().cloned()?;
        let verify = AssertUnwindSafe(|| backend.verify(&model));
        let result = catch_unwind(verify).unwrap_or_else(|panic| Err(panicked("backend", panic.as_ref())));
        let is_wrong = result.is_err();
        self.settle(&model, result);
        is_wrong.then_some(model)
    }

    /// Loads and verifies models until there is one to offer, because a node registers with at least one model. The first
    /// model stays in memory.
    pub fn verify_first(&mut self, backend: &mut dyn Backend) {
        while let Some(model) = self.pending.front().cloned() {
            let load = AssertUnwindSafe(|| {
                backend.load(&model, &SilentProgress)?;
                backend.verify(&model)
            });
            let result = catch_unwind(load).unwrap_or_else(|panic| Err(panicked("backend", panic.as_ref())));
            let is_right = result.is_ok();
            self.settle(&model, result);
            if is_right {
                return;
            }
        }
    }

    /// Records whether a model can be used.
    pub fn settle(&mut self, model: &ModelName, result: Result<(), Failure>) {
        self.pending.retain(|pending| pending != model);
        match result {
            Ok(()) => {
                if self.withheld.remove(model).is_some() {
                    tracing::info!(%model, "the model is offered again");
                }
            }
            Err(failure) => self.withhold(model.clone(), failure.message),
        }
    }

    fn withhold(&mut self, model: ModelName, reason: String) {
        tracing::warn!(%model, reason, "the model is not offered");
        // The registration names the model already.
        let short = reason.strip_prefix(&format!("model {model}: ")).map(str::to_owned);
        let reason = short.unwrap_or(reason);
        self.withheld.insert(model, reason);
    }
}
