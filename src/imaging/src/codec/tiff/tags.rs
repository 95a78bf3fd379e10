//! Tags by name, and whether Pillow and libtiff read them alike.
//!
//! Does not: know what follows from a tag (`layout`).

use std::collections::BTreeMap;

use super::ifd::{Field, File, INTEROP_IFD, kind};

pub(super) const SUBFILE_TYPE: u16 = 254;
pub(super) const WIDTH: u16 = 256;
pub(super) const HEIGHT: u16 = 257;
pub(super) const BITS_PER_SAMPLE: u16 = 258;
pub(super) const COMPRESSION: u16 = 259;
pub(super) const PHOTOMETRIC: u16 = 262;
pub(super) const FILL_ORDER: u16 = 266;
pub(super) const STRIP_OFFSETS: u16 = 273;
pub(super) const ORIENTATION: u16 = 274;
pub(super) const SAMPLES_PER_PIXEL: u16 = 277;
pub(super) const ROWS_PER_STRIP: u16 = 278;
pub(super) const STRIP_BYTE_COUNTS: u16 = 279;
pub(super) const MIN_VALUE: u16 = 280;
pub(super) const MAX_VALUE: u16 = 281;
pub(super) const X_RESOLUTION: u16 = 282;
pub(super) const Y_RESOLUTION: u16 = 283;
pub(super) const PLANAR_CONFIGURATION: u16 = 284;
pub(super) const RESOLUTION_UNIT: u16 = 296;
pub(super) const PREDICTOR: u16 = 317;
pub(super) const COLOR_MAP: u16 = 320;
pub(super) const TILE_WIDTH: u16 = 322;
pub(super) const TILE_HEIGHT: u16 = 323;
pub(super) const TILE_OFFSETS: u16 = 324;
pub(super) const TILE_BYTE_COUNTS: u16 = 325;
pub(super) const EXTRA_SAMPLES: u16 = 338;
pub(super) const SAMPLE_FORMAT: u16 = 339;
pub(super) const S_MIN_VALUE: u16 = 340;
pub(super) const S_MAX_VALUE: u16 = 341;
pub(super) const WINDOWS_MEDIA_PHOTO: u16 = 0xbc01;

struct Tags<'a> {
    file: File<'a>,
    fields: BTreeMap<u16, Field<'a>>,
    sound: bool,
}

impl Tags<'_> {
    /// The numbers of a tag, `default` where it is not there; `None` where it has none.
    fn list(&self, tag: u16, default: &[u64]) -> Option<Vec<u64>> {
        self.fields.get(&tag).map_or_else(|| Some(default.to_vec()), |&field| self.file.numbers(field))
    }

    /// The first number, which for tags with one is all that Pillow looks at.
    fn one(&self, tag: u16, default: u64) -> Option<u64> {
        self.list(tag, &[default])?.first().copied()
    }
}

/// Whether the tags are such that nothing of Pillow's or libtiff's own sense of them matters.
fn ordinary(tags: &Tags<'_>) -> bool {
    let numeric = |tag: &u16| {
        tags.fields
            .get(tag)
            .is_none_or(|field| field.kind == kind::RATIONAL || tags.file.numbers(*field).is_some())
    };
    // A pointer that belongs elsewhere; Pillow trips over it after it has decoded.
    [X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT].iter().all(numeric)
        && !tags.fields.contains_key(&INTEROP_IFD)
}

/// Whether libtiff, which reads the tags of compressed files again, finds the same in them.
fn suits_libtiff(tags: &Tags<'_>) -> bool {
    const SINGLE: [u16; 14] = [
        SUBFILE_TYPE,
        WIDTH,
        HEIGHT,
        COMPRESSION,
        PHOTOMETRIC,
        FILL_ORDER,
        ORIENTATION,
        SAMPLES_PER_PIXEL,
        ROWS_PER_STRIP,
        PLANAR_CONFIGURATION,
        RESOLUTION_UNIT,
        PREDICTOR,
        TILE_WIDTH,
        TILE_HEIGHT,
    ];
    const LISTS: [u16; 12] = [
        MIN_VALUE,
        MAX_VALUE,
        S_MIN_VALUE,
        S_MAX_VALUE,
        BITS_PER_SAMPLE,
        STRIP_OFFSETS,
        STRIP_BYTE_COUNTS,
        COLOR_MAP,
        TILE_OFFSETS,
        TILE_BYTE_COUNTS,
        EXTRA_SAMPLES,
        SAMPLE_FORMAT,
    ];
    let typed = |tag: &u16| {
        tags.fields.get(tag).is_none_or(|field| {
            matches!(field.kind, kind::SHORT | kind::LONG) || (tags.file.big && field.kind == kind::LONG8)
        })
    };
    let single = |tag: &u16| tags.list(*tag, &[0]).is_some_and(|numbers| numbers.len() == 1);
    // Pillow counts rows in signed numbers; the largest unsigned one stands for all rows.
    let rows = tags.one(ROWS_PER_STRIP, 1).is_some_and(|rows| rows == 0xffff_ffff || rows <= 0x7fff_ffff);
    // It does not take a palette for bits that it has to guess.
    let palette = !tags.fields.contains_key(&COLOR_MAP) || tags.fields.contains_key(&BITS_PER_SAMPLE);
    tags.sound
        && tags.file.regular
        && palette
        && rows
        && SINGLE.iter().chain(&LISTS).all(typed)
        && SINGLE.iter().all(single)
}

