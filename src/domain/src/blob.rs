//! What is known about the image bytes of a task. The bytes themselves travel beside it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A BLAKE3 hash of a blob or a payload.
pub type Hash = serde_bytes::ByteArray<32>;

/// What a blob is for. Closed, because a role names a file in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The picture to work on.
    Image,
    /// Where to work: white is the hole.
    Mask,
    /// The example picture of paint-by-example.
    Example,
    /// What the node made.
    Result,
}

impl Role {
    /// The word, and the file's name in the spool.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Mask => "mask",
            Self::Example => "example",
            Self::Result => "result",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How the bytes are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlobForm {
    /// Row-major u8 samples `(height, width, channels)`; 3 channels are RGB, in results BGR as upstream gives them.
    Raw {
        /// Rows, in pixels.
        height: u32,
        /// Columns, in pixels.
        width: u32,
        /// 1 or 3.
        channels: u8,
    },
    /// A file as it was uploaded or as it is to be answered.
    Encoded,
}

impl BlobForm {
    /// The byte length that the form demands; `None` for [`BlobForm::Encoded`].
    #[must_use]
    pub const fn raw_len(&self) -> Option<u64> {
        match self {
            // 2^32 * 2^32 * 2^8 does not fit: a saturated length never equals a real one.
            Self::Raw { height, width, channels } => {
                Some((*height as u64).saturating_mul(*width as u64).saturating_mul(*channels as u64))
            }
            Self::Encoded => None,
        }
    }
}

/// Length, hash and form of one blob of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobMeta {
    /// What it is for.
    pub role: Role,
    /// Bytes.
    pub len: u64,
    /// BLAKE3 of the bytes, checked by whoever reads them.
    pub hash: Hash,
    /// How to read them.
    pub form: BlobForm,
}
