//! Decides which models stay in memory: the least recently used ones leave when another one needs the space.
//!
//! Does not: load models or measure memory; a backend does both.
//!
//! Invariant: the models in memory fit the budget whenever [`ModelCache::make_room`] has returned `Ok`, unless one turned out
//! larger than its files. A pinned model never leaves.

use std::collections::BTreeMap;
use std::sync::Arc;

use lamagrid_domain::ModelName;

/// A model does not fit, even after all models that may leave have left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "model {model} needs {} MiB, but its node may use {} MiB{}. Raise node.memory_mib, use a device with more memory, or unpin a model",
    mib(*.needed), mib(*.budget), pinned_text(.pinned, *.pinned_bytes)
)]
pub struct DoesNotFit {
    /// The model.
    pub model: ModelName,
    /// Its memory with that of its work, in bytes.
    pub needed: u64,
    /// The memory for models, in bytes.
    pub budget: u64,
    /// The pinned models in memory.
    pub pinned: Vec<ModelName>,
    /// Their memory, in bytes.
    pub pinned_bytes: u64,
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

fn pinned_text(pinned: &[ModelName], bytes: u64) -> String {
    if pinned.is_empty() {
        return String::new();
    }
    let names: Vec<_> = pinned.iter().map(ModelName::as_str).collect();
    format!(", of which pinned models ({}) hold {} MiB", names.join(", "), mib(bytes))
}

/// Whether a model may leave memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// It stays.
    Pinned,
    /// It leaves when another model needs its space.
    Evictable,
}

#[derive(Debug)]
struct Held<M> {
    model: Arc<M>,
    bytes: u64,
    residency: Residency,
    /// Orders the models by their last use.
    used_at: u64,
}

/// The models in memory. One task runs at a time, so the model in use is the one that was fetched last.
#[derive(Debug)]
pub struct ModelCache<M> {
    budget: u64,
    held: BTreeMap<ModelName, Held<M>>,
    uses: u64,
    loads: u64,
}

impl<M> ModelCache<M> {
    /// Creates an empty cache with a `budget` in bytes.
    #[must_use]
    pub fn new(budget: u64) -> Self {
        Self { budget, held: BTreeMap::new(), uses: 0, loads: 0 }
    }

    /// Returns a model in memory, and marks it as used.
    pub fn get(&mut self, model: &ModelName) -> Option<Arc<M>> {
        self.uses += 1;
        let held = self.held.get_mut(model)?;
        held.used_at = self.uses;
        Some(Arc::clone(&held.model))
    }

    /// The memory for models and their work, in bytes.
    #[must_use]
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// True if the model is in memory.
    #[must_use]
    pub fn contains(&self, model: &ModelName) -> bool {
        self.held.contains_key(model)
    }

    /// The memory of a model in memory, in bytes.
    #[must_use]
    pub fn bytes_of(&self, model: &ModelName) -> Option<u64> {
        self.held.get(model).map(|held| held.bytes)
    }

    /// The memory of all models, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.held.values().map(|held| held.bytes).sum()
    }

    /// Number of models that were put into memory so far.
    #[must_use]
    pub fn loads(&self) -> u64 {
        self.loads
    }

    /// Evicts the least recently used models until `needed` bytes for `model` fit the budget. Returns the evicted models.
    ///
    /// # Errors
    /// [`DoesNotFit`] if they cannot fit beside the pinned models; nothing is evicted then.
    pub fn make_room(&mut self, model: &ModelName, needed: u64) -> Result<Vec<ModelName>, DoesNotFit> {
        let refusal = self.does_not_fit(model, needed);
        if refusal.pinned_bytes.saturating_add(needed) > self.budget {
            return Err(refusal);
        }
        let mut evicted = Vec::new();
        while self.bytes().saturating_add(needed) > self.budget {
            let Some(oldest) = self.oldest() else { break };
            self.held.remove(&oldest);
            evicted.push(oldest);
        }
        Ok(evicted)
    }

    /// The figures of a model that cannot fit.
    #[must_use]
    pub fn does_not_fit(&self, model: &ModelName, needed: u64) -> DoesNotFit {
        let pinned = || {
            let pinned =
                |(name, held): &(&ModelName, &Held<M>)| held.residency == Residency::Pinned && *name != model;
            self.held.iter().filter(pinned)
        };
        DoesNotFit {
            model: model.clone(),
            needed,
            budget: self.budget,
            pinned: pinned().map(|(name, _)| name.clone()).collect(),
            pinned_bytes: pinned().map(|(_, held)| held.bytes).sum(),
        }
    }

    fn oldest(&self) -> Option<ModelName> {
        let evictable = self.held.iter().filter(|(_, held)| held.residency == Residency::Evictable);
        evictable.min_by_key(|(_, held)| held.used_at).map(|(name, _)| name.clone())
    }

    /// Adds a model that was loaded, with its memory in bytes.
    pub fn insert(&mut self, model: ModelName, loaded: M, bytes: u64, residency: Residency) -> Arc<M> {
        self.uses += 1;
        self.loads += 1;
        let loaded = Arc::new(loaded);
        let held = Held { model: Arc::clone(&loaded), bytes, residency, used_at: self.uses };
        self.held.insert(model, held);
        loaded
    }

    /// Evicts all models that may leave, except the one in use. Returns them.
    pub fn evict_idle(&mut self, in_use: &ModelName) -> Vec<ModelName> {
        let may_leave =
            |(name, held): &(&ModelName, &Held<M>)| *name != in_use && held.residency == Residency::Evictable;
        let idle: Vec<_> = self.held.iter().filter(may_leave).map(|(name, _)| name.clone()).collect();
        for model in &idle {
            self.held.remove(model);
        }
        idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ModelName {
        text.parse().unwrap()
    }

    fn names(models: &[ModelName]) -> Vec<&str> {
        models.iter().map(ModelName::as_str).collect()
    }

    /// A cache of 800 with these models of 300 each.
    fn cache(models: &[(&str, Residency)]) -> ModelCache<String> {
        let mut cache = ModelCache::new(800);
        for (model, residency) in models {
            cache.make_room(&name(model), 300).unwrap();
            cache.insert(name(model), (*model).to_owned(), 300, *residency);
        }
        cache
    }

    use Residency::{Evictable, Pinned};

    #[test]
    fn the_least_recently_used_model_leaves_first() {
        let mut cache = cache(&[("a", Evictable), ("b", Evictable)]);
        assert_eq!(cache.get(&name("a")).as_deref().map(String::as_str), Some("a"));
        assert_eq!(names(&cache.make_room(&name("c"), 300).unwrap()), ["b"]);
        cache.insert(name("c"), "c".into(), 300, Evictable);
        assert!(cache.contains(&name("a")) && !cache.contains(&name("b")));
        assert_eq!((cache.bytes(), cache.loads(), cache.bytes_of(&name("c"))), (600, 3, Some(300)));
        assert!(cache.make_room(&name("d"), 200).unwrap().is_empty());
        assert_eq!(names(&cache.make_room(&name("d"), 700).unwrap()), ["a", "c"]);
    }

    #[test]
    fn a_pinned_model_stays_and_a_model_that_cannot_fit_is_refused_with_the_figures() {
        let mut cache = cache(&[("a", Pinned), ("b", Evictable)]);
        let mib = |n: u64| n << 20;
        assert_eq!(names(&cache.make_room(&name("c"), 500).unwrap()), ["b"]);
        let refused = cache.make_room(&name("c"), 501).unwrap_err();
        assert_eq!((refused.needed, refused.budget, refused.pinned_bytes), (501, 800, 300));
        assert_eq!(names(&refused.pinned), ["a"]);
        assert!(cache.contains(&name("a")));
        let text = DoesNotFit { needed: mib(2), budget: mib(1), pinned_bytes: mib(1), ..refused }.to_string();
        assert!(text.contains(
            "model c needs 2 MiB, but its node may use 1 MiB, of which pinned models (a) hold 1 MiB"
        ));
        let mut empty = ModelCache::<String>::new(800);
        let text = empty.make_room(&name("big"), 801).unwrap_err().to_string();
        assert!(text.contains("model big needs 1 MiB, but its node may use 1 MiB. Raise"), "{text}");
    }

    #[test]
    fn nothing_leaves_for_a_model_that_is_refused() {
        let mut cache = cache(&[("a", Evictable), ("b", Evictable)]);
        assert!(cache.make_room(&name("c"), 801).is_err());
        assert!(cache.contains(&name("a")) && cache.contains(&name("b")));
    }

    #[test]
    fn out_of_memory_evicts_all_but_the_model_in_use_and_the_pinned_ones() {
        let mut cache = ModelCache::new(1_000);
        for (model, residency) in [("a", Pinned), ("b", Evictable), ("c", Evictable)] {
            cache.insert(name(model), model.to_owned(), 300, residency);
        }
        let in_use = cache.get(&name("b")).unwrap();
        assert_eq!(names(&cache.evict_idle(&name("b"))), ["c"]);
        assert_eq!((in_use.as_str(), cache.bytes()), ("b", 600));
        assert!(cache.evict_idle(&name("b")).is_empty());
    }
}
