//! Packs bits into the bytes of `IDAT` chunks, the first bit lowest.
//!
//! Does not: interpret the bits; `deflate` does.

use super::chunk_writer::{close, open};
use super::huffman::Code;

/// A chunk ends with the block that brings it to this size, bytes. Some readers reject chunks of several MiB.
const CHUNK: usize = 1 << 18;

/// Maximum content of a stored block, bytes.
const STORED: usize = u16::MAX as usize;

/// Whether a block is the last one of the zlib stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockPosition {
    Last,
    Earlier,
}

/// A partly written file whose last chunk is open, and the bits that do not fill a byte yet.
pub(super) struct Bits {
    /// The written bytes, then unused space.
    out: Vec<u8>,
    /// Offset of the unused space.
    end: usize,
    /// Offset of the open chunk.
    chunk: usize,
    /// Pending bits: less than a byte between two calls.
    held: u64,
    count: u32,
}

impl Bits {
    /// Opens a chunk after `out` that begins with `first`.
    pub(super) fn after(mut out: Vec<u8>, first: &[u8]) -> Self {
        let chunk = open(&mut out, b"IDAT");
        out.extend_from_slice(first);
        Self { end: out.len(), out, chunk, held: 0, count: 0 }
    }

    /// Begins another chunk if this one has reached [`CHUNK`]. Pending bits go into the new chunk.
    pub(super) fn cut(&mut self) {
        if self.end - self.chunk >= CHUNK {
            self.out.truncate(self.end);
            close(&mut self.out, self.chunk);
            self.chunk = open(&mut self.out, b"IDAT");
            self.end = self.out.len();
        }
    }

    /// Reserves space for `bytes` bytes and the pending bits. The caller must not write more before the next call.
    pub(super) fn room(&mut self, bytes: usize) {
        let needed = self.end + bytes + 16;
        if self.out.len() < needed {
            self.out.resize(needed, 0);
        }
    }

    #[inline(always)]
    fn hold(&mut self, code: Code) {
        self.held |= u64::from(code.bits) << self.count;
        self.count = self.count.wrapping_add(code.count);
    }

    /// Writes the complete bytes of at most 63 pending bits.
    #[inline(always)]
    fn flush(&mut self) {
        self.out[self.end..self.end + 8].copy_from_slice(&self.held.to_le_bytes());
        self.end += (self.count / 8) as usize;
        self.held >>= self.count & 56;
        self.count %= 8;
    }

    /// Writes a code of at most 32 bits.
    #[inline(always)]
    pub(super) fn code(&mut self, code: Code) {
        self.hold(code);
        self.flush();
    }

    /// Writes the codes of `bytes`, each of at most 12 bits.
    #[inline(always)]
    pub(super) fn literals(&mut self, bytes: &[u8], codes: &[Code; 256]) {
        let (fours, rest) = bytes.as_chunks::<4>();
        for [a, b, c, d] in fours {
            self.hold(codes[usize::from(*a)]);
            self.hold(codes[usize::from(*b)]);
            self.hold(codes[usize::from(*c)]);
            self.hold(codes[usize::from(*d)]);
            self.flush();
        }
        for byte in rest {
            self.hold(codes[usize::from(*byte)]);
        }
        self.flush();
    }

    /// Writes `bytes` as one or more stored blocks and ends at a whole byte. `position` is that of the final block.
    pub(super) fn stored(&mut self, bytes: &[u8], position: BlockPosition) {
        let mut rest = bytes;
        loop {
            let (block, others) = rest.split_at(rest.len().min(STORED));
            self.room(block.len() + 8);
            self.code(Code {
                bits: u32::from(position == BlockPosition::Last && others.is_empty()),
                count: 3,
            });
            self.count = self.count.next_multiple_of(8);
            self.flush();
            let length = block.len() as u32;
            self.code(Code { bits: length | !length << 16, count: 32 });
            self.out[self.end..self.end + block.len()].copy_from_slice(block);
            self.end += block.len();
            rest = others;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Closes the last chunk and returns the file. The caller must have ended at a whole byte.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.out.truncate(self.end);
        close(&mut self.out, self.chunk);
        self.out
    }
}
