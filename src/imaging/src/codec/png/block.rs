//! The prefix codes of one deflate block.
//!
//! Does not: count or write symbols; `deflate` does.
//!
//! Source: RFC 1951, 3.2.5 and 3.2.7.

use super::huffman::{Code, codes, lengths};

/// Maximum distance of a repeat, bytes.
pub(super) const WINDOW: usize = 1 << 15;
/// Maximum length of a repeat, bytes.
pub(super) const LONGEST: usize = 258;
/// Maximum code length of a literal or a repeat's length, bits: four literals fit into one write, and decoders need a
/// single table look-up.
const LITERAL_BITS: usize = 12;

/// Symbol, extra bits and first length of a repeat's length.
static LENGTHS: [(u16, u8, u16); LONGEST + 1] = {
    let mut table = [(0, 0, 0); LONGEST + 1];
    let mut symbol = 257;
    let mut length = 3;
    while length < LONGEST {
        let extra = if symbol < 265 { 0 } else { (symbol - 261) / 4 };
        let base = length;
        while length < base + (1 << extra) && length < LONGEST {
            table[length] = (symbol, extra as u8, base as u16);
            length += 1;
        }
        symbol += 1;
    }
    table[LONGEST] = (285, 0, LONGEST as u16);
    table
};

/// First distance and extra bits of each distance symbol.
static DISTANCES: [(u16, u8); 30] = {
    let mut table = [(0, 0); 30];
    let mut symbol = 0;
    let mut distance = 1;
    while symbol < 30 {
        let extra = if symbol < 4 { 0 } else { symbol / 2 - 1 };
        table[symbol] = (distance as u16, extra as u8);
        distance += 1_usize << extra;
        symbol += 1;
    }
    table
};

/// Symbol by distance minus one: indexed directly below 256, else by the upper bits.
static DISTANCE_SYMBOLS: [u8; 512] = {
    let mut table = [0; 512];
    let mut symbol = 0;
    while symbol < 30 {
        let (base, extra) = DISTANCES[symbol];
        let mut d = base as usize - 1;
        while d < base as usize - 1 + (1 << extra) {
            table[if d < 256 { d } else { 256 + (d >> 7) }] = symbol as u8;
            d += 1;
        }
        symbol += 1;
    }
    table
};

/// The symbol of a repeat's length.
pub(super) fn length_symbol(length: u16) -> usize {
    usize::from(LENGTHS[usize::from(length)].0)
}

/// The symbol of a distance.
#[inline(always)]
pub(super) fn distance_symbol(distance: u16) -> usize {
    let d = usize::from(distance.wrapping_sub(1)) & (WINDOW - 1);
    usize::from(DISTANCE_SYMBOLS[if d < 256 { d } else { 256 + (d >> 7) }])
}

/// The prefix codes of one block.
pub(super) struct BlockCode {
    /// The block header that transmits the codes.
    pub(super) header: Vec<Code>,
    pub(super) literals: [Code; 256],
    pub(super) end: Code,
    /// Indexed by a repeat's length; extra bits included.
    pub(super) lengths: [Code; LONGEST + 1],
    /// Indexed by symbol; without extra bits.
    distances: [Code; 30],
    /// Size of the whole block with header and end.
    pub(super) bits: u64,
}

impl BlockCode {
    /// The optimal codes for symbols with these counts.
    pub(super) fn of(literals: &[u32; 286], distances: &[u32; 30]) -> Self {
        let literal_lengths = lengths(literals, LITERAL_BITS);
        let distance_lengths = lengths(distances, 15);
        let header = header(&literal_lengths, &distance_lengths);
        let codes_of_literals = codes(&literal_lengths);

        let mut bits: u64 = header.iter().map(|code| u64::from(code.count)).sum();
        for (symbol, (count, length)) in literals.iter().zip(literal_lengths).enumerate() {
            let extra = if (265..285).contains(&symbol) { (symbol - 261) / 4 } else { 0 };
            bits += u64::from(*count) * (u64::from(length) + extra as u64);
        }
        for (symbol, (count, length)) in distances.iter().zip(distance_lengths).enumerate() {
            bits += u64::from(*count) * u64::from(length + DISTANCES[symbol].1);
        }
        Self {
            header,
            literals: std::array::from_fn(|byte| codes_of_literals[byte]),
            end: codes_of_literals[256],
            lengths: std::array::from_fn(|length| {
                let (symbol, extra, base) = LENGTHS[length];
                codes_of_literals[usize::from(symbol)].then(length as u32 - u32::from(base), u32::from(extra))
            }),
            distances: codes(&distance_lengths),
            bits,
        }
    }

    /// The code of a distance with its extra bits.
    #[inline(always)]
    pub(super) fn distance(&self, distance: u16) -> Code {
        let symbol = distance_symbol(distance);
        let (base, extra) = DISTANCES[symbol];
        self.distances[symbol].then(u32::from(distance.wrapping_sub(base)), u32::from(extra))
    }
}

/// The header of a block with dynamic codes, RFC 1951, 3.2.7; not of the last block.
fn header(literals: &[u8; 286], distances: &[u8; 30]) -> Vec<Code> {
    const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    let used = |lengths: &[u8], least: usize| {
        lengths.iter().rposition(|l| *l > 0).map_or(least, |i| least.max(i + 1))
    };
    let (literals, distances) = (&literals[..used(literals, 257)], &distances[..used(distances, 1)]);
    let all = [literals, distances].concat();

    // Run-length encode the lengths: a symbol, with the count as extra bits.
    let mut symbols: Vec<(usize, Code)> = Vec::new();
    for run in all.chunk_by(|a, b| a == b) {
        let (length, mut left) = (usize::from(run[0]), run.len());
        if length == 0 {
            while left >= 11 {
                let now = left.min(138);
                symbols.push((18, Code { bits: now as u32 - 11, count: 7 }));
                left -= now;
            }
            if left >= 3 {
                symbols.push((17, Code { bits: left as u32 - 3, count: 3 }));
                left = 0;
            }
        } else {
            symbols.push((length, Code::default()));
            left -= 1;
            while left >= 3 {
                let now = left.min(6);
                symbols.push((16, Code { bits: now as u32 - 3, count: 2 }));
                left -= now;
            }
        }
        symbols.extend((0..left).map(|_| (length, Code::default())));
    }
    let mut counts = [0; 19];
    symbols.iter().for_each(|(symbol, _)| counts[*symbol] += 1);
    let lengths = lengths(&counts, 7);
    let codes = codes(&lengths);

    let of_order = ORDER.iter().rposition(|symbol| lengths[*symbol] > 0).map_or(4, |i| (i + 1).max(4));
    let sizes =
        (literals.len() as u32 - 257) | (distances.len() as u32 - 1) << 5 | (of_order as u32 - 4) << 10;
    let mut header = vec![Code { bits: 0b100 | sizes << 3, count: 17 }];
    header.extend(ORDER[..of_order].iter().map(|symbol| Code { bits: lengths[*symbol].into(), count: 3 }));
    header.extend(symbols.into_iter().map(|(symbol, extra)| codes[symbol].then(extra.bits, extra.count)));
    header
}
