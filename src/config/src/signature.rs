//! The signature of a TorchScript network, as `[models.NAME]` describes it.
//!
//! Does not: know tensors or pixels; the node builds the inputs.

use std::str::FromStr;

use serde::Deserialize;

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
