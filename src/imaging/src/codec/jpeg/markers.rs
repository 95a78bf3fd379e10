//! The marker structure of a JPEG file: what its header says, and whether its scans are whole.
//!
//! Does not: decode. The decoder skips over some damage in silence; a file that passes [`Markers::check_scans`]
//! has none of it.
//!
//! Source: ITU-T T.81, annex B; what is accepted before the first scan, Pillow 10.4 `JpegImageFile._open`.

use lamagrid_domain::PictureFormat;

use crate::codec::CodecError;

/// Most scans of one file. Encoders write 10 to 25; every scan walks all blocks, so that a small file with very
/// many of them would cost hours.
pub(super) const MAX_SCANS: usize = 100;

/// Coefficients, in zigzag order, that libjpeg's block smoothing looks at.
const SMOOTHED: std::ops::Range<usize> = 0..10;

const DHT: u8 = 0xc4;
const JPG: u8 = 0xc8;
const DAC: u8 = 0xcc;
const RST0: u8 = 0xd0;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const DQT: u8 = 0xdb;
const DRI: u8 = 0xdd;
const APP0: u8 = 0xe0;
const APP1: u8 = 0xe1;
const APP15: u8 = 0xef;
const COM: u8 = 0xfe;

pub(super) fn malformed(reason: impl Into<String>) -> CodecError {
    CodecError::Malformed { format: PictureFormat::Jpeg, reason: reason.into() }
}

pub(super) fn unsupported(what: impl Into<String>) -> CodecError {
    CodecError::Unsupported { format: PictureFormat::Jpeg, what: what.into() }
}

/// One component's id and sampling factors, which are 1 to 4.
#[derive(Debug, Clone, Copy)]
struct Component {
    id: u8,
    across: usize,
    down: usize,
}

/// The frame header; sides are not 0.
#[derive(Debug)]
pub(super) struct Frame {
    /// SOF0 to SOF15, without the `0xff`.
    marker: u8,
    /// Bits per sample.
    precision: u8,
    pub(super) width: u16,
    pub(super) height: u16,
    components: Vec<Component>,
}

impl Frame {
    fn parse(marker: u8, body: &[u8]) -> Result<Self, CodecError> {
        let &[precision, h1, h0, w1, w0, count, ref rest @ ..] = body else {
            return Err(malformed("frame header too short"));
        };
        let (width, height) = (u16::from_be_bytes([w1, w0]), u16::from_be_bytes([h1, h0]));
        if width == 0 || height == 0 {
            return Err(malformed("a side is 0"));
        }
        if rest.len() != 3 * usize::from(count) {
            return Err(malformed("frame header of wrong length"));
        }
        let components: Vec<_> = rest
            .chunks_exact(3)
            .map(|c| Component { id: c[0], across: usize::from(c[1] >> 4), down: usize::from(c[1] & 15) })
            .collect();
        if components.iter().any(|c| !(1..=4).contains(&c.across) || !(1..=4).contains(&c.down)) {
            return Err(malformed("sampling factor outside 1 to 4"));
        }
        Ok(Self { marker, precision, width, height, components })
    }

    pub(super) fn channels(&self) -> usize {
        self.components.len()
    }

    fn progressive(&self) -> bool {
        self.marker == 0xc2
    }

    /// Baseline, extended or progressive, Huffman, 8 bits.
    pub(super) fn decodes(&self) -> bool {
        matches!(self.marker, 0xc0..=0xc2) && self.precision == 8 && matches!(self.channels(), 1 | 3 | 4)
    }

    fn most(&self, factor: impl Fn(&Component) -> usize) -> usize {
        self.components.iter().map(factor).max().unwrap_or(1)
    }

    /// Blocks of one component that a scan of its own has: `(columns, rows)`.
    fn blocks(&self, component: &Component) -> (usize, usize) {
        let side = |pixels: u16, factor: usize, most: usize| {
            (usize::from(pixels) * factor).div_ceil(most).div_ceil(8)
        };
        (
            side(self.width, component.across, self.most(|c| c.across)),
            side(self.height, component.down, self.most(|c| c.down)),
        )
    }

    /// MCUs of a scan: one block each if it has one component.
    fn mcus(&self, scan: &[usize]) -> usize {
        if let &[only] = scan {
            let (columns, rows) = self.blocks(&self.components[only]);
            return columns * rows;
        }
        let columns = usize::from(self.width).div_ceil(8 * self.most(|c| c.across));
        columns * usize::from(self.height).div_ceil(8 * self.most(|c| c.down))
    }
}

/// Reads markers one by one.
#[derive(Debug, Clone)]
pub(super) struct Markers<'a> {
    bytes: &'a [u8],
    at: usize,
    /// MCUs between restart markers, 0 for none.
    restart_interval: usize,
}

/// What stands before the first scan.
#[derive(Debug)]
pub(super) struct Prologue<'a> {
    pub(super) frame: Frame,
    /// The bodies of the EXIF segments, with their prefix.
    pub(super) exif: Vec<&'a [u8]>,
    /// Stands before the first scan header.
    pub(super) scans: Markers<'a>,
}

impl<'a> Prologue<'a> {
    /// Reads the segments up to the first scan.
    ///
    /// # Errors
    /// [`CodecError::Malformed`].
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, CodecError> {
        let mut markers = Markers { bytes, at: 2, restart_interval: 0 };
        let mut frame = None;
        let mut exif = Vec::new();
        loop {
            let here = markers.at;
            let (marker, body) = markers.segment()?;
            match marker {
                SOS => {
                    markers.at = here;
                    let frame = frame.ok_or_else(|| malformed("a scan before the frame header"))?;
                    return Ok(Self { frame, exif, scans: markers });
                }
                DHT | JPG | DAC => {}
                0xc0..=0xcf => match frame.replace(Frame::parse(marker, body)?) {
                    None => {}
                    Some(_) => return Err(malformed("two frame headers")),
                },
                APP1 if body.starts_with(b"Exif\0\0") => exif.push(body),
                EOI => return Err(malformed("it has no scan")),
                _ => {}
            }
        }
    }
}

impl<'a> Markers<'a> {
    /// The next marker and its body; empty for EOI, which has none.
    fn segment(&mut self) -> Result<(u8, &'a [u8]), CodecError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let fill = rest.iter().take_while(|&&byte| byte == 0xff).count();
        let (Some(&marker), 1..) = (rest.get(fill), fill) else {
            return Err(malformed(if fill == rest.len() {
                "truncated"
            } else {
                "bytes outside of segments"
            }));
        };
        let rest = &rest[fill + 1..];
        self.at += fill + 1;
        if marker == EOI {
            return Ok((marker, &[]));
        }
        // RSTn, SOI, TEM and the reserved ones have no length and no place here.
        if !matches!(marker, 0xc0..=0xcf | SOS..=0xfe) {
            return Err(malformed(format!("marker 0x{marker:02x} between segments")));
        }
        let &[high, low, ..] = rest else { return Err(malformed("truncated")) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let body = rest.get(2..length).ok_or_else(|| malformed("truncated segment"))?;
        self.at += length;
        if marker == DHT {
            check_huffman(body)?;
        }
        if marker == DRI {
            let &[high, low] = body else { return Err(malformed("restart interval of wrong length")) };
            self.restart_interval = usize::from(u16::from_be_bytes([high, low]));
        }
        Ok((marker, body))
    }

    /// Steps over one scan's data to the marker that ends it, and returns how many restart markers it has.
    fn entropy(&mut self) -> Result<usize, CodecError> {
        let mut restarts = 0;
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            let Some((here, &next)) = memchr::memchr(0xff, rest).and_then(|at| Some((at, rest.get(at + 1)?)))
            else {
                return Err(malformed("truncated"));
            };
            match next {
                0 => {}
                RST0..=0xd7 => {
                    if usize::from(next - RST0) != restarts % 8 {
                        return Err(malformed("restart markers out of order"));
                    }
                    restarts += 1;
                }
                // libjpeg reads on behind it, with what it had decoded of this MCU mixed in.
                0xff => return Err(malformed("fill bytes in a scan")),
                _ => {
                    self.at += here;
                    return Ok(restarts);
                }
            }
            self.at += here + 2;
        }
    }

    /// Checks all that follows the prologue: the scans are whole, with every restart marker in its place, EOI ends
    /// them, and a progressive file sends its first coefficients in full (else libjpeg smooths the blocks).
    ///
    /// # Errors
    /// [`CodecError::Malformed`]; [`CodecError::Unsupported`] for what is legal but not decoded here.
    pub(super) fn check_scans(mut self, frame: &Frame) -> Result<(), CodecError> {
        // Every block takes a bit at least: nothing is allocated for what cannot be in the file.
        let blocks: usize =
            frame.components.iter().map(|c| frame.blocks(c)).map(|(columns, rows)| columns * rows).sum();
        if blocks > 8 * self.bytes.len() {
            return Err(malformed("too short for its size"));
        }
        let first = frame.components.first().ok_or_else(|| malformed("it has no component"))?;
        // The decoder has libjpeg's smooth enlargement for three components alone.
        let decodes = |c: &Component| match frame.channels() {
            4 => (c.across, c.down) == (1, 1),
            _ => first.across.is_multiple_of(c.across) && first.down.is_multiple_of(c.down),
        };
        if !frame.components.iter().all(decodes) {
            return Err(unsupported("sampling factors"));
        }
        // Bits not yet sent, per component and coefficient.
        let mut missing = vec![[u8::MAX; SMOOTHED.end]; frame.channels()];
        let mut scans = 0;
        let mut complete = false;
        loop {
            let (marker, body) = self.segment()?;
            match marker {
                EOI => break,
                SOS => {}
                DHT | DQT | DRI | COM | APP0..=APP15 => continue,
                _ => return Err(malformed(format!("marker 0x{marker:02x} between scans"))),
            }
            scans += 1;
            if scans > MAX_SCANS {
                return Err(unsupported(format!("more than {MAX_SCANS} scans")));
            }
            let scan = Scan::parse(frame, body)?;
            if !frame.progressive() {
                let count = scan.components.len();
                if complete {
                    return Err(malformed("a scan behind the last one"));
                }
                complete = count == frame.channels();
                if count > 1 && (!complete || scans > 1) {
                    return Err(unsupported("scans of some components"));
                }
            }
            let mcus = frame.mcus(&scan.components);
            let expected = (mcus - 1).checked_div(self.restart_interval).unwrap_or(0);
            if self.entropy()? != expected {
                return Err(malformed("restart markers missing or too many"));
            }
            for &component in &scan.components {
                for (coefficient, missing) in missing[component].iter_mut().enumerate() {
                    if (scan.spectrum.0..=scan.spectrum.1).contains(&coefficient) {
                        *missing = scan.missing_bits;
                    }
                }
            }
        }
        if missing.iter().any(|component| component[0] == u8::MAX) {
            return Err(malformed("a component is in no scan"));
        }
        if missing.iter().flatten().any(|&bits| bits != 0) {
            return Err(unsupported("progressive, not sent in full"));
        }
        Ok(())
    }
}

/// libjpeg refuses tables of DC differences over 15 bits.
fn check_huffman(mut body: &[u8]) -> Result<(), CodecError> {
    while let Some(([class, counts @ ..], rest)) = body.split_first_chunk::<17>() {
        let total = counts.iter().map(|&count| usize::from(count)).sum();
        let Some((symbols, rest)) = rest.split_at_checked(total) else { break };
        if class >> 4 == 0 && symbols.iter().any(|&bits| bits > 15) {
            return Err(malformed("impossible Huffman table"));
        }
        body = rest;
    }
    Ok(())
}

/// What a scan header says.
struct Scan {
    /// The frame's components that it has, by index.
    components: Vec<usize>,
    /// First and last coefficient.
    spectrum: (usize, usize),
    /// Low bits that it leaves to a later scan.
    missing_bits: u8,
}

impl Scan {
    fn parse(frame: &Frame, body: &[u8]) -> Result<Self, CodecError> {
        let wrong = || malformed("wrong scan header");
        let (&count, rest) = body.split_first().ok_or_else(wrong)?;
        let (ids, rest) = rest.split_at_checked(2 * usize::from(count)).ok_or_else(wrong)?;
        let &[first, last, approximation] = rest else { return Err(wrong()) };
        let components = ids
            .chunks_exact(2)
            .map(|c| frame.components.iter().position(|known| known.id == c[0]).ok_or_else(wrong))
            .collect::<Result<Vec<_>, _>>()?;
        if components.is_empty() || (1..components.len()).any(|at| components[..at].contains(&components[at]))
        {
            return Err(wrong());
        }
        if !frame.progressive() {
            return Ok(Self { components, spectrum: (0, 63), missing_bits: 0 });
        }
        let (high, low) = (approximation >> 4, approximation & 15);
        let band = if first == 0 { last == 0 } else { first <= last && last < 64 && components.len() == 1 };
        if !band || low > 13 || (high != 0 && high != low + 1) {
            return Err(malformed("impossible progression"));
        }
        Ok(Self { components, spectrum: (first.into(), last.into()), missing_bits: low })
    }
}
