//! EXIF blocks: reads the orientation, and rewrites the block as Pillow does.
//!
//! Does not: know picture formats. Readers pass the TIFF structure of the block, writers store it.
//!
//! Upstream saves Pillow's `Exif` object, not the original block, so the result must equal `Exif.tobytes`: sorted
//! tags, types from Pillow's registry or guessed from the values, reduced ratios, no thumbnail. Blocks that Pillow
//! rejects, or converts in a way that is not implemented here, are refused.
//!
//! Source: Pillow 10.4 `Image.Exif`, `TiffImagePlugin.ImageFileDirectory_v2`, `TiffTags`.

use lamagrid_domain::PictureFormat;

use super::ifd::{
    self, Directory, EXIF_IFD, Entry, Field, File, GPS_IFD, INTEROP_IFD, Order, Overflow, Value, kind,
};
use super::{CodecError, Tags};

/// The prefix of the TIFF structure in a JPEG segment.
pub(super) const PREFIX: &[u8] = b"Exif\0\0";

/// The block that Pillow writes for an empty `Exif` object.
pub(super) const EMPTY: &[u8] = b"MM\0*\0\0\0\x08\0\0\0\0\0\0";

/// Maximum size of a block's values, bytes. Entries may share data, so a small block could grow very large.
const MAX_BYTES: usize = 1 << 22;

const STRIP_OFFSETS: u16 = 273;
const ORIENTATION: u16 = 274;

/// The block without its prefix, if it has one.
pub(super) fn strip_prefix(block: &[u8]) -> &[u8] {
    block.strip_prefix(PREFIX).unwrap_or(block)
}

/// The orientation and the EXIF block of a picture.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Exif {
    /// The orientation that `ImageOps.exif_transpose` applies: 1 to 8; 1 if no valid one is stated.
    pub(super) orientation: u8,
    /// The TIFF structure that Pillow writes back; `None` if the file has none, or for PNG if it has no tags, because
    /// Pillow then writes no chunk. A TIFF file's directory is unchanged; the writer selects tags from it.
    pub(super) block: Option<Vec<u8>>,
}

/// Reads the tags of a picture as Pillow's `getexif` does: XMP is used if EXIF has no orientation.
///
/// # Errors
/// [`CodecError::Malformed`] if Pillow cannot read the block; [`CodecError::Unsupported`] if Pillow cannot write it
/// back, because it then does not turn the picture, or if the conversion is not implemented here.
pub(super) fn read(tags: &Tags, format: PictureFormat) -> Result<Exif, CodecError> {
    let refused = |what: &str| CodecError::Unsupported { format, what: format!("EXIF {what}") };
    if let Some(fault) = tags.fault {
        return Err(CodecError::Unsupported { format, what: fault.to_owned() });
    }
    let mut stated = None;
    let mut written = Directory::new();
    let mut order = Order::Big;
    let block = tags.metadata.exif.as_deref().filter(|block| !block.is_empty());
    if let Some(block) = block {
        let tiff = open(block).ok_or_else(|| CodecError::Malformed {
            format,
            reason: "its EXIF block is no TIFF structure".into(),
        })?;
        order = tiff.order;
        stated = tiff.directory(tiff.first).0.remove(&ORIENTATION).map(|value| tiff.number(value));
        if format != PictureFormat::Tiff {
            written = tiff.rewrite(tiff.first, Group::Image, &mut { MAX_BYTES }).map_err(refused)?;
        }
    }
    if let (None, Some(digit)) = (stated, xmp_orientation(tags)) {
        stated = Some(digit.into());
        let value = Value::Plain(order.u16_bytes(digit.into()).to_vec().into());
        written.insert(ORIENTATION, Entry { kind: kind::SHORT, value });
    }
    let orientation = (2..=8).find(|&known| Some(f64::from(known)) == stated).unwrap_or(1);
    let block = if format == PictureFormat::Tiff {
        block.map(<[u8]>::to_vec)
    } else if written.is_empty() && (block.is_none() || format == PictureFormat::Png) {
        None
    } else {
        let written = ifd::write(order, &written).map_err(|overflow| match overflow {
            Overflow::Bytes => refused("that is too long"),
            Overflow::Tags => refused("with too many tags"),
        })?;
        Some(written)
    };
    Ok(Exif { orientation, block })
}

/// Like [`read`], but sets the orientation tag to 1. A block that [`read`] refuses is left out; if it states its
/// orientation in the standard form, that is still applied, because viewers apply it.
pub(super) fn read_upright(tags: &Tags, format: PictureFormat) -> Exif {
    match read(tags, format) {
        Ok(exif) => Exif { block: exif.block.map(set_upright), ..exif },
        Err(_) => Exif { orientation: usual_orientation(tags).unwrap_or(1), block: None },
    }
}

/// Sets the orientation tag of the block to 1, if it has one.
fn set_upright(block: Vec<u8>) -> Vec<u8> {
    let Some(file) = File::open(&block) else { return block };
    let mut directory = file.copy(|_| true);
    if !directory.contains_key(&ORIENTATION) {
        return block;
    }
    directory.insert(ORIENTATION, Entry::shorts(file.order, &[1]));
    // The copy is at most as long as the original, which did fit.
    ifd::write(file.order, &directory).unwrap_or_default()
}

/// The orientation of a block that states it as one number of 16 bits.
fn usual_orientation(tags: &Tags) -> Option<u8> {
    let file = open(tags.metadata.exif.as_deref()?)?;
    let field =
        file.directory(file.first).0.remove(&ORIENTATION).filter(|field| field.kind == kind::SHORT)?;
    let stated = u8::try_from(*file.numbers(field)?.first()?).ok()?;
    (2..=8).contains(&stated).then_some(stated)
}

/// The digit after `tiff:Orientation="` or `tiff:Orientation>`.
fn xmp_orientation(tags: &Tags) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    let xmp = tags.xmp.as_deref()?;
    memchr::memmem::find_iter(xmp, NAME).find_map(|at| {
        let rest = &xmp[at + NAME.len()..];
        let digit = *rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?.first()?;
        digit.is_ascii_digit().then(|| digit - b'0')
    })
}

/// The section of Pillow's tag registry that applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Image,
    Exif,
    Gps,
    Interop,
}

impl Group {
    /// The type of a tag in Pillow's registry, and whether it has a single value.
    fn registered(self, tag: u16) -> Option<(u16, bool)> {
        Some(match self {
            Self::Image => match tag {
                269..=272 | 285 | 305 | 306 | 315 | 316 | 333 | 337 | 33432 => (kind::ASCII, true),
                255 | 259 | 262..=266 | 274 | 277 | 284 | 290 | 296 | 317 | 332 | 334 | 512 | 515 | 531 => {
                    (kind::SHORT, true)
                }
                50741 => (kind::SHORT, true),
                258 | 280 | 281 | 291 | 297 | 301 | 320 | 321 | 336 | 338 | 339 | 342 | 517 | 518 | 530 => {
                    (kind::SHORT, false)
                }
                254 | 256 | 257 | 278 | 288 | 289 | 292 | 293 | 322 | 323 | 513 | 514 => (kind::LONG, true),
                EXIF_IFD | GPS_IFD | INTEROP_IFD | 45057 | 45060 | 45313 | 45569 | 45572 => {
                    (kind::LONG, true)
                }
                STRIP_OFFSETS | 279 | 324 | 325 | 330 | 519..=521 | 50838 => (kind::LONG, false),
                282 | 283 | 286 | 287 | 45570 | 45571 | 45574 | 50780 => (kind::RATIONAL, true),
                318 | 319 | 529 | 532 => (kind::RATIONAL, false),
                45573 | 45575..=45581 => (kind::SIGNED_RATIONAL, true),
                700 | 34377 => (kind::BYTE, false),
                347 | 33723 | 34675 | 36864 | 37724 | 40960 | 41730 => (kind::UNDEFINED, true),
                45056 | 45058 | 45059 | 50839 => (kind::UNDEFINED, true),
                340 | 341 => (kind::DOUBLE, false),
                _ => return None,
            },
            Self::Exif => match tag {
                36864 | 40960 | 41730 => (kind::UNDEFINED, true),
                INTEROP_IFD => (kind::LONG, true),
                _ => return None,
            },
            Self::Gps => match tag {
                0 | 5 => (kind::BYTE, true),
                1 | 3 | 8..=10 | 12 | 14 | 16 | 18 | 19 | 21 | 23 | 25 | 29 => (kind::ASCII, true),
                2 | 4 | 7 | 20 | 22 => (kind::RATIONAL, false),
                6 | 11 | 13 | 15 | 17 | 24 | 26 => (kind::RATIONAL, true),
                27 | 28 => (kind::UNDEFINED, true),
                30 => (kind::SHORT, true),
                _ => return None,
            },
            Self::Interop => match tag {
                1 => (kind::ASCII, true),
                2 => (kind::UNDEFINED, true),
                _ => return None,
            },
        })
    }

    /// The directory that a tag points to.
    fn below(self, tag: u16) -> Option<Self> {
        match (self, tag) {
            (Self::Image, EXIF_IFD) => Some(Self::Exif),
            (Self::Image, GPS_IFD) => Some(Self::Gps),
            (Self::Exif, INTEROP_IFD) => Some(Self::Interop),
            _ => None,
        }
    }
}

/// Opens a block. BigTIFF is refused, because Pillow accepts its magic number but fails later.
fn open(block: &[u8]) -> Option<File<'_>> {
    File::open(block).filter(|file| !file.big)
}

/// Conversion of values to the types of the registry or to those that Pillow guesses.
impl<'a> File<'a> {
    /// The integers of a value; `None` for other types.
    fn integers(&self, field: Field<'a>) -> Option<Vec<i64>> {
        let order = self.order;
        Some(match field.kind {
            kind::SIGNED_BYTE => field.data.iter().map(|&byte| i64::from(byte.cast_signed())).collect(),
            kind::SHORT => field.data.as_chunks().0.iter().map(|&v| order.u16(v).into()).collect(),
            kind::SIGNED_SHORT => {
                field.data.as_chunks().0.iter().map(|&v| order.u16(v).cast_signed().into()).collect()
            }
            kind::LONG | kind::IFD => field.data.as_chunks().0.iter().map(|&v| order.u32(v).into()).collect(),
            kind::SIGNED_LONG => {
                field.data.as_chunks().0.iter().map(|&v| order.u32(v).cast_signed().into()).collect()
            }
            // Exceeds every type that can be written, so saturating loses nothing.
            kind::LONG8 => field
                .data
                .as_chunks()
                .0
                .iter()
                .map(|&v| order.u64(v).try_into().unwrap_or(i64::MAX))
                .collect(),
            _ => return None,
        })
    }

    /// The numerators and denominators of a value; `None` for other types.
    fn ratios(&self, field: Field<'a>) -> Option<Vec<[i64; 2]>> {
        let parts = match field.kind {
            kind::RATIONAL => self.integers(Field { kind: kind::LONG, ..field })?,
            kind::SIGNED_RATIONAL => self.integers(Field { kind: kind::SIGNED_LONG, ..field })?,
            _ => return None,
        };
        Some(parts.as_chunks().0.to_vec())
    }

    fn floats(&self, field: Field<'a>) -> Option<Vec<f64>> {
        let order = self.order;
        Some(match field.kind {
            kind::FLOAT => {
                field.data.as_chunks().0.iter().map(|&v| f32::from_bits(order.u32(v)).into()).collect()
            }
            kind::DOUBLE => field.data.as_chunks().0.iter().map(|&v| f64::from_bits(order.u64(v))).collect(),
            _ => return None,
        })
    }

    /// The first number of a value; NaN for text and bytes, because in Pillow they never equal a number.
    fn number(&self, field: Field<'a>) -> f64 {
        let integer = self.integers(field).and_then(|values| Some(*values.first()? as f64));
        let ratio =
            || self.ratios(field).and_then(|values| values.first().map(|&[n, d]| n as f64 / d as f64));
        let float = || self.floats(field).and_then(|values| values.first().copied());
        integer.or_else(ratio).or_else(float).unwrap_or(f64::NAN)
    }

    /// Converts a directory and its subdirectories for writing. `budget` is the remaining size of values, bytes.
    fn rewrite(&self, at: u64, group: Group, budget: &mut usize) -> Result<Directory<'a>, &'static str> {
        let mut written = Directory::new();
        for (tag, mut field) in self.directory(at).0 {
            *budget = budget.checked_sub(field.data.len()).ok_or("that is too long")?;
            let registered = group.registered(tag);
            // Text and bytes count as a single value of any length.
            let text = matches!(field.kind, kind::BYTE | kind::ASCII | kind::UNDEFINED);
            if let (Some((_, true)), false, Some(size)) = (registered, text, kind::size(field.kind)) {
                field.data = &field.data[..size];
            }
            let entry = if let Some(below) = group.below(tag) {
                let at = match self.integers(field).as_deref() {
                    Some(&[at]) => u32::try_from(at).map_err(|_| "pointer out of range")?.into(),
                    _ => return Err("pointer that is no number"),
                };
                Entry { kind: kind::LONG, value: Value::Directory(self.rewrite(at, below, budget)?) }
            } else if (group, tag) == (Group::Image, STRIP_OFFSETS) {
                return Err("with strips");
            } else {
                self.convert(field, registered.map(|(kind, _)| kind))?
            };
            written.insert(tag, entry);
        }
        Ok(written)
    }

    /// Converts a value to its registered type, or to the type that Pillow guesses.
    fn convert(&self, field: Field<'a>, registered: Option<u16>) -> Result<Entry<'static>, &'static str> {
        let (kind, data) = if let Some(values) = self.integers(field) {
            let within = |range: std::ops::Range<i64>| values.iter().all(|value| range.contains(value));
            let guessed = if within(0..1 << 16) {
                kind::SHORT
            } else if within(1 - (1 << 15)..1 << 15) {
                kind::SIGNED_SHORT
            } else if within(0..i64::MAX) {
                kind::LONG
            } else {
                kind::SIGNED_LONG
            };
            let kind = registered.unwrap_or(guessed);
            (kind, self.pack(kind, &values)?)
        } else if let Some(values) = self.ratios(field) {
            let guessed = if values.iter().all(|&[n, d]| d != 0 && (n == 0 || (n < 0) == (d < 0))) {
                kind::RATIONAL
            } else {
                kind::SIGNED_RATIONAL
            };
            match registered.unwrap_or(guessed) {
                kind @ kind::RATIONAL => (kind, self.pack(kind::LONG, &reduced(&values).concat())?),
                kind @ kind::SIGNED_RATIONAL => (kind, self.pack(kind::SIGNED_LONG, &values.concat())?),
                _ => return Err("ratio where none belongs"),
            }
        } else if let Some(values) = self.floats(field) {
            if !matches!(registered, None | Some(kind::DOUBLE)) {
                return Err("float where none belongs");
            }
            (kind::DOUBLE, values.iter().flat_map(|value| self.order.u64_bytes(value.to_bits())).collect())
        } else if field.kind == kind::ASCII {
            if !matches!(registered, None | Some(kind::ASCII)) {
                return Err("text where none belongs");
            }
            let text = field.data.strip_suffix(b"\0").unwrap_or(field.data);
            // Pillow reads Latin-1 and writes ASCII.
            let ascii = text.iter().map(|&byte| if byte.is_ascii() { byte } else { b'?' });
            (kind::ASCII, ascii.chain([0]).collect())
        } else {
            let kind = registered.unwrap_or(kind::BYTE);
            if !matches!(kind, kind::BYTE | kind::UNDEFINED) {
                return Err("bytes where none belong");
            }
            (kind, field.data.to_vec())
        };
        Ok(Entry { kind, value: Value::Plain(data.into()) })
    }

    /// Encodes integers in a type of 2 or 4 bytes.
    fn pack(&self, kind: u16, values: &[i64]) -> Result<Vec<u8>, &'static str> {
        let mut packed = Vec::with_capacity(4 * values.len());
        for &value in values {
            let range = "number out of its type's range";
            match kind {
                kind::SHORT => packed.extend(self.order.u16_bytes(u16::try_from(value).map_err(|_| range)?)),
                kind::SIGNED_SHORT => {
                    let value = i16::try_from(value).map_err(|_| range)?;
                    packed.extend(self.order.u16_bytes(value.cast_unsigned()));
                }
                kind::LONG => packed.extend(self.order.u32_bytes(u32::try_from(value).map_err(|_| range)?)),
                kind::SIGNED_LONG => {
                    let value = i32::try_from(value).map_err(|_| range)?;
                    packed.extend(self.order.u32_bytes(value.cast_unsigned()));
                }
                _ => return Err("number where none belongs"),
            }
        }
        Ok(packed)
    }
}

/// Reduces ratios to lowest terms, with the sign in the numerator; those with denominator 0 are unchanged.
fn reduced(ratios: &[[i64; 2]]) -> Vec<[i64; 2]> {
    let divisor = |mut a: i64, mut b: i64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a.abs()
    };
    let reduce = |&[n, d]: &[i64; 2]| {
        let by = divisor(n, d) * d.signum();
        if by == 0 { [n, d] } else { [n / by, d / by] }
    };
    ratios.iter().map(reduce).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Metadata;

    /// A big-endian block with entries of (tag, type, count, 4 bytes), then what follows the directory.
    fn block(entries: &[(u16, u16, u32, [u8; 4])], rest: &[u8]) -> Vec<u8> {
        let mut block = b"MM\0*\0\0\0\x08".to_vec();
        block.extend((entries.len() as u16).to_be_bytes());
        for (tag, kind, count, field) in entries {
            block.extend([tag.to_be_bytes(), kind.to_be_bytes()].concat());
            block.extend(count.to_be_bytes());
            block.extend(field);
        }
        block.extend([0; 4]);
        block.extend(rest);
        block
    }

    fn read_as(exif: Option<&[u8]>, xmp: Option<&[u8]>, format: PictureFormat) -> Result<Exif, CodecError> {
        let metadata = Metadata { exif: exif.map(<[u8]>::to_vec), parameters: None };
        read(&Tags { metadata, xmp: xmp.map(<[u8]>::to_vec), fault: None }, format)
    }

    fn read_block(exif: &[u8]) -> Result<Exif, CodecError> {
        read_as(Some(exif), None, PictureFormat::Jpeg)
    }

    fn orientation(kind: u16, count: u32, field: [u8; 4], rest: &[u8]) -> Option<u8> {
        Some(read_block(&block(&[(ORIENTATION, kind, count, field)], rest)).ok()?.orientation)
    }

    #[test]
    fn an_orientation_counts_whatever_number_it_is() {
        for (kind, field, stated) in [
            (kind::SHORT, [0, 6, 0, 0], 6),
            (kind::SHORT, [0, 0, 0, 0], 1),
            (kind::SHORT, [0, 9, 0, 0], 1),
            (kind::LONG, [0, 0, 0, 8], 8),
            (kind::SIGNED_BYTE, [3, 0, 0, 0], 3),
            (kind::SIGNED_SHORT, [0, 5, 0, 0], 5),
        ] {
            assert_eq!(orientation(kind, 1, field, &[]), Some(stated), "type {kind}");
        }
        assert_eq!(orientation(kind::SHORT, 2, [0, 6, 0, 3], &[]), Some(6), "the first of two");
        assert_eq!(orientation(99, 1, [0, 6, 0, 0], &[]), Some(1), "a type that is skipped");
        // Pillow cannot write these back, so that they are not read.
        assert_eq!(orientation(kind::BYTE, 1, [6, 0, 0, 0], &[]), None);
        assert_eq!(orientation(kind::FLOAT, 1, 6f32.to_be_bytes(), &[]), None);
    }

    #[test]
    fn what_points_outside_ends_its_directory() {
        let first = (271, kind::ASCII, 2, *b"A\0\0\0");
        let last = (ORIENTATION, kind::SHORT, 1, [0, 6, 0, 0]);
        for outside in [
            (272, kind::ASCII, u32::MAX, [0; 4]),
            (272, kind::RATIONAL, u32::MAX, [0xff; 4]),
            (272, kind::ASCII, 9, [0xff; 4]),
        ] {
            let exif = read_block(&block(&[first, outside, last], &[])).expect("what comes before");
            assert_eq!(exif, Exif { orientation: 1, block: Some(block(&[first], &[])) });
        }
    }

    #[test]
    fn directories_that_point_at_themselves_end() {
        let exif =
            read_block(&block(&[(EXIF_IFD, kind::LONG, 1, [0, 0, 0, 8])], &[])).expect("two directories");
        // The directory below has the pointer as a number that means nothing there.
        let below = [&[0, 1, 0x87, 0x69, 0, 3, 0, 0, 0, 1, 0, 8, 0, 0][..], &[0; 4]].concat();
        assert_eq!(exif.block, Some(block(&[(EXIF_IFD, kind::LONG, 1, [0, 0, 0, 26])], &below)));
        for at in [0, 1, 7, 25, 26, u32::MAX] {
            let block = block(&[(EXIF_IFD, kind::LONG, 1, at.to_be_bytes())], &[]);
            let _ = read_block(&block);
        }
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_survived() {
        let entries = [
            (271, kind::ASCII, 9, [0, 0, 0, 80]),
            (ORIENTATION, kind::SHORT, 1, [0, 6, 0, 0]),
            (282, kind::RATIONAL, 1, [0, 0, 0, 90]),
            (EXIF_IFD, kind::LONG, 1, [0, 0, 0, 8]),
            (GPS_IFD, kind::LONG, 1, [0, 0, 0, 20]),
        ];
        let whole = block(&entries, &[7; 40]);
        for end in 0..whole.len() {
            let _ = read_block(&whole[..end]);
            for value in 0..=255 {
                let mut changed = whole.clone();
                changed[end] = value;
                let _ = read_block(&changed);
            }
        }
    }

    #[test]
    fn shared_values_do_not_multiply_without_bound() {
        let rest = vec![1; 1 << 16];
        let shared = |tag| (tag, kind::ASCII, 1 << 16, [0, 0, 0, 8]);
        let entries: Vec<_> = (1000..1100).map(shared).collect();
        let refused = read_block(&block(&entries, &rest));
        assert!(matches!(refused, Err(CodecError::Unsupported { .. })), "{refused:?}");
    }

    #[test]
    fn xmp_counts_where_exif_has_no_orientation() {
        let png = |exif, xmp: &[u8]| read_as(exif, Some(xmp), PictureFormat::Png).expect("tags");
        let written = Some(block(&[(ORIENTATION, kind::SHORT, 1, [0, 6, 0, 0])], &[]));
        for xmp in
            [&b"tiff:Orientation tiff:Orientation=\"6\""[..], b"<tiff:Orientation>6</tiff:Orientation>"]
        {
            assert_eq!(png(None, xmp), Exif { orientation: 6, block: written.clone() });
        }
        assert_eq!(png(None, b"tiff:Orientation='6'"), Exif { orientation: 1, block: None });
        let upright = block(&[(ORIENTATION, kind::SHORT, 1, [0, 1, 0, 0])], &[]);
        let exif = png(Some(&upright), b"tiff:Orientation=\"6\"");
        assert_eq!(exif, Exif { orientation: 1, block: Some(upright) });
    }

    #[test]
    fn png_gets_no_block_without_tags() {
        assert_eq!(read_as(Some(EMPTY), None, PictureFormat::Png).expect("no tags").block, None);
        assert_eq!(read_block(EMPTY).expect("no tags").block.as_deref(), Some(EMPTY));
        assert_eq!(read_as(None, None, PictureFormat::Jpeg).expect("nothing").block, None);
        for wrong in [&b"MM\0*"[..], b"JPEG of a cat", b"II+\0\x08\0\0\0\0\0\0\0\0\0\0\0"] {
            assert!(matches!(read_block(wrong), Err(CodecError::Malformed { .. })));
        }
    }

    fn upright(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Exif {
        let metadata = Metadata { exif: exif.map(<[u8]>::to_vec), parameters: None };
        let tags = Tags { metadata, xmp: xmp.map(<[u8]>::to_vec), fault: None };
        read_upright(&tags, PictureFormat::Png)
    }

    #[test]
    fn an_upright_answer_says_that_it_is() {
        let make = (271, kind::ASCII, 2, *b"A\0\0\0");
        let stated = |stated| (ORIENTATION, kind::SHORT, 1, [0, stated, 0, 0]);
        for turned in 2..=8 {
            let exif = upright(Some(&block(&[make, stated(turned)], &[])), None);
            assert_eq!(exif, Exif { orientation: turned, block: Some(block(&[make, stated(1)], &[])) });
        }
        for odd in [0, 9] {
            let exif = upright(Some(&block(&[stated(odd)], &[])), None);
            assert_eq!(exif, Exif { orientation: 1, block: Some(block(&[stated(1)], &[])) });
        }
        let plain = block(&[make], &[]);
        assert_eq!(upright(Some(&plain), None), Exif { orientation: 1, block: Some(plain) });
        let exif = upright(None, Some(b"tiff:Orientation=\"6\""));
        assert_eq!(exif, Exif { orientation: 6, block: Some(block(&[stated(1)], &[])) });
        assert_eq!(upright(None, None), Exif { orientation: 1, block: None });
    }

    #[test]
    fn a_block_that_cannot_be_read_is_left_out_of_an_upright_answer() {
        for wrong in [&b"MM\0*"[..], b"JPEG of a cat", b"II+\0\x08\0\0\0\0\0\0\0\0\0\0\0", &[0xff; 99]] {
            assert_eq!(upright(Some(wrong), None), Exif { orientation: 1, block: None });
        }
        // Pillow cannot write these back.
        let float = (282, kind::ASCII, 2, *b"1\0\0\0");
        let turned = block(&[(ORIENTATION, kind::SHORT, 1, [0, 6, 0, 0]), float], &[]);
        assert_eq!(upright(Some(&turned), None), Exif { orientation: 6, block: None });
        let byte = block(&[(ORIENTATION, kind::BYTE, 1, [6, 0, 0, 0])], &[]);
        assert_eq!(upright(Some(&byte), None), Exif { orientation: 1, block: None });
    }
}
