//! The signature of a TorchScript network, as `[models.NAME]` describes it.
//!
//! Does not: know tensors or pixels; the node builds the inputs.

use std::str::FromStr;

use serde::Deserialize;

use crate::model::ModelConfig;

/// The range of the values of a picture that a network takes or returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum ValueRange {
    /// Black is 0, white is 1.
    #[serde(rename = "0..1")]
    Unit,
    /// Black is -1, white is 1.
    #[serde(rename = "-1..1")]
    Signed,
    /// Black is 0, white is 255.
    #[serde(rename = "0..255")]
    Byte,
}

impl ValueRange {
    pub(crate) const WORDS: &'static [&'static str] = &["0..1", "-1..1", "0..255"];
}

/// The type of a mask that is an argument of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskType {
    /// 64-bit integers.
    Int64,
    /// 32-bit floats.
    Float,
    /// Booleans.
    Bool,
}

impl MaskType {
    pub(crate) const WORDS: &'static [&'static str] = &["int64", "float", "bool"];
}

/// The order of the colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
}

impl Colour {
    pub(crate) const WORDS: &'static [&'static str] = &["rgb", "bgr"];
}

/// The part of a network's output that is pasted into the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Blend {
    /// The hole; all other pixels stay as they were.
    Hole,
    /// Everything that the network returned.
    All,
}

impl Blend {
    pub(crate) const WORDS: &'static [&'static str] = &["hole", "all"];
}

/// The mask's values, written `KEEP..HOLE`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct MaskRange {
    /// The value of pixels that are kept.
    pub keep: f32,
    /// The value of pixels in the hole.
    pub hole: f32,
}

impl FromStr for MaskRange {
    type Err = NotInWords;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| text.parse::<f32>().ok().filter(|value| value.is_finite());
        let pair = text.split_once("..").and_then(|(keep, hole)| number(keep).zip(number(hole)));
        pair.filter(|(keep, hole)| keep != hole).map(|(keep, hole)| Self { keep, hole }).ok_or(NotInWords)
    }
}

impl TryFrom<String> for MaskRange {
    type Error = NotInWords;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// One part of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The picture, 3 channels.
    Image,
    /// The picture with zeros in the hole, 3 channels.
    Erased,
    /// The mask, 1 channel.
    Mask,
}

/// One argument of a network: parts whose channels follow each other, written `mask+erased`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Argument(pub Vec<Part>);

impl FromStr for Argument {
    type Err = NotInWords;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let part = |word| match word {
            "image" => Ok(Part::Image),
            "erased" => Ok(Part::Erased),
            "mask" => Ok(Part::Mask),
            _ => Err(NotInWords),
        };
        text.split('+').map(part).collect::<Result<_, _>>().map(Self)
    }
}

impl TryFrom<String> for Argument {
    type Error = NotInWords;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// The text is not one of those that the key accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the text has another form")]
pub struct NotInWords;

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
    /// True if the section names a file, so that upstream's files are not used.
    #[must_use]
    pub fn has_file(&self) -> bool {
        !self.path.as_os_str().is_empty() || !self.url.is_empty()
    }

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
