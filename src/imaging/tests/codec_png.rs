//! Every line of `golden/png.txt`: PNG files as Lama Cleaner 1.2.5 with Pillow 10.4 reads them, or refused so
//! that Pillow can; what is damaged or lies about itself is an error, at a bounded cost; and texts as Pillow
//! writes them.

mod counting;
#[expect(dead_code, reason = "its masks and models are for other tests")]
mod inputs;

use std::time::{Duration, Instant};

use counting::held;
use inputs::{mix, picture};

use lamagrid_domain::PictureFormat;
use lamagrid_imaging::codec::{CodecError, Metadata, decode, decode_mask, encode, probe};

const MAX_PIXELS: u64 = 1 << 17;

/// Damaged files that a test makes.
const MUTATIONS: usize = 200_000;

/// Bytes that decoding may hold at a time: some copies of the largest picture, for 16 bits or four samples
/// each.
const MAX_HELD: usize = 12 * MAX_PIXELS as usize + (1 << 25);

/// Files that are left to Pillow although it has a picture or a mask for them.
const LEFT_TO_PILLOW: [&str; 5] =
    ["animation_part", "damaged_filter", "damaged_data", "damaged_checksum", "data_ends_early"];

/// The CRC-32 of ISO 3309, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

fn digest(bytes: &[u8]) -> String {
    format!("{:08x}", crc32(bytes))
}

fn from_hex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks_exact(2).map(|pair| std::str::from_utf8(pair).expect("ASCII"));
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal")).collect()
}

/// A line of the golden file: a name, what upstream makes of it, the file.
struct Case {
    name: &'static str,
    /// Height, width and digest, and that of alpha.
    picture: [&'static str; 4],
    mask: &'static str,
    parameters: Option<String>,
    file: Vec<u8>,
}

fn cases() -> Vec<Case> {
    let case = |line: &'static str| {
        let &[name, height, width, colours, alpha, mask, parameters, file] =
            line.split(' ').collect::<Vec<_>>().as_slice()
        else {
            panic!("no case: {line}")
        };
        let text = |digits| String::from_utf8(from_hex(digits)).expect("UTF-8");
        let parameters = parameters.strip_prefix("0x").map(text);
        Case { name, picture: [height, width, colours, alpha], mask, parameters, file: from_hex(file) }
    };
    include_str!("golden/png.txt").lines().map(case).collect()
}

/// The chunk of this kind, with its content.
fn chunk(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let body = [kind, content].concat();
    [&(content.len() as u32).to_be_bytes(), &body[..], &crc32(&body).to_be_bytes()].concat()
}

#[test]
fn files_are_read_as_upstream_does_or_refused() {
    let cases = cases();
    assert_eq!(cases.len(), 103);
    for Case { name, picture, mask, parameters, file } in cases {
        let mut refused = false;
        match decode(&file, MAX_PIXELS) {
            Ok(ours) => {
                let (height, width) = ours.pixels.shape();
                let alpha = ours.alpha.map_or("-".into(), |alpha| digest(alpha.data()));
                let found = [height.to_string(), width.to_string(), digest(ours.pixels.data()), alpha];
                assert_eq!(found, picture, "{name}");
                assert_eq!(ours.metadata.parameters, parameters, "{name}");
            }
            Err(CodecError::Unsupported { .. }) => refused = true,
            Err(_) => assert_eq!(picture[0], "fails", "{name}"),
        }
        match decode_mask(&file, MAX_PIXELS) {
            Ok(ours) => assert_eq!(digest(ours.data()), mask, "mask of {name}"),
            Err(CodecError::Unsupported { .. }) => refused = true,
            Err(_) => assert_eq!(mask, "fails", "mask of {name}"),
        }
        assert_eq!(refused, LEFT_TO_PILLOW.contains(&name), "{name}");
    }
}

#[test]
fn what_a_file_claims_is_not_allocated() {
    let ihdr = |width: u32, height: u32| {
        let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
        [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &[&size[..], &[8, 6, 0, 0, 0]].concat())].concat()
    };
    // A zlib stream that ends at once, and the same without its end.
    for data in [&[0x78, 1, 1, 0, 0, 0xff, 0xff, 0, 0, 0, 1][..], &[0x78, 1, 1, 9]] {
        let file = [ihdr(16_000, 10_000), chunk(b"IDAT", data), chunk(b"IEND", &[])].concat();
        assert!(file.len() < 100);
        let (result, bytes) = held(|| decode(&file, 1 << 30));
        assert!(result.is_err());
        assert!(bytes < 1 << 19, "{bytes} bytes for nothing");
        let (result, bytes) = held(|| decode(&file, MAX_PIXELS));
        assert!(matches!(result, Err(CodecError::TooLarge { width: 16_000, height: 10_000, .. })));
        assert!(bytes < 1 << 12, "{bytes} bytes for a header");
    }
    // Two pixels, and 60 MB more than they need: what follows the pixels is not looked at.
    let zeros = [0x00, 0xff, 0xff, 0x00, 0x00].into_iter().chain(std::iter::repeat_n(0, 0xffff));
    let zeros: Vec<u8> = [0x78, 1].into_iter().chain(zeros.cycle().take(60_000_000)).collect();
    let file = [ihdr(2, 1), chunk(b"IDAT", &zeros)].concat();
    let (result, bytes) = held(|| decode(&file, MAX_PIXELS));
    assert!(result.is_ok());
    assert!(bytes < 1 << 19, "{bytes} bytes for two pixels");
}

#[test]
fn damaged_files_are_errors_or_pictures_at_a_bounded_cost() {
    let files: Vec<Vec<u8>> = cases().into_iter().map(|case| case.file).collect();
    let (mut pictures, mut errors, mut most, start) = (0, 0, 0, Instant::now());
    for seed in 0..MUTATIONS {
        let draw = |i: usize, n: usize| (mix(seed as u64, i) >> 33) as usize % n.max(1);
        let mut file = files[seed % files.len()].clone();
        for i in 0..draw(0, 4) {
            let at = draw(8 * i + 1, file.len());
            match draw(8 * i + 2, 4) {
                0 => file.truncate(at),
                1 => file.splice(at..(at + draw(8 * i + 3, 9)).min(file.len()), []).for_each(drop),
                2 => file.splice(at..at, [draw(8 * i + 4, 256) as u8; 3]).for_each(drop),
                _ => file.iter_mut().skip(at).take(1).for_each(|byte| *byte = draw(8 * i + 5, 256) as u8),
            }
        }
        // Without right checksums hardly any damage would be looked at.
        let mut at = 8;
        while let Some(length) =
            file.get(at..at + 4).map(|length| u32::from_be_bytes([0, 0, length[2], length[3]]))
        {
            let end = at + 8 + length as usize;
            if end + 4 > file.len() {
                break;
            }
            let checksum = crc32(&file[at + 4..end]);
            file[end..end + 4].copy_from_slice(&checksum.to_be_bytes());
            at = end + 4;
        }
        let ((picture, mask), bytes) = held(|| (decode(&file, MAX_PIXELS), decode_mask(&file, MAX_PIXELS)));
        most = most.max(bytes);
        match (picture, mask, probe(&file)) {
            (Ok(picture), Ok(mask), Ok(_)) => {
                assert_eq!(picture.pixels.shape(), mask.shape(), "seed {seed}");
                pictures += 1;
            }
            (Ok(_), _, Err(error)) => panic!("seed {seed}: {error}, yet a picture"),
            _ => errors += 1,
        }
    }
    eprintln!("{pictures} pictures, {errors} errors, {most} bytes held at most, {:?}", start.elapsed());
    assert!(pictures > MUTATIONS / 10 && errors > MUTATIONS / 4, "{pictures} pictures, {errors} errors");
    assert!(most < MAX_HELD, "{most} bytes held");
    assert!(start.elapsed() < Duration::from_mins(3), "{:?}", start.elapsed());
}

#[test]
fn texts_and_exif_are_written_as_pillow_does() {
    let pixels = picture("smooth", 1, 5, 7);
    let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
    let write = |parameters: Option<&str>, exif: Option<&[u8]>| {
        let metadata = Metadata { exif: exif.map(<[u8]>::to_vec), parameters: parameters.map(str::to_owned) };
        encode(&pixels, None, PictureFormat::Png, 95, &metadata).expect("a file")
    };
    let plain = write(None, None);
    let (head, rest) = plain.split_at(8 + 25);
    let with = |chunks: &[Vec<u8>]| [head, &chunks.concat(), rest].concat();
    for (text, expected) in [
        ("", chunk(b"tEXt", b"parameters\0")),
        ("a\nGr\u{f6}\u{df}e", chunk(b"tEXt", b"parameters\0a\nGr\xf6\xdfe")),
        ("\u{4e2d}", chunk(b"iTXt", b"parameters\0\0\0\0\0\xe4\xb8\xad")),
    ] {
        let file = write(Some(text), Some(&exif));
        assert_eq!(file, with(&[expected, chunk(b"eXIf", &exif)]), "{text:?}");
        let picture = decode(&file, MAX_PIXELS).expect("a picture");
        assert_eq!(picture.metadata, Metadata { exif: Some(exif.clone()), parameters: Some(text.into()) });
    }
    // An EXIF block without entries is not written.
    assert_eq!(write(None, Some(b"MM\0*\0\0\0\x08\0\0\0\0\0\0")), plain);
}
