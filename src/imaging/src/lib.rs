//! Lama Cleaner's pixel pipeline: HD strategy, pad, resize, blend, cast.
//!
//! Everything around a model's forward pass that decides the bytes of the answer, equal byte for byte to
//! Lama Cleaner 1.2.5 with OpenCV's `setUseIPP(False)` and numpy 1.26 on x86-64. [`inpaint`] is the door;
//! the parts are public so that each can be compared with upstream alone.
//!
//! Does not: read files, decode or encode pictures, start threads, look at the clock, or know a model.
//! The node calls it, with the model as a closure.
//!
//! The invariant worth knowing: colour order is part of the type. Everything here is [`Rgb`], and no function
//! calls a picture [`Bgr`], which is what upstream's models return, without moving the bytes.

mod blend;
mod boxes;
pub mod codec;
mod cubic;
mod image;
mod pad;
mod patch;
mod resize;
mod strategy;
mod tensor;

pub use blend::{blend_f64, wrap_to_u8};
pub use boxes::{Rect, boxes_from_mask, crop_box};
pub use image::{Bgr, Gray, Image, ImageError, Layout, Luma, MAX_PIXELS, MAX_SIDE_PX, Rgb};
pub use pad::{PadRule, pad};
pub use patch::Patch;
pub use resize::{resize_cubic, resize_cubic_f64};
pub use strategy::{HdStrategy, InpaintError, Model, Paste, inpaint, inpaint_fixed};
pub use tensor::{
    MaskTones, ToneRange, Tones, mask_to_i64, nchw_f32_to_rgb, rgb_to_gray_f32, rgb_to_nchw_f32,
};
