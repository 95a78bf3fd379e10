//! Chooses, applies and undoes PNG's five row filters.
//!
//! Does not: allocate, or know about interlacing; the caller passes the row above, which is black for the first row.

/// Sampled bytes per [`PERIOD`] bytes when a row's filter is chosen. Reading all bytes takes five times as long and
/// makes files of photos at most 0.03 % smaller (measured).
const PIECE: usize = 64;
/// Distance of two samples, bytes; see [`PIECE`].
const PERIOD: usize = 256;
/// Rows of at most this size are not sampled but read completely, bytes.
const SHORT: usize = 1024;

/// A row's filter, by its number in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    None,
    Sub,
    Up,
    Average,
    Paeth,
}

impl Filter {
    /// Decodes the first byte of a row.
    pub(super) const fn of(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Sub),
            2 => Some(Self::Up),
            3 => Some(Self::Average),
            4 => Some(Self::Paeth),
            _ => None,
        }
    }
}

/// The neighbour nearest to `left + up - corner`; the first of left, up, corner among equals.
///
/// Eight bits suffice: if `corner` lies between the two, its distance is the difference of the other two distances;
/// else it is the largest of the three.
#[inline(always)]
fn paeth(left: u8, up: u8, corner: u8) -> u8 {
    let to_left = up.abs_diff(corner);
    let to_up = left.abs_diff(corner);
    let between = (left < corner) == (corner < up);
    let to_corner = if between { to_left.abs_diff(to_up) } else { u8::MAX };
    let other = if to_up <= to_corner { up } else { corner };
    if to_left <= to_up && to_left <= to_corner { left } else { other }
}

#[inline(always)]
fn average(left: u8, up: u8) -> u8 {
    (u16::from(left).wrapping_add(u16::from(up)) / 2) as u8
}

/// Sum of the distances between two rows.
#[inline(always)]
fn distance(row: &[u8], predicted: impl Iterator<Item = u8>) -> u32 {
    row.iter().zip(predicted).fold(0, |sum, (x, p)| sum.wrapping_add(u32::from(x.abs_diff(p))))
}

/// Chooses the filter with the smallest sum of distances from the prediction, over the sampled bytes of the row.
///
/// `row` and `above` have the same length, pixels have `bpp` bytes.
///
/// Source: the heuristic of libpng and Pillow (`ZipEncode.c`), with `Average`, which Pillow leaves out.
pub(super) fn choose(row: &[u8], above: &[u8], bpp: usize) -> Filter {
    let length = row.len();
    let step = if length <= SHORT { PIECE } else { PERIOD };
    let mut sums = [0_u32; 5];
    let mut add = |filter: Filter, sum: u32| {
        // At most 2^24 pixels of four bytes, of which a quarter is sampled: no overflow.
        sums[filter as usize] = sums[filter as usize].wrapping_add(sum);
    };
    for start in (bpp..length).step_by(step) {
        let end = (start + PIECE).min(length);
        let x = &row[start..end];
        let (left, up, corner) =
            (&row[start - bpp..end - bpp], &above[start..end], &above[start - bpp..end - bpp]);
        add(Filter::None, x.iter().fold(0, |sum, x| sum.wrapping_add(u32::from((*x).min(x.wrapping_neg())))));
        add(Filter::Sub, distance(x, left.iter().copied()));
        add(Filter::Up, distance(x, up.iter().copied()));
        add(Filter::Average, distance(x, left.iter().zip(up).map(|(l, u)| average(*l, *u))));
        add(Filter::Paeth, distance(x, left.iter().zip(up).zip(corner).map(|((l, u), c)| paeth(*l, *u, *c))));
    }
    // The first of equal sums; `Up` before `Sub` as in Pillow, because equal rows then repeat best.
    let order = [Filter::None, Filter::Up, Filter::Sub, Filter::Average, Filter::Paeth];
    order.into_iter().min_by_key(|filter| sums[*filter as usize]).unwrap_or(Filter::None)
}

/// Writes the filtered row to `out`; all three slices have the same length.
pub(super) fn apply(filter: Filter, row: &[u8], above: &[u8], bpp: usize, out: &mut [u8]) {
    let bpp = bpp.min(row.len());
    let rest = row.len() - bpp;
    let (first, out) = out.split_at_mut(bpp);
    // The first pixel's left and corner are black.
    for ((out, x), up) in first.iter_mut().zip(row).zip(above) {
        *out = match filter {
            Filter::None | Filter::Sub => *x,
            Filter::Up | Filter::Paeth => x.wrapping_sub(*up),
            Filter::Average => x.wrapping_sub(up / 2),
        };
    }
    let (x, left, up, corner) = (&row[bpp..], &row[..rest], &above[bpp..][..rest], &above[..rest]);
    let out = &mut out[..rest];
    match filter {
        Filter::None => out.copy_from_slice(x),
        Filter::Sub => (0..rest).for_each(|i| out[i] = x[i].wrapping_sub(left[i])),
        Filter::Up => (0..rest).for_each(|i| out[i] = x[i].wrapping_sub(up[i])),
        Filter::Average => (0..rest).for_each(|i| out[i] = x[i].wrapping_sub(average(left[i], up[i]))),
        Filter::Paeth => (0..rest).for_each(|i| out[i] = x[i].wrapping_sub(paeth(left[i], up[i], corner[i]))),
    }
}

/// Adds four bytes each, modulo 256. The upper bits are added separately, so that nothing carries into the next byte.
fn add(a: u32, b: u32) -> u32 {
    const LOWER: u32 = 0x7f7f_7f7f;
    (a & LOWER).wrapping_add(b & LOWER) ^ ((a ^ b) & !LOWER)
}

/// Undoes [`apply`] in place; `row` and `above` have the same length.
pub(super) fn undo(filter: Filter, row: &mut [u8], above: &[u8], bpp: usize) {
    match bpp {
        1 => undo_pixels::<1>(filter, row, above),
        2 => undo_pixels::<2>(filter, row, above),
        3 => undo_pixels::<3>(filter, row, above),
        4 => undo_pixels::<4>(filter, row, above),
        6 => undo_pixels::<6>(filter, row, above),
        _ => undo_pixels::<8>(filter, row, above),
    }
}

fn undo_pixels<const N: usize>(filter: Filter, row: &mut [u8], above: &[u8]) {
    let pixels = row.as_chunks_mut::<N>().0;
    let above_pixels = above.as_chunks::<N>().0;
    match filter {
        Filter::None => {}
        Filter::Up => row.iter_mut().zip(above).for_each(|(x, up)| *x = x.wrapping_add(*up)),
        Filter::Sub if N == 4 => {
            let mut left = 0;
            for pixel in row.as_chunks_mut::<4>().0 {
                left = add(u32::from_le_bytes(*pixel), left);
                *pixel = left.to_le_bytes();
            }
        }
        Filter::Sub => {
            let mut left = [0; N];
            for pixel in pixels {
                for i in 0..N {
                    left[i] = pixel[i].wrapping_add(left[i]);
                }
                *pixel = left;
            }
        }
        Filter::Average => {
            let mut left = [0; N];
            for (pixel, up) in pixels.iter_mut().zip(above_pixels) {
                for i in 0..N {
                    left[i] = pixel[i].wrapping_add(average(left[i], up[i]));
                }
                *pixel = left;
            }
        }
        Filter::Paeth => {
            // `paeth` in 16 bits, with the shortest dependency from one pixel to the next.
            let (mut left, mut corner) = ([0_i16; N], [0_i16; N]);
            for (pixel, up) in pixels.iter_mut().zip(above_pixels) {
                for i in 0..N {
                    let (l, u, c) = (left[i], i16::from(up[i]), corner[i]);
                    let (low, high) = (l.min(u), l.max(u));
                    let third = c.wrapping_mul(3).wrapping_sub(l.wrapping_add(u));
                    let nearest = if high <= third { low } else { c };
                    let nearest = if third <= low { high } else { nearest };
                    pixel[i] = pixel[i].wrapping_add(nearest as u8);
                    left[i] = i16::from(pixel[i]);
                    corner[i] = u;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the PNG specification has it.
    fn paeth_of_the_specification(a: i32, b: i32, c: i32) -> i32 {
        let p = a + b - c;
        let (pa, pb, pc) = ((p - a).abs(), (p - b).abs(), (p - c).abs());
        if pa <= pb && pa <= pc {
            a
        } else if pb <= pc {
            b
        } else {
            c
        }
    }

    #[test]
    fn both_forms_of_the_predictor_are_the_specifications() {
        for seed in 0..=0xff_ffff_u32 {
            let [a, b, c, _] = seed.to_le_bytes();
            let expected = paeth_of_the_specification(a.into(), b.into(), c.into()) as u8;
            assert_eq!(paeth(a, b, c), expected, "{a} {b} {c}");
            // The pixel at the left is `a`, the one of interest follows.
            let mut row = [a.wrapping_sub(c), 0];
            undo_pixels::<1>(Filter::Paeth, &mut row, &[c, b]);
            assert_eq!(row, [a, expected], "{a} {b} {c}");
        }
    }

    #[test]
    fn undoing_gives_the_row_back() {
        let bytes: Vec<u8> = (0..4000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for number in 0..5 {
            let filter = Filter::of(number).unwrap();
            for bpp in [1, 2, 3, 4, 6, 8] {
                for pixels in [1, 2, 7, 100] {
                    let (row, above) = (&bytes[..pixels * bpp], &bytes[2000..2000 + pixels * bpp]);
                    let mut out = vec![0; row.len()];
                    apply(filter, row, above, bpp, &mut out);
                    undo(filter, &mut out, above, bpp);
                    assert_eq!(out, row, "{filter:?}, {bpp} bytes per pixel");
                }
            }
        }
        assert_eq!(Filter::of(5), None);
    }

    #[test]
    fn the_filter_that_leaves_nothing_is_chosen() {
        let ramp: Vec<u8> = (0..300).map(|i| (i * 7 % 251) as u8).collect();
        assert_eq!(choose(&ramp, &ramp, 3), Filter::Up);
        assert_eq!(choose(&[90; 300], &ramp, 3), Filter::Sub);
        assert_eq!(choose(&[0; 300], &ramp, 3), Filter::None);
    }
}
