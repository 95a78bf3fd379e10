//! Applies EXIF orientations to pictures.
//!
//! Source: Pillow 10.4 `ImageOps.exif_transpose`.

use crate::image::{Image, Layout};

/// Side of a square that is transposed at once, pixels: its rows fit the first-level cache.
const TILE_PX: usize = 32;

/// Applies an EXIF orientation of 1 to 8; other values count as 1.
///
/// 1 to 4 work in place; 5 to 8 swap the sides and need another buffer.
pub(super) fn upright<L: Layout>(image: Image<L>, orientation: u8) -> Image<L> {
    match L::CHANNELS {
        1 => turn::<L, 1>(image, orientation),
        _ => turn::<L, 3>(image, orientation),
    }
}

fn turn<L: Layout, const C: usize>(mut image: Image<L>, orientation: u8) -> Image<L> {
    let (height, width) = image.shape();
    let (pixels, _) = image.data_mut().as_chunks_mut::<C>();
    match orientation {
        2 => pixels.chunks_exact_mut(width).for_each(<[_]>::reverse),
        3 => pixels.reverse(),
        4 => {
            let (top, rest) = pixels.split_at_mut(height / 2 * width);
            let bottom = &mut rest[height % 2 * width..];
            for (upper, lower) in top.chunks_exact_mut(width).zip(bottom.chunks_exact_mut(width).rev()) {
                upper.swap_with_slice(lower);
            }
        }
        5..=8 => {
            // The area is the same, so this cannot fail.
            let Ok(mut turned) = Image::black(width, height) else { return image };
            let (from_right, from_bottom) = (orientation >= 7, matches!(orientation, 6 | 7));
            transpose(pixels, width, turned.data_mut().as_chunks_mut::<C>().0, from_right, from_bottom);
            return turned;
        }
        _ => {}
    }
    image
}

/// Copies column `r` of `pixels`, whose rows have `width` pixels, to row `r` of `turned`. `from_right` counts columns
/// from the right, `from_bottom` reads them from the bottom up.
fn transpose<const C: usize>(
    pixels: &[[u8; C]],
    width: usize,
    turned: &mut [[u8; C]],
    from_right: bool,
    from_bottom: bool,
) {
    let height = pixels.len() / width;
    // Both pictures are accessed row by row; only the tile is accessed by columns.
    let mut tile = [[[0; C]; TILE_PX]; TILE_PX];
    for top in (0..height).step_by(TILE_PX) {
        let rows = TILE_PX.min(height - top);
        let to = if from_bottom { height - top - rows } else { top };
        for left in (0..width).step_by(TILE_PX) {
            let columns = TILE_PX.min(width - left);
            for row in 0..rows {
                let at = if from_bottom { rows - 1 - row } else { row };
                let line = &pixels[(top + row) * width + left..][..columns];
                for (column, &pixel) in tile.iter_mut().zip(line) {
                    column[at] = pixel;
                }
            }
            for (column, line) in (left..left + columns).zip(&tile) {
                let row = if from_right { width - 1 - column } else { column };
                turned[row * height + to..][..rows].copy_from_slice(&line[..rows]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Luma, Rgb};

    /// Where the pixel that ends up at (row, column) was.
    fn before(orientation: u8, (height, width): (usize, usize), row: usize, column: usize) -> (usize, usize) {
        let (bottom, right) = (height - 1, width - 1);
        match orientation {
            2 => (row, right - column),
            3 => (bottom - row, right - column),
            4 => (bottom - row, column),
            5 => (column, row),
            6 => (bottom - column, row),
            7 => (bottom - column, right - row),
            8 => (column, right - row),
            _ => (row, column),
        }
    }

    fn check<L: Layout>(height: usize, width: usize) {
        let sample = |row: usize, column: usize, c: usize| ((row * 131 + column * 17 + c * 89) % 251) as u8;
        let mut data = Vec::new();
        for (row, column) in (0..height * width).map(|i| (i / width, i % width)) {
            data.extend((0..L::CHANNELS).map(|c| sample(row, column, c)));
        }
        for orientation in 0..=9 {
            let image = Image::<L>::new(height, width, data.clone()).expect("a picture");
            let turned = upright(image, orientation);
            let exchanged = (5..=8).contains(&orientation);
            assert_eq!(turned.shape(), if exchanged { (width, height) } else { (height, width) });
            let columns = turned.width();
            for (i, pixel) in turned.data().chunks_exact(L::CHANNELS).enumerate() {
                let (row, column) = before(orientation, (height, width), i / columns, i % columns);
                let expected: Vec<_> = (0..L::CHANNELS).map(|c| sample(row, column, c)).collect();
                assert_eq!(pixel, expected, "{height}x{width}, orientation {orientation}, pixel {i}");
            }
        }
    }

    #[test]
    fn every_pixel_arrives() {
        for (height, width) in
            [(1, 1), (1, 5), (7, 1), (2, 2), (3, 4), (32, 32), (33, 31), (65, 96), (70, 130)]
        {
            check::<Rgb>(height, width);
            check::<Luma>(height, width);
        }
    }

    #[test]
    fn an_upright_picture_is_moved() {
        let image = Image::<Rgb>::black(3, 4).expect("a picture");
        let buffer = image.data().as_ptr();
        for orientation in 1..=4 {
            assert_eq!(upright(image.clone(), orientation).shape(), (3, 4));
        }
        assert_eq!(upright(image, 1).data().as_ptr(), buffer);
    }
}
