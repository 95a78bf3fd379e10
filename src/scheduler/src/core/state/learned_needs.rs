//! The memory of models as nodes reported it: peaks of attempts, and sizes that ran out of memory.
//!
//! A peak corrects the tables for pictures of up to its size, in both directions; above it the tables' figure for more
//! pixels is added. Sizes that ran out of memory go to devices with more, if there are any, until as large a task
//! succeeds on as little memory.

use std::collections::BTreeMap;

use lamagrid_domain::{MemoryUse, ModelName};

use crate::core::policy::needs::{Demand, Need};

/// Models with a record; the tables alone count for others.
const MAX_MODELS: usize = 1_024;
/// Lessons per model; the one about the least memory is dropped first.
const MAX_LESSONS: usize = 8;
/// A device may have been full for another reason: after this time it is tried again.
const LESSON_MS: u64 = 3_600_000;
/// The part of the difference by which a lower peak of the same size lowers the recorded one.
const DECAY: u64 = 8;

/// Tasks with at least this many pixels ran out of this much memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lesson {
    pixels: u64,
    memory_bytes: u64,
    until_ms: u64,
}

#[derive(Debug, Default)]
struct Record {
    /// The peak of the largest pixels so far; `None` before the first report.
    peak: Option<MemoryUse>,
    lessons: Vec<Lesson>,
}

/// Reports by model.
///
/// Invariant: at most [`MAX_MODELS`] models, each with at most [`MAX_LESSONS`] lessons; no peak is below its model.
#[derive(Debug, Default)]
pub(crate) struct LearnedNeeds {
    records: BTreeMap<ModelName, Record>,
    /// Rises with each change of a peak.
    version: u64,
}

impl LearnedNeeds {
    /// The need of a task of this model.
    pub(crate) fn need(&self, model: &ModelName, demand: &Demand) -> Need {
        let record = self.records.get(model);
        let memory_bytes = match record.and_then(|record| record.peak) {
            None => demand.table_bytes(),
            Some(peak) if demand.pixels <= peak.pixels => {
                let (span, of) = (u128::from(peak.peak_bytes - peak.model_bytes), u128::from(peak.pixels));
                let part = (span * u128::from(demand.pixels)).checked_div(of).unwrap_or(span);
                peak.model_bytes.saturating_add(u64::try_from(part).unwrap_or(u64::MAX))
            }
            Some(peak) => peak.peak_bytes.saturating_add(demand.bytes_of(demand.pixels - peak.pixels)),
        };
        let lessons = record.map_or(&[][..], |record| &record.lessons);
        let outgrown = lessons.iter().filter(|lesson| lesson.pixels <= demand.pixels);
        let outgrown_bytes = outgrown.map(|lesson| lesson.memory_bytes).max().unwrap_or(0);
        Need { device: demand.device, prefers: demand.prefers, memory_bytes, outgrown_bytes }
    }

    /// A number that changes when needs change.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    fn record(&mut self, model: &ModelName) -> Option<&mut Record> {
        if !self.records.contains_key(model) {
            if self.records.len() >= MAX_MODELS {
                return None;
            }
            self.records.insert(model.clone(), Record::default());
        }
        self.records.get_mut(model)
    }

    /// A task with this demand succeeded on a device with this much memory, 0 if that is unknown. True if other tasks of
    /// the model may need less now.
    pub(crate) fn on_success(
        &mut self,
        model: &ModelName,
        demand: &Demand,
        used: Option<MemoryUse>,
        memory_bytes: u64,
    ) -> bool {
        let is_disproved = |lesson: &Lesson| {
            lesson.pixels <= demand.pixels && memory_bytes > 0 && lesson.memory_bytes >= memory_bytes
        };
        let mut is_less = false;
        if let Some(record) = self.records.get_mut(model) {
            let before = record.lessons.len();
            record.lessons.retain(|lesson| !is_disproved(lesson));
            is_less = record.lessons.len() < before;
        }
        // A report above the device's own memory is wrong: the task has run there.
        let ceiling = if memory_bytes > 0 { memory_bytes } else { u64::MAX };
        let Some(used) = used.map(|used| {
            let peak_bytes = used.peak_bytes.min(ceiling);
            MemoryUse { peak_bytes, model_bytes: used.model_bytes.min(peak_bytes), pixels: used.pixels }
        }) else {
            return is_less;
        };
        let Some(record) = self.record(model) else { return is_less };
        let Some(old) = record.peak else {
            record.peak = Some(used);
            self.version += 1;
            return true;
        };
        let smooth = |old: u64, new: u64| if new >= old { new } else { old - (old - new) / DECAY };
        let new = if used.pixels >= old.pixels {
            let is_same = used.pixels == old.pixels;
            let peak_bytes = if is_same { smooth(old.peak_bytes, used.peak_bytes) } else { used.peak_bytes };
            // A larger task needs no less than a smaller one did.
            let peak_bytes = if is_same { peak_bytes } else { peak_bytes.max(old.peak_bytes) };
            MemoryUse {
                peak_bytes,
                pixels: used.pixels,
                model_bytes: smooth(old.model_bytes, used.model_bytes),
            }
        } else {
            let peak_bytes = old.peak_bytes.max(used.peak_bytes);
            MemoryUse {
                peak_bytes,
                pixels: old.pixels,
                model_bytes: smooth(old.model_bytes, used.model_bytes),
            }
        };
        let new = MemoryUse { model_bytes: new.model_bytes.min(new.peak_bytes), ..new };
        record.peak = Some(new);
        self.version += u64::from(new != old);
        is_less || new != old
    }

    /// A task with this demand ran out of memory on a device that has this much.
    pub(crate) fn on_out_of_memory(
        &mut self,
        model: &ModelName,
        demand: &Demand,
        memory_bytes: u64,
        clock_ms: u64,
    ) {
        let Some(record) = self.record(model).filter(|_| memory_bytes > 0) else { return };
        let lesson =
            Lesson { pixels: demand.pixels, memory_bytes, until_ms: clock_ms.saturating_add(LESSON_MS) };
        let covers = |old: &Lesson| old.pixels >= lesson.pixels && old.memory_bytes <= lesson.memory_bytes;
        record.lessons.retain(|old| !covers(old));
        record.lessons.push(lesson);
        if record.lessons.len() > MAX_LESSONS {
            let least = record.lessons.iter().map(|lesson| lesson.memory_bytes).min().unwrap_or(0);
            record.lessons.retain(|lesson| lesson.memory_bytes > least);
        }
    }

    /// Forgets old lessons. True if there were any.
    pub(crate) fn forget_lessons(&mut self, clock_ms: u64) -> bool {
        let mut is_less = false;
        for record in self.records.values_mut().filter(|record| !record.lessons.is_empty()) {
            let before = record.lessons.len();
            record.lessons.retain(|lesson| lesson.until_ms > clock_ms);
            is_less |= record.lessons.len() < before;
        }
        is_less
    }

    #[cfg(test)]
    pub(crate) fn check(&self) -> Result<(), String> {
        invariant!(self.records.len() <= MAX_MODELS, "{} models are remembered", self.records.len());
        for (model, record) in &self.records {
            invariant!(record.lessons.len() <= MAX_LESSONS, "{model} has {} lessons", record.lessons.len());
            let is_sound = record.peak.is_none_or(|peak| peak.model_bytes <= peak.peak_bytes);
            invariant!(is_sound, "{model} needs more than its peak: {:?}", record.peak);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lamagrid_domain::DeviceClass;

    use super::*;

    fn lama() -> ModelName {
        "lama".parse().unwrap()
    }

    fn demand(pixels: u64) -> Demand {
        let (device, prefers) = (None, DeviceClass::Gpu);
        Demand { device, prefers, model_bytes: 100, bytes_per_megapixel: 10_000_000, pixels }
    }

    fn used(model_bytes: u64, peak_bytes: u64, pixels: u64) -> Option<MemoryUse> {
        Some(MemoryUse { model_bytes, peak_bytes, pixels })
    }

    fn bytes(learned: &LearnedNeeds, pixels: u64) -> u64 {
        learned.need(&lama(), &demand(pixels)).memory_bytes
    }

    #[test]
    fn a_peak_corrects_the_table_up_to_its_size_and_the_table_adds_what_is_above() {
        let mut learned = LearnedNeeds::default();
        assert_eq!((bytes(&learned, 0), bytes(&learned, 40)), (100, 500));
        assert!(learned.on_success(&lama(), &demand(20), used(50, 250, 20), 0));
        assert_eq!((bytes(&learned, 0), bytes(&learned, 10), bytes(&learned, 20)), (50, 150, 250));
        assert_eq!(bytes(&learned, 40), 450);
        // A tiny picture with a large overhead says little about large ones.
        learned.on_success(&lama(), &demand(1), used(50, 240, 1), 0);
        assert_eq!(bytes(&learned, 20), 250);
        learned.on_success(&lama(), &demand(1), used(50, 300, 1), 0);
        assert_eq!((bytes(&learned, 20), bytes(&learned, 40)), (300, 500));
        // It rises at once and falls slowly.
        learned.on_success(&lama(), &demand(20), used(50, 220, 20), 0);
        assert_eq!(bytes(&learned, 20), 290);
        learned.check().unwrap();
    }

    #[test]
    fn no_report_of_any_order_makes_a_larger_task_need_less() {
        let mut state = 3_u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..300 {
            let mut learned = LearnedNeeds::default();
            for _ in 0..20 {
                let (model_bytes, pixels) = (next(500), next(300));
                let report = used(model_bytes, next(2_000), pixels);
                learned.on_success(&lama(), &demand(pixels), report, next(3) * 700);
                learned.check().unwrap();
                let needs: Vec<_> = (0..400).map(|pixels| bytes(&learned, pixels)).collect();
                assert!(needs.is_sorted(), "{learned:?}");
            }
        }
    }

    #[test]
    fn a_report_above_the_memory_of_its_device_counts_as_that_memory() {
        let mut learned = LearnedNeeds::default();
        learned.on_success(&lama(), &demand(20), used(u64::MAX, u64::MAX, 20), 400);
        assert_eq!(bytes(&learned, 20), 400);
    }

    #[test]
    fn sizes_that_ran_out_of_memory_outgrow_it_until_one_succeeds_or_an_hour_passed() {
        let mut learned = LearnedNeeds::default();
        let outgrown = |learned: &LearnedNeeds, pixels| learned.need(&lama(), &demand(pixels)).outgrown_bytes;
        learned.on_out_of_memory(&lama(), &demand(20), 0, 0);
        assert_eq!(outgrown(&learned, 99), 0, "a device of unknown memory teaches nothing");
        learned.on_out_of_memory(&lama(), &demand(20), 800, 0);
        learned.on_out_of_memory(&lama(), &demand(50), 1_600, 5);
        let sizes = [19, 20, 49, 50].map(|pixels| outgrown(&learned, pixels));
        assert_eq!(sizes, [0, 800, 800, 1_600]);
        assert!(!learned.on_success(&lama(), &demand(19), None, 800), "a smaller one proves nothing");
        assert!(!learned.on_success(&lama(), &demand(30), None, 1_600), "more memory proves nothing");
        assert!(learned.on_success(&lama(), &demand(20), None, 700));
        assert_eq!(outgrown(&learned, 49), 0);
        assert!(!learned.forget_lessons(LESSON_MS + 4) && learned.forget_lessons(LESSON_MS + 5));
        assert_eq!(outgrown(&learned, 99), 0);
    }

    #[test]
    fn lessons_and_models_are_bounded() {
        let mut learned = LearnedNeeds::default();
        for n in 0..2_000 {
            learned.on_out_of_memory(&lama(), &demand(n + 1), 1 + n, 0);
            let other = format!("m{n}").parse().unwrap();
            learned.on_success(&other, &demand(n), used(1, 2, n), 0);
        }
        learned.check().unwrap();
        assert_eq!(learned.need(&lama(), &demand(2_000)).outgrown_bytes, 2_000);
    }
}
