//! Tag directories (IFDs) of TIFF files and EXIF blocks: reads them as Pillow does, copies and writes them.
//!
//! Does not: interpret tags, except those that point to other directories. Values keep the byte order of their file,
//! so they must be written in that order.
//!
//! Source: Pillow 10.4 `TiffImagePlugin.ImageFileDirectory_v2`.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// Numbers of value types.
pub(super) mod kind {
    pub(in crate::codec) const BYTE: u16 = 1;
    pub(in crate::codec) const ASCII: u16 = 2;
    pub(in crate::codec) const SHORT: u16 = 3;
    pub(in crate::codec) const LONG: u16 = 4;
    pub(in crate::codec) const RATIONAL: u16 = 5;
    pub(in crate::codec) const SIGNED_BYTE: u16 = 6;
    pub(in crate::codec) const UNDEFINED: u16 = 7;
    pub(in crate::codec) const SIGNED_SHORT: u16 = 8;
    pub(in crate::codec) const SIGNED_LONG: u16 = 9;
    pub(in crate::codec) const SIGNED_RATIONAL: u16 = 10;
    pub(in crate::codec) const FLOAT: u16 = 11;
    pub(in crate::codec) const DOUBLE: u16 = 12;
    pub(in crate::codec) const IFD: u16 = 13;
    pub(in crate::codec) const LONG8: u16 = 16;

    /// Size of one value, bytes; `None` for a type that Pillow ignores.
    pub(in crate::codec) const fn size(kind: u16) -> Option<usize> {
        Some(match kind {
            BYTE | ASCII | SIGNED_BYTE | UNDEFINED => 1,
            SHORT | SIGNED_SHORT => 2,
            LONG | SIGNED_LONG | FLOAT | IFD => 4,
            RATIONAL | SIGNED_RATIONAL | DOUBLE | LONG8 => 8,
            _ => return None,
        })
    }
}

/// Tags that point to a directory.
pub(super) const EXIF_IFD: u16 = 34665;
pub(super) const GPS_IFD: u16 = 34853;
pub(super) const INTEROP_IFD: u16 = 40965;

/// Byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Little,
    Big,
}

impl Order {
    pub(super) fn u16(self, bytes: [u8; 2]) -> u16 {
        if self == Self::Big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    }

    pub(super) fn u32(self, bytes: [u8; 4]) -> u32 {
        if self == Self::Big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    pub(super) fn u64(self, bytes: [u8; 8]) -> u64 {
        if self == Self::Big { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) }
    }

    pub(super) fn u16_bytes(self, value: u16) -> [u8; 2] {
        if self == Self::Big { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    pub(super) fn u64_bytes(self, value: u64) -> [u8; 8] {
        if self == Self::Big { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    pub(super) fn u32_bytes(self, value: u32) -> [u8; 4] {
        if self == Self::Big { value.to_be_bytes() } else { value.to_le_bytes() }
    }
}

/// A file, or a block of the same structure.
#[derive(Debug, Clone, Copy)]
pub(super) struct File<'a> {
    bytes: &'a [u8],
    pub(super) order: Order,
    /// BigTIFF: counts and offsets have 8 bytes.
    pub(super) big: bool,
    /// The magic number has the right byte order. libtiff requires that, Pillow does not.
    pub(super) regular: bool,
    /// Offset of the first directory.
    pub(super) first: u64,
}

/// A value as stored in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'a> {
    pub(super) kind: u16,
    /// One or more complete values.
    pub(super) data: &'a [u8],
}

impl<'a> File<'a> {
    /// Parses the header; `None` if it is invalid or that of a big-endian BigTIFF, which Pillow misreads.
    pub(super) fn open(bytes: &'a [u8]) -> Option<Self> {
        let (order, big, regular) = match bytes.first_chunk()? {
            b"II*\0" => (Order::Little, false, true),
            b"MM\0*" => (Order::Big, false, true),
            b"II\0*" => (Order::Little, false, false),
            b"MM*\0" => (Order::Big, false, false),
            b"II+\0" => (Order::Little, true, true),
            _ => return None,
        };
        let file = Self { bytes, order, big, regular, first: 0 };
        let first = if big { order.u64(file.array(8)?) } else { order.u32(file.array(4)?).into() };
        Some(Self { first, ..file })
    }

    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes.get(at..)?.first_chunk().copied()
    }

    /// The values of a directory by tag, and whether it is well-formed. As in Pillow, the last of equal tags wins,
    /// unknown types and empty values are skipped, and the first truncated value ends the directory. If any of these
    /// occurs, it is not well-formed and libtiff may read it differently.
    pub(super) fn directory(&self, at: u64) -> (BTreeMap<u16, Field<'a>>, bool) {
        let mut fields = BTreeMap::new();
        let (head, entry) = if self.big { (8, 20) } else { (2, 12) };
        let rest = usize::try_from(at).ok().and_then(|at| self.bytes.get(at..)).unwrap_or_default();
        let Some(count) = self.word(rest, 2) else { return (fields, false) };
        let entries = rest.get(head..).unwrap_or_default().chunks_exact(entry);
        for (_, entry) in (0..count).zip(entries) {
            let [t0, t1, k0, k1, rest @ ..] = entry else { break };
            let kind = self.order.u16([*k0, *k1]);
            let Some(size) = kind::size(kind) else { continue };
            let Some(data) = self.value(rest, size) else { break };
            if !data.is_empty() {
                fields.insert(self.order.u16([*t0, *t1]), Field { kind, data });
            }
        }
        let next = usize::try_from(count).ok().and_then(|count| count.checked_mul(entry)?.checked_add(head));
        let complete = next.and_then(|next| self.word(rest.get(next..)?, 4)).is_some();
        let sound = complete && fields.len() as u64 == count;
        (fields, sound)
    }

    /// The number at the start of `bytes`: of `length` bytes, or of 8 in a BigTIFF.
    fn word(&self, bytes: &[u8], length: usize) -> Option<u64> {
        Some(match (self.big, length) {
            (true, _) => self.order.u64(*bytes.first_chunk()?),
            (false, 2) => self.order.u16(*bytes.first_chunk()?).into(),
            (false, _) => self.order.u32(*bytes.first_chunk()?).into(),
        })
    }

    /// The value of an entry with this count and field: stored in the field itself if it fits.
    fn value(&self, count_and_field: &'a [u8], size: usize) -> Option<&'a [u8]> {
        let (_, field) = count_and_field.split_at_checked(count_and_field.len() / 2)?;
        let length = usize::try_from(self.word(count_and_field, 4)?).ok()?.checked_mul(size)?;
        if length <= field.len() {
            return field.get(..length);
        }
        let start = usize::try_from(self.word(field, 4)?).ok()?;
        self.bytes.get(start..start.checked_add(length)?)
    }

    /// The numbers of a value; `None` if its type is not an unsigned integer.
    pub(super) fn numbers(&self, field: Field<'_>) -> Option<Vec<u64>> {
        let order = self.order;
        Some(match field.kind {
            kind::SHORT => field.data.as_chunks().0.iter().map(|&value| order.u16(value).into()).collect(),
            kind::LONG | kind::IFD => {
                field.data.as_chunks().0.iter().map(|&value| order.u32(value).into()).collect()
            }
            kind::LONG8 => field.data.as_chunks().0.iter().map(|&value| order.u64(value)).collect(),
            _ => return None,
        })
    }

    /// Copies the tags for which `wanted` is true, with the EXIF and GPS directories.
    ///
    /// The values together are bounded by the length of the file, because several may share the same bytes, which
    /// copies cannot.
    pub(super) fn copy(&self, wanted: impl Fn(u16) -> bool) -> Directory<'a> {
        let mut budget = self.bytes.len();
        let mut directory = self.copy_directory(self.first, &[EXIF_IFD, GPS_IFD], &mut budget);
        directory.retain(|&tag, _| wanted(tag));
        directory
    }

    fn copy_directory(&self, at: u64, pointers: &[u16], budget: &mut usize) -> Directory<'a> {
        let mut directory = Directory::new();
        for (tag, field) in self.directory(at).0 {
            let value = if [EXIF_IFD, GPS_IFD, INTEROP_IFD].contains(&tag) {
                let place = self.numbers(field).and_then(|places| places.first().copied());
                let (Some(place), true) = (place, pointers.contains(&tag)) else { continue };
                let below: &[u16] = if tag == EXIF_IFD { &[INTEROP_IFD] } else { &[] };
                let below = self.copy_directory(place, below, budget);
                if below.is_empty() {
                    continue;
                }
                Entry { kind: kind::LONG, value: Value::Directory(below) }
            } else {
                let Some(left) = budget.checked_sub(field.data.len()) else { continue };
                *budget = left;
                Entry { kind: field.kind, value: Value::Plain(Cow::Borrowed(field.data)) }
            };
            directory.insert(tag, value);
        }
        directory
    }
}

/// The value of a tag for writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) kind: u16,
    pub(super) value: Value<'a>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Plain(Cow<'a, [u8]>),
    Directory(Directory<'a>),
}

/// Entries in the order of writing.
pub(super) type Directory<'a> = BTreeMap<u16, Entry<'a>>;

impl Entry<'static> {
    pub(super) fn shorts(order: Order, values: &[u16]) -> Self {
        let data = values.iter().flat_map(|&value| order.u16_bytes(value)).collect();
        Self { kind: kind::SHORT, value: Value::Plain(data) }
    }

    pub(super) fn long(order: Order, value: u32) -> Self {
        Self { kind: kind::LONG, value: Value::Plain(order.u32_bytes(value).to_vec().into()) }
    }
}

/// Why directories cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Overflow {
    /// More than 4 GiB.
    Bytes,
    /// More than 65,535 tags in one directory.
    Tags,
}

/// Writes a file's header, the directory directly after it, then longer values and subdirectories.
///
/// # Errors
/// [`Overflow`].
pub(super) fn write(order: Order, directory: &Directory<'_>) -> Result<Vec<u8>, Overflow> {
    let mut out = match order {
        Order::Little => b"II*\0\x08\0\0\0".to_vec(),
        Order::Big => b"MM\0*\0\0\0\x08".to_vec(),
    };
    append(order, directory, &mut out)?;
    Ok(out)
}

/// Appends a directory with Pillow's layout: entries, no next directory, then longer values in the order of their
/// tags, each at an even offset.
fn append(order: Order, directory: &Directory<'_>, out: &mut Vec<u8>) -> Result<(), Overflow> {
    let number = |length: usize| u32::try_from(length).map_err(|_| Overflow::Bytes);
    let count = u16::try_from(directory.len()).map_err(|_| Overflow::Tags)?;
    let mut at = out.len() + 2;
    out.extend(order.u16_bytes(count));
    out.resize(out.len() + 12 * directory.len() + 4, 0);
    for (&tag, Entry { kind, value }) in directory {
        let here = order.u32_bytes(number(out.len())?);
        let (count, field) = match value {
            Value::Directory(below) => {
                append(order, below, out)?;
                (1, here)
            }
            Value::Plain(data) => {
                let mut field = [0; 4];
                if let Some(inline) = field.get_mut(..data.len()) {
                    inline.copy_from_slice(data);
                } else {
                    field = here;
                    out.extend_from_slice(data);
                    out.resize(out.len().next_multiple_of(2), 0);
                }
                (data.len() / kind::size(*kind).unwrap_or(1), field)
            }
        };
        let entry = &mut out[at..at + 12];
        entry[..2].copy_from_slice(&order.u16_bytes(tag));
        entry[2..4].copy_from_slice(&order.u16_bytes(*kind));
        entry[4..8].copy_from_slice(&order.u32_bytes(number(count)?));
        entry[8..].copy_from_slice(&field);
        at += 12;
    }
    Ok(())
}
