//! Computes prefix codes for deflate: code lengths from counts, codes from lengths.
//!
//! Does not: decode.

/// Code lengths for symbols that occur `counts` times: at most `longest` bits, and 0 for symbols that do not occur.
///
/// The code is always complete and has at least two symbols, because not all decoders accept others.
pub(super) fn lengths<const N: usize>(counts: &[u32; N], longest: usize) -> [u8; N] {
    let mut lengths = [0; N];
    let mut leaves: Vec<(u32, usize)> =
        counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(symbol, n)| (*n, symbol)).collect();
    for (symbol, count) in counts.iter().enumerate().take(2) {
        if leaves.len() < 2 && *count == 0 {
            leaves.push((0, symbol));
        }
    }
    leaves.sort_unstable();

    // Build Huffman's tree with two queues: leaves by count, inner nodes in order of creation.
    let n = leaves.len();
    let mut weights: Vec<u64> = leaves.iter().map(|(count, _)| u64::from(*count)).collect();
    let mut parents = vec![0; 2 * n - 1];
    let (mut leaf, mut inner) = (0, n);
    for node in n..2 * n - 1 {
        let mut weight = 0;
        for _ in 0..2 {
            let lightest = if leaf < n && (inner >= node || weights[leaf] <= weights[inner]) {
                leaf += 1;
                leaf - 1
            } else {
                inner += 1;
                inner - 1
            };
            parents[lightest] = node;
            weight += weights[lightest];
        }
        weights.push(weight);
    }

    // Count the codes of each length; longer ones are cut to `longest`.
    let mut depths = vec![0_usize; 2 * n - 1];
    let mut of_length = [0_usize; 16];
    for node in (0..2 * n - 2).rev() {
        depths[node] = depths[parents[node]] + 1;
        if node < n {
            of_length[depths[node].min(longest)] += 1;
        }
    }
    // If cutting made the code oversubscribed, move one of the longest codes beside a shorter one until it fits.
    let room = 1_usize << longest;
    let mut used: usize = (1..=longest).map(|length| of_length[length] << (longest - length)).sum();
    while used > room {
        let Some(shorter) = (1..longest).rev().find(|length| of_length[*length] > 0) else { break };
        of_length[shorter] -= 1;
        of_length[shorter + 1] += 2;
        of_length[longest] -= 1;
        used -= 1;
    }

    // The rarest symbols get the longest codes.
    let mut rarest = leaves.iter();
    for length in (1..=longest).rev() {
        for (_, symbol) in rarest.by_ref().take(of_length[length]) {
            lengths[*symbol] = length as u8;
        }
    }
    lengths
}

/// A code: its bits, the first one lowest, and their number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Code {
    pub(super) bits: u32,
    pub(super) count: u32,
}

impl Code {
    /// This code followed by `count` more bits.
    pub(super) fn then(self, bits: u32, count: u32) -> Self {
        Self { bits: self.bits | bits << self.count, count: self.count + count }
    }
}

/// The canonical code of these lengths, RFC 1951, 3.2.2.
pub(super) fn codes<const N: usize>(lengths: &[u8; N]) -> [Code; N] {
    let mut of_length = [0_u32; 16];
    for length in lengths {
        of_length[usize::from(*length)] += 1;
    }
    of_length[0] = 0;
    let mut next = [0_u32; 16];
    for length in 1..16 {
        next[length] = (next[length - 1] + of_length[length - 1]) << 1;
    }
    let mut codes = [Code::default(); N];
    for (code, length) in codes.iter_mut().zip(lengths) {
        if *length > 0 {
            let bits = &mut next[usize::from(*length)];
            *code =
                Code { bits: bits.reverse_bits() >> (32 - u32::from(*length)), count: u32::from(*length) };
            *bits += 1;
        }
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts that are sometimes even and sometimes like Fibonacci's numbers, which make the deepest trees.
    fn counts(seed: u64) -> [u32; 40] {
        let mut state = seed;
        let mut previous = (1_u32, 1_u32);
        std::array::from_fn(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            previous = (previous.1, previous.0.saturating_add(previous.1));
            match (seed % 4, state >> 62) {
                (0, _) => previous.0,
                (1, 0) => previous.0,
                (2, _) => (state >> 40) as u32,
                (3, 0) => (state >> 60) as u32,
                _ => 0,
            }
        })
    }

    #[test]
    fn every_code_is_complete_and_short_enough() {
        for seed in 0..4000 {
            let counts = counts(seed);
            for longest in [7, 12, 15] {
                let lengths = lengths(&counts, longest);
                let used: u32 = lengths.iter().filter(|l| **l > 0).map(|l| 1 << (15 - l)).sum();
                assert_eq!(used, 1 << 15, "seed {seed}, {longest} bits");
                assert!(lengths.iter().all(|l| usize::from(*l) <= longest));
                assert!(counts.iter().zip(&lengths).all(|(count, length)| *count == 0 || *length > 0));
                let mut seen: Vec<Code> = codes(&lengths).into_iter().filter(|c| c.count > 0).collect();
                seen.sort_unstable_by_key(|code| (code.count, code.bits));
                seen.dedup();
                assert_eq!(seen.len(), lengths.iter().filter(|l| **l > 0).count());
            }
        }
    }

    #[test]
    fn the_most_frequent_symbol_has_the_shortest_code() {
        assert_eq!(lengths(&[5, 1, 0, 1, 20, 3], 15), [2, 4, 0, 4, 1, 3]);
        assert_eq!(lengths(&[0, 0, 0, 7], 15), [1, 0, 0, 1]);
        assert_eq!(lengths(&[0; 19], 7)[..3], [1, 1, 0]);
    }
}
