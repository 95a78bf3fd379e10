//! Every message, channel by channel. A kind never changes its meaning; a new field has a default.
//!
//! Does not: check who may send what; the scheduler's core does.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use lamagrid_domain::Failure;

use crate::frame::{Frame, FrameError};

/// A channel's messages in one direction.
pub trait Message: Sized {
    /// The message as a frame, with its inline `blobs`.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] if a bound of the protocol is passed.
    fn to_frame(&self, blobs: Vec<Bytes>) -> Result<Frame, FrameError>;

    /// The message in a frame.
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
    /// The last message could not be understood.
    ProtocolFault {
        /// Why.
        failure: Failure,
    }
}
