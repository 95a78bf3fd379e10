//! Every line of `golden/jpeg/cases.txt`: the pixels and the files of Lama Cleaner 1.2.5 with Pillow 10.4 (X18); and
//! files that ask for more than they may.

#[expect(dead_code, reason = "its masks and models are for other tests")]
mod inputs;

mod counting;

use std::path::Path;

use inputs::{mix, picture};

use lamagrid_domain::PictureFormat;
use lamagrid_imaging::codec::{CodecError, Metadata, decode, decode_mask, encode, probe};
use lamagrid_imaging::{Image, Rgb};

const MAX_PIXELS: u64 = 1 << 20;

/// The hash of `make_golden.py`.
fn digest(values: &[u8]) -> u64 {
    let terms = values.iter().enumerate().map(|(i, v)| (u64::from(*v) + 1).wrapping_mul(mix(7, i) | 1));
    terms.fold(0, u64::wrapping_add)
}

fn file(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/jpeg/{name}.jpg"));
    std::fs::read(path).expect("a golden file")
}

fn cases(word: &str) -> Vec<Vec<&'static str>> {
    let lines = include_str!("golden/jpeg/cases.txt").lines();
    lines.map(|line| line.split(' ').collect::<Vec<_>>()).filter(|words| words[0] == word).collect()
}

fn write(pixels: &Image<Rgb>, quality: u8, metadata: &Metadata) -> Result<Vec<u8>, CodecError> {
    encode(pixels, None, PictureFormat::Jpeg, quality, metadata)
}

#[test]
fn files_are_read_and_answered_as_upstream_does() {
    let cases = cases("read");
    assert_eq!(cases.len(), 70);
    for words in cases {
        let [_, name, mode, sizes @ .., pixels, mask, answer] = words.as_slice() else {
            panic!("no case: {words:?}")
        };
        let bytes = file(name);
        let header = probe(&bytes).expect("a header");
        let picture = decode(&bytes, MAX_PIXELS).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (height, width) = picture.pixels.shape();
        assert_eq!(header.mode.as_str(), *mode, "{name}");
        let found =
            [header.height as usize, header.width as usize, height, width].map(|side| side.to_string());
        assert_eq!(found.as_slice(), sizes, "{name}");
        assert_eq!(digest(picture.pixels.data()).to_string(), *pixels, "pixels of {name}");
        let grey = decode_mask(&bytes, MAX_PIXELS).expect("a mask");
        assert_eq!(digest(grey.data()).to_string(), *mask, "mask of {name}");
        let written = write(&picture.pixels, 90, &picture.metadata).expect("a file");
        assert_eq!(digest(&written).to_string(), *answer, "answer to {name}");
    }
}

#[test]
fn files_are_written_byte_for_byte_as_upstreams() {
    let cases = cases("write");
    assert_eq!(cases.len(), 40);
    for words in cases {
        let &[_, kind, seed, height, width, quality, file] = words.as_slice() else {
            panic!("no case: {words:?}")
        };
        let number = |word: &str| word.parse().expect("a number");
        let pixels = picture(kind, number(seed) as u64, number(height), number(width));
        let written = write(&pixels, number(quality) as u8, &Metadata::default()).expect("a file");
        assert_eq!(digest(&written).to_string(), file, "{words:?}");
    }
}

#[test]
fn a_cut_file_is_no_picture_unless_only_its_end_is_missing() {
    let cases = cases("cut");
    assert_eq!(cases.len(), 6);
    for words in cases {
        let bytes = file(words[1]);
        let least = words[2].parse().expect("a number");
        let whole = decode(&bytes, MAX_PIXELS).expect("a picture");
        for end in 0..bytes.len() {
            match decode(&bytes[..end], MAX_PIXELS) {
                Ok(picture) => {
                    assert!(end >= least && picture.pixels == whole.pixels, "{words:?} cut at {end}")
                }
                Err(error) => assert!(end < least, "{words:?} cut at {end}: {error}"),
            }
        }
    }
}

#[test]
fn damage_gives_a_picture_or_an_error() {
    for name in
        ["422_31x18", "440_17x33", "progressive_1", "restart_rows", "grey_progressive", "ycck", "exif_3"]
    {
        let bytes = file(name);
        for case in 0..2000 {
            let mut damaged = bytes.clone();
            for change in 0..1 + case % 3 {
                let draw = mix(case as u64, change);
                let at = (draw >> 32) as usize % damaged.len();
                match draw & 3 {
                    0 => damaged[at] = (draw >> 8) as u8,
                    1 => damaged[at] ^= 1 << (draw >> 8 & 7),
                    2 => drop(damaged.remove(at)),
                    _ => damaged.insert(at, (draw >> 8) as u8),
                }
            }
            let _ = decode(&damaged, 1 << 16);
        }
    }
}

/// A file of 8 x 8 pixels whose frame header says otherwise.
fn resized(height: u16, width: u16) -> Vec<u8> {
    let mut bytes = file("420_8x8");
    let frame = bytes.windows(4).position(|window| window == [0xff, 0xc0, 0, 17]).expect("a frame header");
    bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    bytes
}

#[test]
fn a_huge_header_is_refused_before_anything_is_allocated() {
    let bomb = resized(65500, 65500);
    let (refused, bytes) = counting::held(|| decode(&bomb, MAX_PIXELS));
    assert!(matches!(refused, Err(CodecError::TooLarge { .. })));
    assert!(bytes < 4096, "{bytes} bytes held");
    assert!(matches!(decode(&bomb, u64::MAX), Err(CodecError::TooLarge { .. })), "no such picture can exist");
    assert!(matches!(decode(&resized(0, 8), MAX_PIXELS), Err(CodecError::Malformed { .. })));
    // Missing pixels are grey, as with Pillow.
    let picture = decode(&resized(160, 160), MAX_PIXELS).expect("a picture");
    assert_eq!(picture.pixels.shape(), (160, 160));
    assert_eq!(picture.pixels.data()[3 * 160 * 100..][..3], [128; 3]);
}

#[test]
fn a_file_of_very_many_scans_is_refused() {
    let bytes = file("progressive_0");
    let scan = bytes.windows(2).rposition(|window| window == [0xff, 0xda]).expect("a scan");
    let (begin, end) = bytes.split_at(bytes.len() - 2);
    let with_more = |scans: usize| [begin, &begin[scan..].repeat(scans), end].concat();
    assert!(decode(&with_more(90), MAX_PIXELS).is_ok());
    let refused = decode(&with_more(1000), MAX_PIXELS);
    assert!(matches!(refused, Err(CodecError::Unsupported { .. })), "{refused:?}");
}

#[test]
fn what_jpeg_cannot_hold_is_refused() {
    let pixels = picture("noise", 1, 4, 5);
    let alpha = Image::new(4, 5, vec![7; 20]).expect("alpha");
    let refused = encode(&pixels, Some(&alpha), PictureFormat::Jpeg, 95, &Metadata::default());
    assert!(matches!(refused, Err(CodecError::Unsupported { .. })));
    let refused = write(&Image::black(1, 65501).expect("a picture"), 95, &Metadata::default());
    assert!(matches!(refused, Err(CodecError::Malformed { .. })));
    let block = |bytes| Metadata { exif: Some(vec![0; bytes]), parameters: None };
    assert!(write(&pixels, 95, &block(65527)).is_ok());
    assert!(matches!(write(&pixels, 95, &block(65528)), Err(CodecError::Malformed { .. })));
}
