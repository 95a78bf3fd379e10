//! Defines every message, channel by channel. The meaning of a kind never changes, and each new field has a default.
//!
//! Does not: check who may send a message; the scheduler's core does.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use lamagrid_domain::Failure;

use crate::frame::{Frame, FrameError};

/// The messages of one channel in one direction.
pub trait Message: Sized {
    /// Encodes the message as a frame, with its inline `blobs`.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] if a limit of the protocol is exceeded.
    fn to_frame(&self, blobs: Vec<Bytes>) -> Result<Frame, FrameError>;

    /// Decodes the message of a frame.
    ///
    /// # Errors
    /// [`FrameError::UnknownKind`] or [`FrameError::Header`].
    fn from_frame(frame: &Frame) -> Result<Self, FrameError>;
}

macro_rules! channel {
    ($(#[$doc:meta])* $name:ident { $($kind:literal $variant:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        #[expect(missing_docs, reason = "each variant carries the struct of its name, which says it")]
        pub enum $name {
            $($variant($variant),)+
        }

        impl Message for $name {
            fn to_frame(&self, blobs: Vec<Bytes>) -> Result<Frame, FrameError> {
                match self {
                    $(Self::$variant(body) => Frame::encode($kind, body, blobs),)+
                }
            }

            fn from_frame(frame: &Frame) -> Result<Self, FrameError> {
                match frame.kind {
                    $($kind => frame.decode().map(Self::$variant),)+
                    kind => Err(FrameError::UnknownKind { kind }),
                }
            }
        }

        $(impl From<$variant> for $name {
            fn from(body: $variant) -> Self {
                Self::$variant(body)
            }
        })+
    };
}

macro_rules! bodies {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })+) => {
        $($(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        })+
    };
}

mod admin;
mod client;
mod node;

pub use admin::*;
pub use client::*;
pub use node::*;

bodies! {
    /// The last message could not be decoded.
    ProtocolFault {
        /// The error.
        failure: Failure,
    }
}
