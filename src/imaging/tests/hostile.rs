//! Whatever a form or a model sends, the answer is a picture or an error.

mod inputs;

use std::convert::Infallible;

use inputs::{fake, mask_of, mix, picture};

use lamagrid_imaging::{
    Bgr, Gray, HdStrategy, Image, ImageError, InpaintError, MAX_SIDE_PX, Model, PadRule, Paste, Rgb, Tones,
    boxes_from_mask, crop_box, inpaint, nchw_f32_to_rgb, pad, resize_cubic, resize_cubic_f64,
};

const RULE: PadRule = PadRule::multiple_of(8);
const MASKS: [&str; 8] = ["blobs", "rings", "noise", "grey", "ramp", "border", "empty", "full"];

/// An integer that is sometimes small and sometimes at the end of its range.
fn any_i64(seed: u64, i: usize) -> i64 {
    let bits = mix(seed, i);
    match bits % 4 {
        0 => (bits >> 8) as i64 % 100,
        1 => -((bits >> 8) as i64 % 100),
        2 => [i64::MIN, i64::MAX, i64::MIN / 2, i64::MAX / 2][(bits >> 8) as usize % 4],
        _ => bits as i64 >> (bits >> 58),
    }
}

#[test]
fn any_form_gets_an_answer_or_an_error() {
    let (mut answers, mut errors) = (0, 0);
    for seed in 0..3000 {
        let draw = |i: usize| (mix(seed, i) >> 33) as usize;
        let (h, w) = (1 + draw(0) % 24, 1 + draw(1) % 24);
        let mask = mask_of(MASKS[draw(2) % 8], seed, h, w);
        let name = ["Original", "Resize", "Crop", ""][draw(3) % 4];
        let hd = HdStrategy::from_form(name, any_i64(seed, 4), any_i64(seed, 5), any_i64(seed, 6));
        let least = Some(draw(9) % 40).filter(|least| *least < 20);
        let rule = PadRule { modulo: draw(7) % 12, square: draw(8) % 2 == 0, min_size: least };
        let image = picture("noise", seed, h, w);
        let calls = &mut 0;
        let answer = inpaint(
            image.clone(),
            &mask,
            &hd,
            Model {
                pad: rule,
                tones: Tones::UnitRgb,
                paste: Paste::Hole,
                forward: &mut |patch| {
                    *calls += 1;
                    Ok::<_, Infallible>(fake("sum", patch))
                },
            },
        );
        match answer {
            Ok(answer) => {
                answers += 1;
                assert_eq!(answer.shape(), (h, w));
                // Where the mask is black, no strategy changes a pixel.
                let pixels = answer.data().chunks_exact(3).zip(image.data().chunks_exact(3));
                assert!(pixels.zip(mask.data()).all(|((a, b), m)| *m > 0 || a == b), "seed {seed}");
            }
            Err(_) => {
                errors += 1;
                assert_eq!(*calls, 0, "an error of seed {seed} after a model call");
            }
        }
    }
    assert!(answers > 500 && errors > 100, "{answers} answers, {errors} errors");
}

#[test]
fn crop_boxes_stay_inside_and_hold_something() {
    for seed in 0..20_000 {
        let draw = |i: usize| (mix(seed, i) >> 33) as usize;
        let (h, w) = (1 + draw(0) % 50, 1 + draw(1) % 50);
        let mask = mask_of("blobs", seed, h, w);
        for blob in boxes_from_mask(&mask).iter().take(2) {
            if let Some(rect) = crop_box(blob, h, w, any_i64(seed, 2)) {
                assert!(rect.left < rect.right && rect.right <= w, "seed {seed}");
                assert!(rect.top < rect.bottom && rect.bottom <= h, "seed {seed}");
            }
        }
    }
}

#[test]
fn impossible_pictures_are_refused() {
    let long = MAX_SIDE_PX + 1;
    assert_eq!(Image::<Rgb>::new(0, 4, vec![]), Err(ImageError::Empty { height: 0, width: 4 }));
    assert_eq!(Gray::new(2, 2, vec![0; 3]), Err(ImageError::WrongLength { expected: 4, found: 3 }));
    for (height, width) in [(usize::MAX, usize::MAX), (1 << 32, 1 << 32), (long, 1), (1 << 20, 1 << 20)] {
        let refused = Err(ImageError::TooLarge { height, width });
        assert_eq!(Image::<Bgr>::new(height, width, vec![]), refused);
        assert_eq!(
            nchw_f32_to_rgb(&[], Tones::UnitRgb, height, width).map(drop),
            Err(ImageError::TooLarge { height, width })
        );
        let image = picture("noise", 1, 2, 2);
        assert_eq!(resize_cubic(&image, height, width).map(drop), refused.clone().map(|_: Image<Bgr>| ()));
        let real = resize_cubic_f64(&[[0.0; 3]; 4], (2, 2), (height, width));
        assert_eq!(real.map(drop), refused.map(|_| ()));
    }
    let short = resize_cubic_f64(&[[0.0; 3]; 3], (2, 2), (4, 4));
    assert_eq!(short, Err(ImageError::WrongLength { expected: 4, found: 3 }));
    let short = nchw_f32_to_rgb(&[0.0; 11], Tones::UnitRgb, 2, 2);
    assert_eq!(short, Err(ImageError::WrongLength { expected: 12, found: 11 }));
}

#[test]
fn impossible_pads_are_refused() {
    let image = picture("noise", 1, 2, 3);
    for (modulo, min_size) in [(0, None), (8, Some(9)), (0, Some(0))] {
        let rule = PadRule { modulo, square: false, min_size };
        assert_eq!(pad(&image, &rule).map(drop), Err(ImageError::PadRule { modulo, min_size }));
    }
    for modulo in [usize::MAX, usize::MAX / 2, 1 << 20] {
        let refused = pad(&image, &PadRule::multiple_of(modulo)).map(drop);
        assert!(matches!(refused, Err(ImageError::TooLarge { .. })), "{modulo}");
    }
}

#[test]
fn mismatched_shapes_are_refused() {
    let mask = mask_of("full", 1, 4, 6);
    let refused = inpaint(
        picture("noise", 1, 6, 4),
        &mask,
        &HdStrategy::Original,
        Model {
            pad: RULE,
            tones: Tones::UnitRgb,
            paste: Paste::Hole,
            forward: &mut |_| Err::<Vec<f32>, _>(std::fmt::Error),
        },
    );
    assert!(matches!(refused, Err(InpaintError::MaskShape { image: (6, 4), mask: (4, 6) })));
    let small = inpaint(
        picture("noise", 1, 4, 6),
        &mask,
        &HdStrategy::Original,
        Model {
            pad: RULE,
            tones: Tones::UnitRgb,
            paste: Paste::Hole,
            forward: &mut |_| Ok::<_, Infallible>(vec![0.0; 3 * 4 * 6]),
        },
    );
    assert!(matches!(small, Err(InpaintError::AnswerLength { expected: 192, found: 72 })));
}

#[test]
fn a_failure_of_the_model_is_handed_on() {
    for hd in
        [HdStrategy::Original, HdStrategy::Crop { trigger: 1, margin: 1 }, HdStrategy::Resize { limit: 3 }]
    {
        let mask = mask_of("full", 1, 9, 9);
        let failed = inpaint(
            picture("noise", 1, 9, 9),
            &mask,
            &hd,
            Model {
                pad: RULE,
                tones: Tones::UnitRgb,
                paste: Paste::Hole,
                forward: &mut |_| Err::<Vec<f32>, _>(std::fmt::Error),
            },
        );
        let failure = failed.expect_err("no answer");
        assert!(matches!(failure, InpaintError::Forward(std::fmt::Error)));
        assert!(std::error::Error::source(&failure).is_some());
    }
}

#[test]
fn an_empty_mask_needs_no_model_under_crop() {
    let image = picture("noise", 1, 9, 9);
    let mask = mask_of("empty", 1, 9, 9);
    let hd = HdStrategy::Crop { trigger: 8, margin: 4 };
    let answer = inpaint(
        image.clone(),
        &mask,
        &hd,
        Model {
            pad: RULE,
            tones: Tones::UnitRgb,
            paste: Paste::Hole,
            forward: &mut |_| Err::<Vec<f32>, _>(std::fmt::Error),
        },
    );
    assert_eq!(answer.ok(), Some(image));
}
