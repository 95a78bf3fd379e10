//! Checks that the keys of a `[models.NAME]` section fit together.
//!
//! Does not: check single values ([`crate::check`]), or look for files.

use crate::model::ModelConfig;
use crate::signature::{MaskType, Part};

/// A key that does not fit the others of its section.
#[derive(Debug)]
pub(crate) struct ModelFault {
    /// The last part of the key's name.
    pub(crate) key: &'static str,
    /// Completes "must be ..."; `None` if the key is missing.
    pub(crate) allowed: Option<&'static str>,
}

/// The keys that describe a network; a model of upstream's own files has none of them.
const OF_THE_NETWORK: [&str; 9] = [
    "inputs",
    "image_range",
    "mask_range",
    "mask_type",
    "colour",
    "pad_modulo",
    "fixed_size",
    "output_range",
    "blend",
];
/// The model of upstream's with two files, for which no other file can be given.
const MANGA: &str = "manga";

impl ModelConfig {
    /// The first key that does not fit the others; `is_set` tells which keys a layer sets.
    pub(crate) fn fault(&self, name: &str, is_set: impl Fn(&str) -> bool) -> Option<ModelFault> {
        let fault = |key, allowed| Some(ModelFault { key, allowed: Some(allowed) });
        if !self.has_file() {
            if !lamagrid_domain::is_upstreams_model(name) {
                return Some(ModelFault { key: "path", allowed: None });
            }
            if !self.sha256.is_empty() {
                return fault(
                    "sha256",
                    "\"\" without path and url: Lama Cleaner knows the sum of its own file",
                );
            }
            let set = OF_THE_NETWORK.into_iter().find(|key| is_set(key));
            return set.and_then(|key| {
                fault(key, "left out without path and url: Lama Cleaner's own files have its signature")
            });
        }
        if name == MANGA {
            let key = if self.url.is_empty() { "path" } else { "url" };
            return fault(
                key,
                "\"\": manga has two files; MANGA_INPAINTOR_MODEL_URL and MANGA_LINE_MODEL_URL name them",
            );
        }
        if !self.url.is_empty() && self.sha256.is_empty() {
            return fault("sha256", "the SHA-256 sum of the file, because url is set");
        }
        if self.fixed_size > 0 && is_set("pad_modulo") {
            return fault("pad_modulo", "left out, because fixed_size fits every picture to one size");
        }
        let has_own_mask = self.inputs.iter().any(|argument| argument.0 == [Part::Mask]);
        if !has_own_mask && is_set("mask_type") && self.mask_type != MaskType::Float {
            return fault("mask_type", "left out or float, because the mask is joined with an image");
        }
        let values = [self.mask_range.keep, self.mask_range.hole];
        match self.mask_type {
            MaskType::Bool if values.iter().any(|value| *value != 0.0 && *value != 1.0) => {
                fault("mask_range", "0..1 or 1..0, because mask_type is bool")
            }
            MaskType::Int64 if has_own_mask && values.iter().any(|value| value.fract() != 0.0) => {
                fault("mask_range", "two whole numbers, because mask_type is int64")
            }
            MaskType::Bool | MaskType::Int64 | MaskType::Float => None,
        }
    }
}
