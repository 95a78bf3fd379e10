//! The inputs of `golden/make_golden.py`, made again; change neither side alone.

use lamagrid_imaging::{Bgr, Gray, Image, Patch, Rgb, rgb_to_nchw_f32};

/// Number `i` of stream `seed` (splitmix64, by counter).
pub(crate) fn mix(seed: u64, i: usize) -> u64 {
    let counter = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut z = seed.wrapping_mul(0x2545_F491_4F6C_DD1D).wrapping_add(counter);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// `(H, W, 3)` of one of the golden kinds of picture.
pub(crate) fn picture(kind: &str, seed: u64, h: usize, w: usize) -> Image<Rgb> {
    let mut data = Vec::new();
    for y in 0..h {
        for x in 0..w {
            for c in 0..3 {
                data.push(match kind {
                    "noise" => (mix(seed, (y * w + x) * 3 + c) >> 56) as u8,
                    "smooth" => ((x * 3 + y * 5 + c * 40 + seed as usize) / 2) as u8,
                    "hard" => ((x / 5 + y / 3 + c / 2 + seed as usize) % 2 * 255) as u8,
                    other => panic!("no picture {other}"),
                });
            }
        }
    }
    Image::new(h, w, data).expect("a picture")
}

/// `(H, W)` of one of the golden kinds of mask.
pub(crate) fn mask_of(kind: &str, seed: u64, h: usize, w: usize) -> Gray {
    let r: Vec<usize> = (0..64).map(|i| (mix(seed + 1000, i) >> 33) as usize).collect();
    let white = |yes: bool| if yes { 255 } else { 0 };
    let blob = |k: usize, y: usize, x: usize| {
        let (t, l) = (r[4 * k + 1] % h, r[4 * k + 2] % w);
        (t..t + 1 + r[4 * k + 3] % 9).contains(&y) && (l..l + 1 + r[4 * k + 4] % 9).contains(&x)
    };
    let noise = |y: usize, x: usize| mix(seed, y * w + x);
    let value = |y: usize, x: usize| match kind {
        "empty" => 0,
        "full" => 255,
        "blobs" => white((0..1 + r[0] % 6).any(|k| blob(k, y, x))),
        "rings" => {
            let distance = y.abs_diff(r[1] % h).max(x.abs_diff(r[2] % w));
            let cut = y == r[4] % h || x == r[5] % w;
            white(distance.is_multiple_of(2 + r[3] % 4) && !cut)
        }
        "noise" => white(noise(y, x) >> 60 < 1 + seed % 15),
        "grey" => (noise(y, x) >> 56) as u8,
        "ramp" => (x * 7 + y * 11 + seed as usize) as u8,
        "border" => white(y == 0 || x == w - 1 || (y == h - 1 && x == 0)),
        other => panic!("no mask {other}"),
    };
    let data = (0..h * w).map(|i| value(i / w, i % w)).collect();
    Image::new(h, w, data).expect("a mask")
}

/// The golden stand-ins for a model. Their answers are whole 255ths, which survive the way through float32.
pub(crate) fn fake(kind: &str, patch: &Patch<'_>) -> Vec<f32> {
    let (h, w) = patch.shape();
    let (image, mask) = (patch.image().expect("a picture"), patch.mask().expect("a mask"));
    let mut data = Vec::new();
    for (i, pixel) in image.data().chunks_exact(3).enumerate() {
        let (y, x, m) = (i / w, i % w, usize::from(mask.data()[i]));
        for c in 0..3 {
            data.push(match kind {
                "sum" => {
                    let turned = usize::from(pixel[(c + 1) % 3]);
                    (turned * 5 + 31 * c + 3 * y + 7 * x + 97 * usize::from(m > 0) + m) as u8
                }
                "edge" if m > 0 => ((x / 2 + y / 2) % 2 * 255) as u8,
                "edge" => pixel[2 - c],
                other => panic!("no model {other}"),
            });
        }
    }
    rgb_to_nchw_f32(&Image::<Bgr>::new(h, w, data).expect("an answer").into_rgb())
}
