//! The inputs, sizes and output of a TorchScript network, as the configuration describes them.
//!
//! Does not: know libtorch; the torch backend builds the tensors.

use lamagrid_config::{Argument, Blend, Colour, MaskRange, MaskType, ModelConfig, Part, ValueRange};
use lamagrid_imaging::{PadRule, Paste, ToneRange, Tones};

/// Upstream pads the sides of a picture for lama to a multiple of this.
const LAMA_MODULO_PX: usize = 8;

/// The sizes of pictures that a network accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sizes {
    /// Sides that are multiples of this, in pixels.
    MultipleOf(usize),
    /// Squares with this side only, in pixels.
    Fixed(usize),
}

impl Sizes {
    /// The rule by which patches are padded.
    #[must_use]
    pub const fn pad_rule(self) -> PadRule {
        match self {
            Self::MultipleOf(modulo) => PadRule::multiple_of(modulo),
            Self::Fixed(side) => PadRule::square_of(side),
        }
    }
}

/// The signature of a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Signature {
    /// The arguments, in their order.
    pub inputs: Vec<Argument>,
    /// The range of the picture's values.
    pub image_range: ToneRange,
    /// The mask's values outside the hole and in it.
    pub mask_range: MaskRange,
    /// The type of a mask that is an argument of its own.
    pub mask_type: MaskType,
    /// The order of the colours, in and out.
    pub colour: Colour,
    /// The sizes that it accepts.
    pub sizes: Sizes,
    /// The range of its output.
    pub tones: Tones,
    /// The part of its output that is used.
    pub paste: Paste,
}

impl Signature {
    /// The signature of upstream's lama.
    ///
    /// Source: Lama Cleaner `model/lama.py`, 1.2.5.
    #[must_use]
    pub fn lama() -> Self {
        Self {
            inputs: vec![Argument(vec![Part::Image]), Argument(vec![Part::Mask])],
            image_range: ToneRange::Unit,
            mask_range: MaskRange { keep: 0.0, hole: 1.0 },
            mask_type: MaskType::Int64,
            colour: Colour::Rgb,
            sizes: Sizes::MultipleOf(LAMA_MODULO_PX),
            tones: Tones::UnitRgb,
            paste: Paste::Hole,
        }
    }
}

impl From<&ModelConfig> for Signature {
    fn from(model: &ModelConfig) -> Self {
        Self {
            inputs: model.inputs.clone(),
            image_range: match model.image_range {
                ValueRange::Unit => ToneRange::Unit,
                ValueRange::Signed => ToneRange::Signed,
                ValueRange::Byte => ToneRange::Byte,
            },
            mask_range: model.mask_range,
            mask_type: model.mask_type,
            colour: model.colour,
            sizes: match model.fixed_size {
                0 => Sizes::MultipleOf(model.pad_modulo as usize),
                side => Sizes::Fixed(side as usize),
            },
            tones: match model.output_range {
                ValueRange::Unit => Tones::UnitRgb,
                ValueRange::Signed => Tones::SignedRgb,
                ValueRange::Byte => Tones::ByteRgb,
            },
            paste: match model.blend {
                Blend::Hole => Paste::Hole,
                Blend::All => Paste::All,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamagrid_config::Config;

    #[test]
    fn a_section_without_further_keys_describes_lama() {
        let flags = [("models.m.path".to_owned(), "/m.pt".to_owned())];
        let config = Config::load(None, std::iter::empty(), &flags).unwrap().config;
        assert_eq!(Signature::from(&config.models["m"]), Signature::lama());
    }
}
