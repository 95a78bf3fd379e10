//! Mixing a model's answer with the picture, and numpy's cast to u8.
//!
//! Does not: round or saturate; upstream does neither. The strategy calls it per row and per pixel.

/// `mask / 255` and `1 - mask / 255` in float64 for every mask value: division is the slow part.
const WEIGHTS: [(f64, f64); 256] = {
    let mut table = [(0.0, 0.0); 256];
    let mut value = 0;
    while value < 256 {
        let weight = value as f64 / 255.0;
        table[value] = (weight, 1.0 - weight);
        value += 1;
    }
    table
};

/// `result * (mask / 255) + image * (1 - mask / 255)`, per sample, in float64: two products, then one sum.
///
/// The order matters: with a grey mask the sum may fall short of a whole number by one bit, and the cast that
/// follows then loses 1 even where both pixels are equal.
///
/// Source: Lama Cleaner `model/base.py` `_pad_forward`, 1.2.5.
pub fn blend_f64(result: [u8; 3], image: [u8; 3], mask: u8) -> [f64; 3] {
    let (ours, theirs) = WEIGHTS[usize::from(mask)];
    std::array::from_fn(|c| mix(result[c], ours, image[c], theirs))
}

fn mix(result: u8, ours: f64, image: u8, theirs: f64) -> f64 {
    f64::from(result) * ours + f64::from(image) * theirs
}

/// Blends a row of an answer into a row of pixels, both RGB: [`blend_f64`], then [`wrap_to_u8`].
///
/// A plain choice where the mask is 0 or 255, which is the same.
pub(crate) fn blend_row(pixels: &mut [u8], result: &[u8], mask: &[u8]) {
    let mut start = 0;
    for run in mask.chunk_by(|left, right| left == right) {
        let samples = start..start + 3 * run.len();
        start = samples.end;
        match run[0] {
            0 => {}
            255 => pixels[samples.clone()].copy_from_slice(&result[samples]),
            mask => {
                let (ours, theirs) = WEIGHTS[usize::from(mask)];
                for (pixel, result) in pixels[samples.clone()].iter_mut().zip(&result[samples]) {
                    *pixel = wrap_to_u8(mix(*result, ours, *pixel, theirs));
                }
            }
        }
    }
}

/// numpy's `astype(uint8)`: truncates toward zero, then wraps modulo 256 (`-1` is 255, `300.2` is 44).
///
/// Values that do not fit int32 (NaN, infinities, beyond 2^31) give 0.
///
/// Source: numpy 1.26, x86-64. It is undefined in C, and other platforms saturate.
pub fn wrap_to_u8(value: f64) -> u8 {
    if value.abs() < 2_147_483_648.0 { (value as i32) as u8 } else { 0 }
}
