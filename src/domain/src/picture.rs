//! File formats of pictures, and what a task's result shall be.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A file format of pictures. The word is also its media subtype, and what upstream calls its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PictureFormat {
    /// Lossless.
    Png,
    /// Lossy, 4:2:0.
    Jpeg,
    /// Lossy.
    Webp,
    /// Uncompressed.
    Bmp,
    /// At most 256 colours; read, never written.
    Gif,
    /// Uncompressed when written.
    Tiff,
}

impl PictureFormat {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Png, Self::Jpeg, Self::Webp, Self::Bmp, Self::Gif, Self::Tiff];

    /// The word: `png`, `jpeg`, ...
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
            Self::Bmp => "bmp",
            Self::Gif => "gif",
            Self::Tiff => "tiff",
        }
    }
}

impl fmt::Display for PictureFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no picture format; there are png, jpeg, webp, bmp, gif and tiff")]
pub struct PictureFormatError(String);

impl FromStr for PictureFormat {
    type Err = PictureFormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|format| format.as_str() == text);
        known.ok_or_else(|| PictureFormatError(text.chars().take(20).collect()))
    }
}

/// What a task's result shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputForm {
    /// Plain pixels in BGR order, as upstream's models give them. Alpha and metadata of the input are gone.
    #[default]
    Raw,
    /// A file, with alpha and metadata of the input where the format has room for them.
    Encoded {
        /// Which kind of file.
        format: PictureFormat,
        /// 1 to 100, for lossy formats, as Pillow understands it.
        quality: u8,
    },
}
