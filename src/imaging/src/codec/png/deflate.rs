//! A deflate encoder for filtered picture rows: one hash look-up per pixel for repeats, and dynamic codes per block.
//!
//! Does not: search for the longest repeat, look back further than 32 KiB, or write the zlib header and checksum.
//! `write` passes rows to one or more encoders, whose streams follow each other in the file.
//!
//! Design: filtered photos contain few repeats, so nearly all compression comes from the prefix codes of each block.
//! A repeat is used only if its code is shorter than the estimated codes of the bytes that it replaces.
//!
//! Source: RFC 1951.

use super::bits::{Bits, BlockPosition};
use super::block::{BlockCode, LONGEST, WINDOW, distance_symbol, length_symbol};

/// Bytes per search step; the minimum length of repeats is estimated for each.
const PIECE: usize = 1 << 16;
/// Maximum number of symbols in a block, so that its codes match its content.
const SYMBOLS: usize = PIECE * 3 / 4;
/// Maximum size of a block before compression, bytes; it bounds the buffer.
const BLOCK: usize = 1 << 20;
/// log2 of the number of entries in the hash table, which takes 64 KiB.
const TABLE_BITS: u32 = 14;
/// Estimated cost of a repeat, bits.
const REPEAT_BITS: f32 = 21.0;
/// log2 of the number of bytes without a repeat after which the search starts to skip pixels.
const PATIENCE: u32 = 5;
/// Maximum number of bytes that the search skips at once.
const LONGEST_STEP: usize = 128;
/// Position of the first byte; large enough that an empty table entry, 0, lies outside the window.
const ORIGIN: u32 = 1 << 16;

/// Literals, then a repeat; `length` is 0 if no repeat follows.
#[derive(Debug, Clone, Copy)]
struct Token {
    literals: u32,
    length: u16,
    distance: u16,
}

/// Adds the number of occurrences of each byte to `counts`.
fn count(bytes: &[u8], counts: &mut [[u32; 256]; 4]) {
    // Equal bytes often follow each other: four tables avoid waiting for the previous store to the same counter.
    let (fours, rest) = bytes.as_chunks::<4>();
    for four in fours {
        for (counts, byte) in counts.iter_mut().zip(four) {
            let count = &mut counts[usize::from(*byte)];
            *count = count.wrapping_add(1);
        }
    }
    for byte in rest {
        let count = &mut counts[0][usize::from(*byte)];
        *count = count.wrapping_add(1);
    }
}

fn sum(counts: &[[u32; 256]; 4]) -> [u32; 256] {
    std::array::from_fn(|i| counts.iter().map(|counts| counts[i]).sum())
}

/// The eight bytes at `at`.
#[inline(always)]
fn eight(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

/// The number of equal bytes at `at` and `from`, at most [`LONGEST`]; the first `known` are equal.
#[inline(always)]
fn repeat(bytes: &[u8], at: usize, from: usize, known: usize) -> usize {
    let longest = (bytes.len() - at).min(LONGEST);
    let (here, there) = (&bytes[at..at + longest], &bytes[from..from + longest]);
    let mut length = known;
    while length + 8 <= longest {
        let differing = eight(here, length) ^ eight(there, length);
        if differing != 0 {
            return length + (differing.trailing_zeros() / 8) as usize;
        }
        length += 8;
    }
    while length < longest && here[length] == there[length] {
        length += 1;
    }
    length
}

/// Hash table from bytes to the last position at which they occurred (from [`ORIGIN`], modulo 2^32).
struct Seen(Box<[u32; 1 << TABLE_BITS]>);

impl Seen {
    /// The entry for the first `N` of `eight` bytes.
    #[inline(always)]
    fn place<const N: u32>(&mut self, eight: u64) -> &mut u32 {
        let hash = (eight << (64 - 8 * N)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - TABLE_BITS);
        &mut self.0[hash as usize]
    }
}

/// A deflate stream that is being written.
pub(super) struct Deflate {
    out: Bits,
    /// The last [`WINDOW`] bytes that were written, then all that were not.
    bytes: Vec<u8>,
    /// Offset of the first byte that was not written.
    written: usize,
    /// Offset of the first byte that was not searched.
    searched: usize,
    /// Offset of the first row after the searched bytes.
    next_row: usize,
    /// Position of `bytes[0]`.
    origin: u32,
    seen: Seen,
    tokens: Vec<Token>,
    /// Number of literals and repeats in `tokens`; then the count of each symbol.
    symbols: usize,
    literals: [u32; 286],
    distances: [u32; 30],
    row_length: usize,
    bpp: usize,
}

impl Deflate {
    /// Starts a stream after `out` for rows of `row_length` bytes: a filter's number, then pixels of `bpp` bytes, 3 or
    /// 4.
    pub(super) fn new(out: Bits, row_length: usize, bpp: usize) -> Self {
        Self {
            out,
            bytes: Vec::new(),
            written: 0,
            searched: 0,
            next_row: 0,
            origin: ORIGIN,
            seen: Seen(Box::new([0; 1 << TABLE_BITS])),
            tokens: Vec::new(),
            symbols: 0,
            literals: [0; 286],
            distances: [0; 30],
            row_length,
            bpp,
        }
    }

    /// Adds a row that `fill` writes.
    pub(super) fn row(&mut self, fill: impl FnOnce(&mut [u8])) {
        let start = self.bytes.len();
        self.bytes.resize(start + self.row_length, 0);
        fill(&mut self.bytes[start..]);
        while self.bytes.len() - self.searched >= PIECE {
            self.piece(self.searched + PIECE);
        }
        // Only when more bytes are dropped than moved.
        if self.written > 4 * WINDOW + (self.bytes.len() - self.written) {
            let gone = self.written - WINDOW;
            self.bytes.drain(..gone);
            self.written = WINDOW;
            self.searched -= gone;
            self.next_row -= gone;
            self.origin = self.origin.wrapping_add(gone as u32);
        }
    }

    /// Ends the stream at a whole byte, closes the last chunk and returns the file. Another stream can follow after an
    /// earlier block.
    pub(super) fn finish(mut self, position: BlockPosition) -> Vec<u8> {
        if self.searched < self.bytes.len() {
            self.piece(self.bytes.len());
        }
        if self.written < self.searched {
            self.block();
        }
        self.out.stored(&[], position);
        self.out.finish()
    }

    /// Searches up to `end`, and writes a block if enough symbols or bytes are pending.
    fn piece(&mut self, end: usize) {
        let start = self.searched;
        let mut counts = [[0; 256]; 4];
        count(&self.bytes[start..end], &mut counts);
        let counts = sum(&counts);

        // Cost of the bytes without repeats: their entropy.
        let length = (end - start) as f32;
        let bits: f32 =
            counts.iter().filter(|n| **n > 0).map(|n| *n as f32 * (length / *n as f32).log2()).sum();
        let least = (REPEAT_BITS * length / bits.max(1.0)).ceil().clamp(4.0, 16.0) as usize;

        let tokens = self.tokens.len();
        match (self.bpp, least) {
            (3, 4) => self.search::<3, 4>(end, least),
            (3, 5) => self.search::<3, 5>(end, least),
            (3, 6) => self.search::<3, 6>(end, least),
            (3, 7) => self.search::<3, 7>(end, least),
            (3, _) => self.search::<3, 8>(end, least),
            (_, 4) => self.search::<4, 4>(end, least),
            (_, 5) => self.search::<4, 5>(end, least),
            (_, 6) => self.search::<4, 6>(end, least),
            (_, 7) => self.search::<4, 7>(end, least),
            _ => self.search::<4, 8>(end, least),
        }
        self.tally(tokens, start, &counts);
        if self.symbols >= SYMBOLS || end - self.written >= BLOCK {
            self.block();
        }
    }

    /// Makes tokens of the bytes up to `end`. Repeats have at least `least` bytes and are found by hashing `N` bytes,
    /// the lesser of `least` and 8, at the start of pixels of `B` bytes.
    fn search<const B: usize, const N: u32>(&mut self, end: usize, least: usize) {
        let bytes = &self.bytes[..end];
        let start = self.searched;
        // The last bytes become literals, so that eight bytes can always be read.
        let limit = end.saturating_sub(8);
        let (mut at, mut literal, mut next_row) = (start, start, self.next_row);
        while at < limit {
            while at >= next_row {
                at += usize::from(at == next_row);
                next_row += self.row_length;
            }
            // Rows consist of whole pixels.
            at += (next_row - at) % B;
            let stop = next_row.min(limit);
            while at < stop {
                let here = eight(bytes, at);
                let position = self.origin.wrapping_add(at as u32);
                let place = self.seen.place::<N>(here);
                let mut distance = position.wrapping_sub(*place) as usize;
                *place = position;
                if distance <= WINDOW {
                    let mut differing = here ^ eight(bytes, at - distance);
                    if differing << (64 - 8 * N) == 0 {
                        // The preceding pixel has the cheapest distance.
                        if at >= B && eight(bytes, at - B) == here {
                            (distance, differing) = (B, 0);
                        }
                        let from = at - distance;
                        let mut length = match differing {
                            0 => repeat(bytes, at, from, 8),
                            _ => (differing.trailing_zeros() / 8) as usize,
                        };
                        let mut first = at;
                        while first > literal
                            && first > distance
                            && length < LONGEST
                            && bytes[first - 1] == bytes[first - 1 - distance]
                        {
                            first -= 1;
                            length += 1;
                        }
                        if length >= least {
                            let literals = (first - literal) as u32;
                            self.tokens.push(Token {
                                literals,
                                length: length as u16,
                                distance: distance as u16,
                            });
                            let after = first + length;
                            if after < limit {
                                // Recording the second and the last pixel has most of the benefit of recording all.
                                let last = at + (after - 1 - at) / B * B;
                                for pixel in [last.min(at + B), last] {
                                    *self.seen.place::<N>(eight(bytes, pixel)) =
                                        self.origin.wrapping_add(pixel as u32);
                                }
                            }
                            (at, literal) = (after, after);
                            break;
                        }
                    }
                }
                at += B + ((at - literal) >> PATIENCE).min(LONGEST_STEP) / B * B;
            }
        }
        while next_row < end {
            next_row += self.row_length;
        }
        self.tokens.push(Token { literals: (end - literal) as u32, length: 0, distance: 0 });
        (self.searched, self.next_row) = (end, next_row);
    }

    /// Counts the symbols of the tokens from index `tokens` on. Their bytes start at `start` and occur `counts` times.
    fn tally(&mut self, tokens: usize, start: usize, counts: &[u32; 256]) {
        let tokens = &self.tokens[tokens..];
        let repeated: usize = tokens.iter().map(|token| usize::from(token.length)).sum();
        // Count the literals, or subtract the repeated bytes: the shorter of the two.
        let literals_are_few = repeated > (self.searched - start) / 2;
        let mut few = [[0; 256]; 4];
        let mut at = start;
        for token in tokens {
            let middle = at + token.literals as usize;
            let end = middle + usize::from(token.length);
            count(
                if literals_are_few { &self.bytes[at..middle] } else { &self.bytes[middle..end] },
                &mut few,
            );
            at = end;
            self.symbols += token.literals as usize + 1;
            if token.length > 0 {
                self.literals[length_symbol(token.length)] += 1;
                self.distances[distance_symbol(token.distance)] += 1;
            }
        }
        for ((literals, few), count) in self.literals.iter_mut().zip(sum(&few)).zip(counts) {
            *literals += if literals_are_few { few } else { count - few };
        }
    }

    /// Writes the searched bytes that were not written yet as one block.
    fn block(&mut self) {
        let content = &self.bytes[self.written..self.searched];
        self.literals[256] = 1;
        let code = BlockCode::of(&self.literals, &self.distances);
        if code.bits / 8 >= content.len() as u64 {
            self.out.stored(content, BlockPosition::Earlier);
        } else {
            self.out.room((code.bits / 8) as usize);
            code.header.iter().for_each(|code| self.out.code(*code));
            let mut at = 0;
            for token in &self.tokens {
                let middle = at + token.literals as usize;
                self.out.literals(&content[at..middle], &code.literals);
                at = middle + usize::from(token.length);
                if token.length > 0 {
                    self.out.code(code.lengths[usize::from(token.length)]);
                    self.out.code(code.distance(token.distance));
                }
            }
            self.out.code(code.end);
        }
        self.out.cut();
        self.written = self.searched;
        self.tokens.clear();
        self.symbols = 0;
        self.literals = [0; 286];
        self.distances = [0; 30];
    }
}
