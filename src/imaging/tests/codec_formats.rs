//! Every line of `golden/formats.txt`: BMP, GIF, TIFF and WebP as Lama Cleaner 1.2.5 with Pillow 10.4 reads and writes
//! them; and what is damaged or lies about itself is an error, at a bounded cost.

mod counting;
#[expect(dead_code, reason = "its models are for other tests")]
mod inputs;

use std::time::{Duration, Instant};

use counting::held;
use inputs::{mask_of, mix, picture};

use lamagrid_domain::PictureFormat;
use lamagrid_imaging::codec::{CodecError, Metadata, decode, decode_mask, encode, probe, sniff};

const MAX_PIXELS: u64 = 1 << 17;

/// Files that a test of damaged ones makes of each format; the environment can ask for more.
const MUTATIONS: usize = 200_000;

/// Bytes that decoding may hold at a time: some copies of the largest picture, for 16 bits or four samples each.
const MAX_HELD: usize = 12 * MAX_PIXELS as usize + (1 << 25);

/// The hash of `make_golden.py`.
fn digest(values: &[u8]) -> String {
    let terms = values.iter().enumerate().map(|(i, v)| (u64::from(*v) + 1).wrapping_mul(mix(7, i) | 1));
    terms.fold(0, u64::wrapping_add).to_string()
}

/// A line about a file.
struct Case {
    word: &'static str,
    name: &'static str,
    /// Mode, height and width of the header.
    header: [&'static str; 3],
    /// Of the picture, its alpha and its mask.
    digests: [&'static str; 3],
    file: Vec<u8>,
}

fn cases() -> Vec<Case> {
    let words = include_str!("golden/formats.txt").lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let case = |words: Vec<&'static str>| {
        let &[word, name, mode, height, width, pixels, alpha, mask, file] = words.as_slice() else {
            return None;
        };
        let byte = |at: usize| u8::from_str_radix(&file[at..at + 2], 16).expect("hexadecimal");
        let file = (0..file.len()).step_by(2).map(byte).collect();
        (word != "write").then_some(Case {
            word,
            name,
            header: [mode, height, width],
            digests: [pixels, alpha, mask],
            file,
        })
    };
    words.filter_map(case).collect()
}

#[test]
fn files_are_read_as_upstream_does_or_refused() {
    let (mut read, mut refused) = (0, 0);
    for Case { word, name, header, digests, file } in cases() {
        let picture = match decode(&file, MAX_PIXELS) {
            Ok(picture) => picture,
            Err(error) => {
                assert_ne!(word, "read", "{name}: {error}");
                let left_to_pillow =
                    matches!(error, CodecError::Unsupported { .. } | CodecError::TooLarge { .. });
                assert!(word == "fails" || left_to_pillow, "Pillow reads {name}: {error}");
                refused += 1;
                continue;
            }
        };
        assert_ne!(word, "fails", "{name}");
        read += 1;
        let found = probe(&file).expect("a header");
        let found = [found.mode.as_str().to_owned(), found.height.to_string(), found.width.to_string()];
        assert_eq!(found, header, "{name}");
        let alpha = picture.alpha.as_ref().map_or("-".to_owned(), |alpha| digest(alpha.data()));
        let mask = decode_mask(&file, MAX_PIXELS).expect("a mask");
        let found = [digest(picture.pixels.data()), alpha, digest(mask.data())];
        assert_eq!(found, digests, "{name}");
    }
    assert!(read > 180 && refused > 50, "{read} read, {refused} refused");
}

#[test]
fn files_are_written_as_upstream_does() {
    let lines = include_str!("golden/formats.txt").lines().filter_map(|line| line.strip_prefix("write "));
    let mut count = 0;
    for line in lines {
        let words: Vec<_> = line.split(' ').collect();
        let &[format, kind, seed, height, width, alpha, quality, file, colours, plane] = words.as_slice()
        else {
            panic!("no case: {line}")
        };
        let number = |word: &str| word.parse::<usize>().expect("a number");
        let (height, width) = (number(height), number(width));
        let pixels = picture(kind, number(seed) as u64, height, width);
        let alpha = (alpha != "-").then(|| mask_of("grey", number(alpha) as u64, height, width));
        let format: PictureFormat = match format {
            "bmp" => PictureFormat::Bmp,
            "tiff" => PictureFormat::Tiff,
            _ => PictureFormat::Webp,
        };
        let quality = number(quality) as u8;
        let written = encode(&pixels, alpha.as_ref(), format, quality, &Metadata::default()).expect("a file");
        assert_eq!(sniff(&written), Some(format));
        // Other versions of libwebp may put the same pixels otherwise.
        if format != PictureFormat::Webp {
            assert_eq!(digest(&written), file, "{line}");
        }
        let back = decode(&written, MAX_PIXELS).expect("what was written");
        assert_eq!(digest(back.pixels.data()), colours, "{line}");
        assert_eq!(back.alpha.map_or("-".to_owned(), |alpha| digest(alpha.data())), plane, "{line}");
        if format != PictureFormat::Webp {
            assert_eq!(back.pixels, pixels);
        }
        count += 1;
    }
    assert_eq!(count, 22);
}

#[test]
fn a_tiff_keeps_what_its_tags_say_about_the_picture() {
    let named = |name: &str| cases().into_iter().find(|case| case.name == name).expect("a case").file;
    let orientation = |file: &[u8]| {
        let picture = decode(file, MAX_PIXELS).expect("a picture");
        // A tag, its type, one value, the value.
        let stated = |exif: &[u8]| exif.windows(10).any(|tag| tag.starts_with(b"\x12\x01\x03\0\x01\0\0\0"));
        let kept = picture.metadata.exif.as_deref().is_some_and(stated);
        let again =
            encode(&picture.pixels, None, PictureFormat::Tiff, 95, &picture.metadata).expect("a file");
        let back = decode(&again, MAX_PIXELS).expect("what was written");
        assert_eq!(back.pixels, picture.pixels);
        assert_eq!(back.metadata, picture.metadata);
        kept
    };
    // Once applied, it is gone.
    assert!(orientation(&named("tiff_orientation_1")));
    assert!(orientation(&named("tiff_orientation_9")));
    for applied in 2..=8 {
        assert!(!orientation(&named(&format!("tiff_orientation_{applied}"))), "{applied}");
    }
}

#[test]
fn a_file_is_what_pillow_takes_it_for() {
    let formats = [
        (b"BM".as_slice(), Some(PictureFormat::Bmp)),
        (b"GIF87a", Some(PictureFormat::Gif)),
        (b"GIF88a", None),
        (b"II*\0", Some(PictureFormat::Tiff)),
        (b"MM\0*", Some(PictureFormat::Tiff)),
        (b"II\0*", Some(PictureFormat::Tiff)),
        (b"MM*\0", Some(PictureFormat::Tiff)),
        (b"II+\0", Some(PictureFormat::Tiff)),
        (b"MM\0+", Some(PictureFormat::Tiff)),
        (b"MM+\0", None),
        (b"RIFF\0\0\0\0WEBPVP8 ", Some(PictureFormat::Webp)),
        (b"RIFF\0\0\0\0WEBPVP8L", Some(PictureFormat::Webp)),
        (b"RIFF\0\0\0\0WEBPVP8X", Some(PictureFormat::Webp)),
        (b"RIFF\0\0\0\0WEBPALPH", None),
        (b"RIFF\0\0\0\0WEBP", None),
        (b"", None),
    ];
    for (bytes, format) in formats {
        assert_eq!(sniff(bytes), format, "{bytes:?}");
    }
}

#[test]
fn a_size_that_is_only_claimed_costs_nothing() {
    let named = |name: &str| cases().into_iter().find(|case| case.name == name).expect("a case").file;
    let claim = |name: &str, places: &[usize], side: &[u8]| {
        let mut file = named(name);
        places.iter().for_each(|&at| file[at..at + side.len()].copy_from_slice(side));
        file
    };
    // Of the entry of a TIFF's width, its tag, type and count. That of its height comes next.
    let tiff = named("tiff_2_8_3_plain");
    let entry = if tiff.starts_with(b"II") { b"\0\x01\x04\0\x01\0\0\0" } else { b"\x01\0\0\x04\0\0\0\x01" };
    let width = tiff.windows(8).position(|here| here == entry).expect("a width") + 8;
    let files = [
        claim("bmp_24", &[18, 22], b"\xff\xff\xff\x7f"),
        claim("gif_few", &[6, 8], b"\xff\xff"),
        claim("tiff_2_8_3_plain", &[width, width + 12], b"\xff\xff\xff\xff"),
        claim("webp_16x16", &[26, 28], b"\xff\x3f"),
        claim("webp_exif", &[24, 27], b"\xff\xff\xff"),
    ];
    for file in files {
        let (answer, most) = held(|| decode(&file, MAX_PIXELS));
        let refused = matches!(answer, Err(CodecError::TooLarge { .. } | CodecError::Malformed { .. }));
        assert!(refused, "{answer:?}");
        assert!(most < 1 << 16, "{most} bytes");
        assert!(sniff(&file) == Some(PictureFormat::Webp) || decode(&file, u64::MAX).is_err());
    }
}

/// Changes whole files of `format` in a few places, and asks that each is answered soon and at a bounded cost.
fn whatever_happens_to_a_file(format: PictureFormat) {
    let files: Vec<_> =
        cases().into_iter().map(|case| case.file).filter(|file| sniff(file) == Some(format)).collect();
    let asked = std::env::var("CODEC_MUTATIONS").ok().and_then(|count| count.parse().ok());
    let (mut answers, mut errors) = (0, 0);
    for seed in 0..asked.unwrap_or(MUTATIONS) {
        let draw = |i: usize| (mix(seed as u64 + 1, i) >> 33) as usize;
        let mut file = files[draw(0) % files.len()].clone();
        for change in 0..1 + draw(1) % 4 {
            let (kind, value) = (draw(4 * change + 2) % 8, draw(4 * change + 3));
            // The first bytes matter most.
            let most = if draw(4 * change + 4) % 2 == 0 { file.len().min(64) } else { file.len() };
            let at = draw(4 * change + 5) % most.max(1);
            match kind {
                0 => file.truncate(at.max(1)),
                1 => file.insert(at, value as u8),
                2 if file.len() > 1 => {
                    file.remove(at.min(file.len() - 1));
                }
                3 => file[at.min(most - 1)] = [0, 1, 0x7f, 0x80, 0xff][value % 5],
                4 => file[at.min(most - 1)] ^= 1 << (value % 8),
                _ => file[at.min(most - 1)] = value as u8,
            }
        }
        let start = Instant::now();
        let (answer, most) = held(|| decode(&file, MAX_PIXELS).map(|_| decode_mask(&file, MAX_PIXELS)));
        assert!(most < MAX_HELD, "{most} bytes held for seed {seed}");
        assert!(start.elapsed() < Duration::from_secs(10), "seed {seed}");
        match answer {
            Ok(mask) => {
                mask.expect("a mask where there is a picture");
                answers += 1;
            }
            Err(_) => errors += 1,
        }
    }
    assert!(answers > 500 && errors > 500, "{answers} answers, {errors} errors");
}

#[test]
fn whatever_happens_to_a_bmp_file() {
    whatever_happens_to_a_file(PictureFormat::Bmp);
}

#[test]
fn whatever_happens_to_a_gif_file() {
    whatever_happens_to_a_file(PictureFormat::Gif);
}

#[test]
fn whatever_happens_to_a_tiff_file() {
    whatever_happens_to_a_file(PictureFormat::Tiff);
}

#[test]
fn whatever_happens_to_a_webp_file() {
    whatever_happens_to_a_file(PictureFormat::Webp);
}
