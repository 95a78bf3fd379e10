//! Describes the image bytes of a task: role, length, hash and form. The bytes themselves travel separately.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A BLAKE3 hash of a blob or a payload.
pub type Hash = serde_bytes::ByteArray<32>;

/// The purpose of a blob. A closed list, because the role is also the blob's file name in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The picture to inpaint.
    Image,
    /// The area to inpaint: white pixels are the hole.
    Mask,
    /// The example picture of paint-by-example.
    Example,
    /// The picture that the node produced.
    Result,
}

impl Role {
    /// The role's name, which is also its file name in the spool.
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

/// The encoding of a blob's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlobForm {
    /// Row-major u8 samples `(height, width, channels)`. 3 channels are RGB; in results BGR, as upstream returns them.
    Raw {
        /// Rows, in pixels.
        height: u32,
        /// Columns, in pixels.
        width: u32,
        /// 1 or 3.
        channels: u8,
    },
    /// A picture file, as uploaded or as returned to the user.
    Encoded,
}

impl BlobForm {
    /// The byte length that the form implies; `None` for [`BlobForm::Encoded`].
    #[must_use]
    pub const fn raw_len(&self) -> Option<u64> {
        match self {
            // The product may exceed 2^64. It saturates then, and a saturated length never equals a real one.
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
    /// The purpose of the blob.
    pub role: Role,
    /// Length in bytes.
    pub len: u64,
    /// BLAKE3 of the bytes, checked by each reader.
    pub hash: Hash,
    /// The encoding of the bytes.
    pub form: BlobForm,
}
