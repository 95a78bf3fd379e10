//! Every line of `golden/cases.txt`: the same bytes as Lama Cleaner 1.2.5.

mod inputs;

use std::convert::Infallible;
use std::str::{FromStr, SplitWhitespace};

use inputs::{fake, mask_of, mix, picture};

use lamagrid_imaging::{
    Bgr, Gray, HdStrategy, Image, InpaintError, MaskTones, Model, PadRule, Paste, Patch, ToneRange, Tones,
    blend_f64, boxes_from_mask, crop_box, inpaint, inpaint_fixed, mask_to_i64, nchw_f32_to_rgb, pad,
    resize_cubic, resize_cubic_f64, rgb_to_gray_f32, rgb_to_nchw_f32, wrap_to_u8,
};

/// A position-dependent sum of the values, modulo 2^64.
fn digest(values: impl IntoIterator<Item = u64>) -> u64 {
    let terms = values.into_iter().enumerate().map(|(i, v)| v.wrapping_add(1).wrapping_mul(mix(7, i) | 1));
    terms.fold(0, u64::wrapping_add)
}

/// [`digest`] of bytes.
fn digest_u8(values: &[u8]) -> u64 {
    digest(values.iter().map(|v| u64::from(*v)))
}

/// The words after a case's suite.
struct Words<'a>(SplitWhitespace<'a>);

impl<'a> Words<'a> {
    fn word(&mut self) -> &'a str {
        self.0.next().expect("another word")
    }

    fn number<T: FromStr>(&mut self) -> T {
        self.word().parse().ok().expect("a number")
    }

    fn rule(&mut self) -> PadRule {
        let (modulo, square, least) = (self.number(), self.number::<u8>() == 1, self.number());
        PadRule { modulo, square, min_size: Some(least).filter(|least| *least > 0) }
    }
}

/// Runs `same` on each case of `suite`; it says whether ours equals upstream's. All `count` must.
fn check(suite: &str, count: usize, same: impl Fn(&mut Words<'_>) -> bool) {
    let mut cases = 0;
    let mut differing = Vec::new();
    for line in include_str!("golden/cases.txt").lines() {
        let mut words = Words(line.split_whitespace());
        if words.word() == suite {
            cases += 1;
            if !same(&mut words) {
                differing.push(line);
            }
        }
    }
    assert!(differing.is_empty(), "{} of {cases} differ:\n{}", differing.len(), differing.join("\n"));
    assert_eq!(cases, count, "cases of {suite}");
}

/// Whether the rows that a backend writes are those of the padded picture and mask, each value once.
fn rows_are_whole(patch: &Patch<'_>) -> bool {
    let (image, mask) = (patch.image().expect("a picture"), patch.mask().expect("a mask"));
    let (mut colours, mut holes) = (vec![None; image.data().len()], vec![None; mask.data().len()]);
    let mut greys = vec![None; mask.data().len()];
    let mut once = true;
    patch.image_nchw_f32(ToneRange::Unit, [0, 1, 2], |at, row| {
        let slots = colours[at..].iter_mut().zip(row);
        slots.for_each(|(slot, value)| once &= slot.replace(*value).is_none());
    });
    patch.mask_nchw(MaskTones { keep: 0_i64, hole: 1 }, |at, row| {
        let slots = holes[at..].iter_mut().zip(row);
        slots.for_each(|(slot, value)| once &= slot.replace(*value).is_none());
    });
    patch.gray_nchw_f32(|at, row| {
        let slots = greys[at..].iter_mut().zip(row);
        slots.for_each(|(slot, value)| once &= slot.replace(*value).is_none());
    });
    once && image.shape() == patch.shape()
        && greys.into_iter().eq(rgb_to_gray_f32(&image).into_iter().map(Some))
        && colours.into_iter().eq(rgb_to_nchw_f32(&image).into_iter().map(Some))
        && holes.into_iter().eq(mask_to_i64(&mask).into_iter().map(Some))
}

#[test]
fn inpaint_answers_upstreams_bytes() {
    check("inpaint", 585, |words| {
        let (picture_kind, mask_kind, model) = (words.word(), words.word(), words.word());
        let (seed, h, w) = (words.number(), words.number(), words.number());
        let strategy = words.word();
        let (limit, trigger, margin) = (words.number(), words.number(), words.number());
        let hd = HdStrategy::from_form(strategy, limit, trigger, margin);
        let rule = words.rule();
        let mut sizes = Vec::new();
        let mask = mask_of(mask_kind, seed, h, w);
        let answer = inpaint(
            picture(picture_kind, seed, h, w),
            &mask,
            &hd,
            Model {
                pad: rule,
                tones: Tones::UnitRgb,
                paste: Paste::Hole,
                forward: &mut |patch| {
                    let (height, width) = patch.shape();
                    assert!(rows_are_whole(patch), "rows of a patch of {height}x{width}");
                    assert_eq!(patch.pass().0, sizes.len() / 2);
                    sizes.extend([height as u64, width as u64]);
                    Ok::<_, Infallible>(fake(model, patch))
                },
            },
        );
        match (words.word(), answer) {
            ("fails", Err(InpaintError::EmptyCrop { .. } | InpaintError::EmptyResize { .. })) => {
                sizes.is_empty()
            }
            (calls, Ok(answer)) => {
                answer.shape() == (h, w)
                    && calls.parse() == Ok(sizes.len() / 2)
                    && words.number::<u64>() == digest(sizes)
                    && words.number::<u64>() == digest_u8(answer.into_bgr().data())
            }
            _ => false,
        }
    });
}

#[test]
fn pad_mirrors_as_numpy_does() {
    check("pad", 60, |words| {
        let (seed, h, w) = (words.number(), words.number(), words.number());
        let image = picture("noise", seed, h, w);
        let rule = words.rule();
        let padded = pad(&image, &rule).expect("a padded picture");
        padded.shape() == (words.number(), words.number())
            && words.number::<u64>() == digest_u8(padded.data())
    });
    check("rawpad", 1, |words| {
        let mask = mask_of("grey", 2, 2, 3);
        let padded = pad(&mask, &PadRule::multiple_of(8)).expect("a padded mask");
        padded.data().iter().all(|sample| *sample == words.number::<u8>())
    });
}

#[test]
fn resize_gives_opencvs_bits() {
    check("resize", 240, |words| {
        let kind = words.word();
        let (seed, h, w) = (words.number(), words.number(), words.number());
        let (to_h, to_w) = (words.number(), words.number());
        let image = picture(kind, seed, h, w);
        let red = image.data().chunks_exact(3).map(|pixel| pixel[0]).collect();
        let grey = Gray::new(h, w, red).expect("a grey picture");
        let sample = |i: usize| (mix(seed, i) >> 20) as f64 / 1e10 - 300.0 + f64::from(image.data()[i]);
        let real: Vec<[f64; 3]> = (0..h * w).map(|i| std::array::from_fn(|c| sample(i * 3 + c))).collect();
        let colour = resize_cubic(&image, to_h, to_w).expect("a resized picture");
        let grey = resize_cubic(&grey, to_h, to_w).expect("a resized mask");
        let real = resize_cubic_f64(&real, (h, w), (to_h, to_w)).expect("a resized blend");
        words.number::<u64>() == digest_u8(colour.data())
            && words.number::<u64>() == digest_u8(grey.data())
            && words.number::<u64>() == digest(real.iter().flatten().map(|v| v.to_bits()))
    });
    check("tall", 3, |words| {
        let (seed, h, w) = (words.number(), words.number(), words.number());
        let image = picture("noise", seed, h, w);
        let small = resize_cubic(&image, words.number(), words.number()).expect("a resized picture");
        words.number::<u64>() == digest_u8(small.data())
    });
    check("raw", 1, |words| {
        let small = resize_cubic(&picture("noise", 1, 4, 5), 2, 3).expect("a resized picture");
        small.data().iter().all(|sample| *sample == words.number::<u8>())
    });
}

#[test]
fn boxes_are_opencvs_in_its_order() {
    check("boxes", 600, |words| {
        let kind = words.word();
        let (seed, h, w) = (words.number(), words.number(), words.number());
        let margin = words.number();
        let boxes = boxes_from_mask(&mask_of(kind, seed, h, w));
        let corners = boxes.iter().flat_map(|b| [b.left, b.top, b.right, b.bottom]).map(|v| v as u64);
        let crops = boxes.iter().flat_map(|b| match crop_box(b, h, w, margin) {
            Some(b) => [b.top * 65536 + b.left, (b.bottom - 1) * 65536 + b.right - 1],
            None => [0, 1 << 40],
        });
        words.number::<usize>() == boxes.len()
            && words.number::<u64>() == digest(corners)
            && words.number::<u64>() == digest(crops.map(|v| v as u64))
    });
}

#[test]
fn every_mask_and_value_blends_to_numpys_bits() {
    check("blend", 2, |words| {
        let other = words.word() == "other";
        let pairs = (0..=255u8).flat_map(|m| (0..=255u8).map(move |v| (m, v)));
        let blended = pairs.map(|(m, v)| {
            let ours = if other { v.wrapping_mul(7).wrapping_add(m).wrapping_add(3) } else { v };
            blend_f64([ours; 3], [v; 3], m)[1]
        });
        let blended: Vec<f64> = blended.collect();
        words.number::<u64>() == digest(blended.iter().map(|v| v.to_bits()))
            && words.number::<u64>() == digest(blended.iter().map(|v| u64::from(wrap_to_u8(*v))))
    });
}

#[test]
fn cast_truncates_and_wraps() {
    let edge = [-0.5, -1.0, -3.2, 255.99, 256.7, 300.2, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 5e9];
    assert_eq!(edge.map(wrap_to_u8), [0, 255, 253, 255, 0, 44, 0, 0, 0, 0]);
    check("cast", 1, |words| {
        let wild = (0..4000).map(|i| f64::from_bits(mix(77, i)));
        let mild = (0..4000).map(|i| (mix(77, i) >> 11) as f64 / 2f64.powi(40) - 4000.0);
        let more = [-0.0, 2f64.powi(31) - 1.0, -(2f64.powi(31))];
        let all = wild.chain(mild).chain(edge).chain(more);
        words.number::<u64>() == digest(all.map(|v| u64::from(wrap_to_u8(v))))
    });
}

#[test]
fn tensors_hold_torchs_bits() {
    check("tensor", 1, |words| {
        let image = rgb_to_nchw_f32(&picture("noise", 3, 40, 33));
        let mask = mask_to_i64(&mask_of("grey", 3, 40, 33));
        words.number::<u64>() == digest(image.iter().map(|v| u64::from(v.to_bits())))
            && words.number::<u64>() == digest(mask.iter().map(|v| *v as u64))
    });
    check("answer", 2, |words| {
        let (values, h, w): (Vec<f32>, _, _) = match words.word() {
            "wild" => {
                let raw = (0..3 * 40 * 33).map(|i| (mix(78, i) >> 40) as f32 / (1 << 22) as f32 - 1.0);
                let mut values: Vec<f32> = raw.collect();
                values[..5].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0, -0.0]);
                (values, 40, 33)
            }
            _ => ((0..768).map(|i| (i / 3) as f32 / 255.0).collect(), 16, 16),
        };
        let answer = nchw_f32_to_rgb(&values, Tones::UnitRgb, h, w).expect("an answer").into_bgr();
        words.number::<u64>() == digest_u8(answer.data())
    });
}

#[test]
fn the_picture_itself_becomes_the_answer() {
    let holes = |at: &[usize]| {
        let mut mask = vec![0; 40 * 30];
        at.iter().for_each(|at| mask[*at] = 255);
        Gray::new(40, 30, mask).expect("a mask")
    };
    for (strategy, mask, passes) in [
        ("Original", holes(&[125]), vec![(0, 1)]),
        ("Resize", holes(&[125]), vec![(0, 1)]),
        ("Crop", holes(&[]), vec![]),
        ("Crop", holes(&[125]), vec![(0, 1)]),
        ("Crop", holes(&[125, 925]), vec![(0, 2), (1, 2)]),
    ] {
        let image = picture("noise", 1, 40, 30);
        let (before, at) = (image.clone(), image.data().as_ptr());
        let mut seen = Vec::new();
        let hd = HdStrategy::from_form(strategy, 20, 20, 4);
        let answer = inpaint(
            image,
            &mask,
            &hd,
            Model {
                pad: PadRule::multiple_of(8),
                tones: Tones::UnitRgb,
                paste: Paste::Hole,
                forward: &mut |patch| {
                    seen.push(patch.pass());
                    Ok::<_, Infallible>(fake("sum", patch))
                },
            },
        );
        let answer = answer.expect("an answer");
        assert_eq!((answer.data().as_ptr(), seen), (at, passes), "{strategy}");
        let pixels = answer.data().chunks_exact(3).zip(before.data().chunks_exact(3));
        let changed = pixels.zip(mask.data()).filter(|((after, before), _)| after != before);
        assert!(changed.into_iter().all(|(_, mask)| *mask > 0), "{strategy}");
    }
}

#[test]
fn colour_order_turns_in_place() {
    let image = picture("noise", 1, 3, 2);
    let (first, at) = (image.data()[..3].to_vec(), image.data().as_ptr());
    let turned = image.clone().into_bgr();
    assert_eq!(turned.data()[..3], [first[2], first[1], first[0]]);
    assert_eq!(turned.into_rgb(), image);
    let turned: Image<Bgr> = image.into_bgr();
    assert_eq!(turned.data().as_ptr(), at);
}

/// A network of one size, whose answer is white: a picture of that size, a smaller one with two holes, a larger one.
#[test]
fn a_model_of_one_size_sees_only_that_size() {
    for (height, width, passes) in [(16, 16, 1), (10, 12, 2), (40, 700, 2)] {
        let image = picture("noise", 3, height, width);
        let mut holes = vec![0; height * width];
        holes[2 * width + 2] = 255;
        holes[(height - 3) * width + width - 3] = 255;
        let mask = Gray::new(height, width, holes).expect("a mask");
        for paste in [Paste::Hole, Paste::All] {
            let mut seen = Vec::new();
            let model = Model {
                pad: PadRule::square_of(16),
                tones: Tones::ByteRgb,
                paste,
                forward: &mut |patch| {
                    assert_eq!(patch.shape(), (16, 16));
                    seen.push(patch.pass());
                    Ok::<_, Infallible>(vec![254.6_f32; 3 * 16 * 16])
                },
            };
            let answer = inpaint_fixed(image.clone(), &mask, 16, model).expect("an answer");
            assert_eq!(seen, (0..passes).map(|pass| (pass, passes)).collect::<Vec<_>>());
            let pixels = answer.data().chunks_exact(3).zip(image.data().chunks_exact(3));
            for ((after, before), mask) in pixels.zip(mask.data()) {
                if *mask > 0 {
                    assert_ne!(after, before);
                } else if paste == Paste::Hole {
                    assert_eq!(after, before);
                }
            }
            if paste == Paste::All && height < 40 {
                assert!(answer.data().iter().all(|sample| *sample == 255));
            }
        }
    }
}

#[test]
fn the_ranges_of_a_networks_values_are_exact() {
    let image = picture("noise", 5, 4, 4);
    let mask = mask_of("blobs", 5, 4, 4);
    let seen = &mut Vec::new();
    let model = Model {
        pad: PadRule::multiple_of(4),
        tones: Tones::SignedRgb,
        paste: Paste::All,
        forward: &mut |patch| {
            for range in [ToneRange::Signed, ToneRange::Byte] {
                let (mut values, mut erased, mut mask) = (vec![0.0; 48], vec![0.0; 48], vec![0.0; 16]);
                patch.image_nchw_f32(range, [2, 1, 0], |at, row| {
                    values[at..at + row.len()].copy_from_slice(row)
                });
                patch.erased_nchw_f32(range, [2, 1, 0], |at, row| {
                    erased[at..at + row.len()].copy_from_slice(row)
                });
                let tones = MaskTones { keep: 0.5_f32, hole: -0.5 };
                patch.mask_nchw(tones, |at, row| mask[at..at + row.len()].copy_from_slice(row));
                seen.push((values, erased, mask));
            }
            Ok::<_, Infallible>([0.0_f32, 1.0 / 127.5, 2.0, -2.0, f32::NAN].repeat(10)[..48].to_vec())
        },
    };
    let answer = inpaint(image.clone(), &mask, &HdStrategy::Original, model).expect("an answer");
    // 127.5 and 128.5 are rounded to even.
    assert_eq!(answer.data()[..3], [128, 128, 255]);
    assert_eq!(answer.data()[9..12], [0, 0, 128]);
    for (index, (values, erased, holes)) in seen.iter().enumerate() {
        for (at, value) in values.iter().enumerate() {
            let (channel, pixel) = (2 - at / 16, at % 16);
            let sample = f32::from(image.data()[pixel * 3 + channel]);
            let expected = if index == 0 { sample / 255.0 * 2.0 - 1.0 } else { sample };
            let is_hole = mask.data()[pixel] > 0;
            assert_eq!(*value, expected);
            assert_eq!(erased[at], if is_hole { 0.0 } else { expected });
            assert_eq!(holes[pixel], if is_hole { -0.5 } else { 0.5 });
        }
    }
}
