//! Reads tags by name, and checks whether Pillow and libtiff read them the same way.
//!
//! Does not: interpret tags; `layout` does.

use std::collections::BTreeMap;

use crate::codec::ifd::{Field, File, INTEROP_IFD, Order, kind};

/// The numbers of the tags.
pub(super) mod tag {
    pub(in super::super) const SUBFILE_TYPE: u16 = 254;
    pub(in super::super) const WIDTH: u16 = 256;
    pub(in super::super) const HEIGHT: u16 = 257;
    pub(in super::super) const BITS_PER_SAMPLE: u16 = 258;
    pub(in super::super) const COMPRESSION: u16 = 259;
    pub(in super::super) const PHOTOMETRIC: u16 = 262;
    pub(in super::super) const FILL_ORDER: u16 = 266;
    pub(in super::super) const STRIP_OFFSETS: u16 = 273;
    pub(in super::super) const ORIENTATION: u16 = 274;
    pub(in super::super) const SAMPLES_PER_PIXEL: u16 = 277;
    pub(in super::super) const ROWS_PER_STRIP: u16 = 278;
    pub(in super::super) const STRIP_BYTE_COUNTS: u16 = 279;
    pub(in super::super) const MIN_VALUE: u16 = 280;
    pub(in super::super) const MAX_VALUE: u16 = 281;
    pub(in super::super) const X_RESOLUTION: u16 = 282;
    pub(in super::super) const Y_RESOLUTION: u16 = 283;
    pub(in super::super) const PLANAR_CONFIGURATION: u16 = 284;
    pub(in super::super) const RESOLUTION_UNIT: u16 = 296;
    pub(in super::super) const PREDICTOR: u16 = 317;
    pub(in super::super) const COLOR_MAP: u16 = 320;
    pub(in super::super) const TILE_WIDTH: u16 = 322;
    pub(in super::super) const TILE_HEIGHT: u16 = 323;
    pub(in super::super) const TILE_OFFSETS: u16 = 324;
    pub(in super::super) const TILE_BYTE_COUNTS: u16 = 325;
    pub(in super::super) const EXTRA_SAMPLES: u16 = 338;
    pub(in super::super) const SAMPLE_FORMAT: u16 = 339;
    pub(in super::super) const S_MIN_VALUE: u16 = 340;
    pub(in super::super) const S_MAX_VALUE: u16 = 341;
    pub(in super::super) const WINDOWS_MEDIA_PHOTO: u16 = 0xbc01;
}

/// The tags of a file's first picture.
pub(super) struct Tags<'a> {
    file: File<'a>,
    fields: BTreeMap<u16, Field<'a>>,
    /// Whether the directory is well-formed; see [`File::directory`].
    sound: bool,
}

impl<'a> Tags<'a> {
    pub(super) fn of(file: File<'a>) -> Self {
        let (fields, sound) = file.directory(file.first);
        Self { file, fields, sound }
    }

    pub(super) fn order(&self) -> Order {
        self.file.order
    }

    pub(super) fn has(&self, tag: u16) -> bool {
        self.fields.contains_key(&tag)
    }

    /// The numbers of a tag, or `default` if it is absent; `None` if it is not numeric.
    pub(super) fn list(&self, tag: u16, default: &[u64]) -> Option<Vec<u64>> {
        self.fields.get(&tag).map_or_else(|| Some(default.to_vec()), |&field| self.file.numbers(field))
    }

    /// The first number of a tag; Pillow ignores others of tags with a single value.
    pub(super) fn one(&self, tag: u16, default: u64) -> Option<u64> {
        self.list(tag, &[default])?.first().copied()
    }

    /// Whether Pillow handles the tags without an error.
    pub(super) fn are_ordinary(&self) -> bool {
        let numeric = |tag: &u16| {
            self.fields
                .get(tag)
                .is_none_or(|field| field.kind == kind::RATIONAL || self.file.numbers(*field).is_some())
        };
        // Pillow fails after decoding if the resolution is not numeric or the interoperability pointer is misplaced.
        [tag::X_RESOLUTION, tag::Y_RESOLUTION, tag::RESOLUTION_UNIT].iter().all(numeric)
            && !self.has(INTEROP_IFD)
    }

    /// Whether libtiff, which reads the tags of compressed files again, reads the same values.
    pub(super) fn suit_libtiff(&self) -> bool {
        const SINGLE: [u16; 14] = [
            tag::SUBFILE_TYPE,
            tag::WIDTH,
            tag::HEIGHT,
            tag::COMPRESSION,
            tag::PHOTOMETRIC,
            tag::FILL_ORDER,
            tag::ORIENTATION,
            tag::SAMPLES_PER_PIXEL,
            tag::ROWS_PER_STRIP,
            tag::PLANAR_CONFIGURATION,
            tag::RESOLUTION_UNIT,
            tag::PREDICTOR,
            tag::TILE_WIDTH,
            tag::TILE_HEIGHT,
        ];
        const LISTS: [u16; 12] = [
            tag::MIN_VALUE,
            tag::MAX_VALUE,
            tag::S_MIN_VALUE,
            tag::S_MAX_VALUE,
            tag::BITS_PER_SAMPLE,
            tag::STRIP_OFFSETS,
            tag::STRIP_BYTE_COUNTS,
            tag::COLOR_MAP,
            tag::TILE_OFFSETS,
            tag::TILE_BYTE_COUNTS,
            tag::EXTRA_SAMPLES,
            tag::SAMPLE_FORMAT,
        ];
        let typed = |tag: &u16| {
            self.fields.get(tag).is_none_or(|field| {
                matches!(field.kind, kind::SHORT | kind::LONG) || (self.file.big && field.kind == kind::LONG8)
            })
        };
        let single = |tag: &u16| self.list(*tag, &[0]).is_some_and(|numbers| numbers.len() == 1);
        // Pillow uses signed row counts; the largest unsigned number means all rows.
        let rows =
            self.one(tag::ROWS_PER_STRIP, 1).is_some_and(|rows| rows == 0xffff_ffff || rows <= 0x7fff_ffff);
        // libtiff does not accept a palette without an explicit depth.
        let palette = !self.has(tag::COLOR_MAP) || self.has(tag::BITS_PER_SAMPLE);
        self.sound
            && self.file.regular
            && palette
            && rows
            && SINGLE.iter().chain(&LISTS).all(typed)
            && SINGLE.iter().all(single)
    }
}
