//! OpenCV's cubic kernel along one axis, and the rows that a vertical pass needs.
//!
//! Does not: know a sample type. `resize` builds the u8 and the f64 resize on it.

/// Kernel parameter of OpenCV's `INTER_CUBIC`.
const A: f32 = -0.75;

/// Where one output coordinate reads: source coordinates `first..first + 4`, not yet clamped to the picture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tap {
    first: i32,
    pub(crate) weights: [f32; 4],
}

impl Tap {
    /// The four source coordinates, clamped to a side of `from` pixels (border replicate).
    #[inline]
    pub(crate) fn clamped(&self, from: usize) -> [usize; 4] {
        match self.inside(from) {
            Some(first) => [first, first + 1, first + 2, first + 3],
            // `from` is at most MAX_SIDE_PX, so that neither cast can lose anything.
            None => {
                std::array::from_fn(|k| (i64::from(self.first) + k as i64).clamp(0, from as i64 - 1) as usize)
            }
        }
    }

    /// The first of the four source coordinates, if all lie within a side of `from` pixels.
    #[inline]
    pub(crate) fn inside(&self, from: usize) -> Option<usize> {
        usize::try_from(self.first).ok().filter(|first| first + 4 <= from)
    }
}

/// The taps of output coordinates `wanted`, for a side of `from` pixels resized to `to`.
///
/// All in float32 but the scale, in OpenCV's order of operations: the weights are part of the contract, to the
/// last bit.
///
/// Source: OpenCV 4.11 `resize.cpp`, `interpolateCubic`.
pub(crate) fn taps(from: usize, to: usize, wanted: std::ops::Range<usize>) -> Vec<Tap> {
    let scale = 1.0 / (to as f64 / from as f64);
    wanted
        .map(|d| {
            let at = ((d as f64 + 0.5) * scale - 0.5) as f32;
            let floor = at.floor();
            let x = at - floor;
            let c0 = ((A * (x + 1.0) - 5.0 * A) * (x + 1.0) + 8.0 * A) * (x + 1.0) - 4.0 * A;
            let c1 = ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
            let c2 = ((A + 2.0) * (1.0 - x) - (A + 3.0)) * (1.0 - x) * (1.0 - x) + 1.0;
            Tap { first: floor as i32 - 1, weights: [c0, c1, c2, 1.0 - c0 - c1 - c2] }
        })
        .collect()
}

/// The last few source rows after the horizontal pass; a vertical pass never needs more than four.
#[derive(Debug)]
pub(crate) struct Ring<T> {
    rows: [Vec<T>; 4],
    held: [Option<usize>; 4],
}

impl<T: Copy> Ring<T> {
    pub(crate) fn new(samples: usize, zero: T) -> Self {
        Self { rows: std::array::from_fn(|_| vec![zero; samples]), held: [None; 4] }
    }

    /// Makes sure that the rows `wanted` (at most four different ones, next to each other) are there.
    pub(crate) fn fill(&mut self, wanted: [usize; 4], mut make: impl FnMut(usize, &mut [T])) {
        for y in wanted {
            if self.held[y % 4] != Some(y) {
                make(y, &mut self.rows[y % 4]);
                self.held[y % 4] = Some(y);
            }
        }
    }

    /// The rows `wanted`, filled before.
    pub(crate) fn rows(&self, wanted: [usize; 4]) -> [&[T]; 4] {
        wanted.map(|y| self.rows[y % 4].as_slice())
    }
}
