//! The sample format of a PNG file.

use crate::codec::Mode;

/// The colour type and the depth of a file's samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Grey of 1, 2, 4, 8 or 16 bits.
    Grey(u8),
    /// Of 8 or 16 bits.
    Rgb(u8),
    /// Indices of 1, 2, 4 or 8 bits.
    Palette(u8),
    GreyAlpha(u8),
    Rgba(u8),
}

impl Kind {
    /// From the header's depth and colour type; `None` if Pillow does not support them.
    pub(super) fn of(depth: u8, colour_type: u8) -> Option<Self> {
        match (depth, colour_type) {
            (1 | 2 | 4 | 8 | 16, 0) => Some(Self::Grey(depth)),
            (8 | 16, 2) => Some(Self::Rgb(depth)),
            (1 | 2 | 4 | 8, 3) => Some(Self::Palette(depth)),
            (8 | 16, 4) => Some(Self::GreyAlpha(depth)),
            (8 | 16, 6) => Some(Self::Rgba(depth)),
            _ => None,
        }
    }

    /// The mode in which Pillow opens it.
    pub(super) fn mode(self) -> Mode {
        match self {
            Self::Grey(1) => Mode::Bilevel,
            Self::Grey(16) => Mode::I16,
            Self::Grey(_) => Mode::L,
            Self::Rgb(_) => Mode::Rgb,
            Self::Palette(_) => Mode::P,
            Self::GreyAlpha(8) => Mode::La,
            Self::GreyAlpha(_) | Self::Rgba(_) => Mode::Rgba,
        }
    }

    /// Bits per sample in the file.
    pub(super) fn depth(self) -> u8 {
        match self {
            Self::Grey(depth)
            | Self::Rgb(depth)
            | Self::Palette(depth)
            | Self::GreyAlpha(depth)
            | Self::Rgba(depth) => depth,
        }
    }

    /// Bits per pixel in the file.
    pub(super) fn bits(self) -> usize {
        let samples = match self {
            Self::Grey(_) | Self::Palette(_) => 1,
            Self::GreyAlpha(_) => 2,
            Self::Rgb(_) => 3,
            Self::Rgba(_) => 4,
        };
        samples * usize::from(self.depth())
    }
}
