//! The corpora of `fuzz/`, and 50,000 files made from them by damage, through every picture decoder: pictures or
//! errors, and memory that the header allows. X8.

#[expect(dead_code, reason = "its pictures, masks and models are for other tests")]
mod inputs;

mod counting;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use inputs::mix;

use lamagrid_imaging::codec::{decode, decode_mask, probe};

const FORMATS: [&str; 6] = ["jpeg", "png", "webp", "bmp", "gif", "tiff"];
const DAMAGED: usize = 50_000;
const MAX_PIXELS: u64 = 1 << 16;

/// Memory of a decoder that does not depend on the file: tables, windows, one row.
const FIXED_BYTES: usize = 1 << 18;
/// The samples of the file, and the picture that is made from them; the picture twice while it is turned.
const BYTES_PER_PIXEL: usize = 8;
/// The allocator does not count the memory of C libraries; the resident size of the process includes it.
const RESIDENT_BYTES: usize = 16 << 20;

/// Numbers at which sizes overflow.
const NUMBERS: [u32; 8] = [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff];

fn corpus(format: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(format);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a file")).collect()
}

/// File `number` of a format: one of the corpus with one to six changes.
fn damaged(corpus: &[Vec<u8>], number: usize) -> Vec<u8> {
    let draw = |i: usize| (mix(number as u64, i) >> 33) as usize;
    let mut file = corpus[draw(0) % corpus.len()].clone();
    for change in 0..1 + draw(1) % 6 {
        let [kind, at, value, other] = std::array::from_fn(|i| draw(2 + 4 * change + i));
        let at = at % file.len().max(1);
        match kind % 8 {
            0 if !file.is_empty() => file[at] ^= 1 << (value % 8),
            1 if !file.is_empty() => file[at] = value as u8,
            2 => file.truncate(at),
            3 => file.insert(at, value as u8),
            4 => drop(file.drain(at..file.len().min(at + value % 40))),
            // A number of two or four bytes, of either order.
            5 | 6 => {
                let number = NUMBERS[value % NUMBERS.len()];
                let bytes = if other % 2 == 0 { number.to_be_bytes() } else { number.to_le_bytes() };
                let width = if kind % 8 == 5 { 2 } else { 4 };
                let bytes = if other % 2 == 0 { &bytes[4 - width..] } else { &bytes[..width] };
                for (place, byte) in file[at..].iter_mut().zip(bytes) {
                    *place = *byte;
                }
            }
            _ => {
                let donor = &corpus[value % corpus.len()];
                let from = other % donor.len();
                file.splice(
                    at..file.len().min(at + 16),
                    donor[from..donor.len().min(from + 16)].iter().copied(),
                );
            }
        }
    }
    file
}

/// A PNG file with right checksums, as far as its chunks can be told apart: else nothing behind them is reached.
fn with_checksums(mut file: Vec<u8>) -> Vec<u8> {
    let mut at = 8;
    while let Some(length) = file.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        let end = at + 8 + u32::from_be_bytes(*length) as usize;
        let Some(chunk) = file.get(at + 4..end) else { break };
        let checksum = crc32fast::hash(chunk).to_be_bytes();
        let Some(place) = file.get_mut(end..end + 4) else { break };
        place.copy_from_slice(&checksum);
        at = end + 4;
    }
    file
}

/// Reads a file in both ways, and gives whether it has a picture.
fn read(file: &[u8]) -> bool {
    let size = probe(file).map_or(0, |header| u64::from(header.width) * u64::from(header.height));
    let allowed = FIXED_BYTES + 2 * file.len() + BYTES_PER_PIXEL * size.min(MAX_PIXELS) as usize;
    let (picture, bytes) = counting::held(|| decode(file, MAX_PIXELS));
    assert!(
        bytes <= allowed,
        "{bytes} bytes held, {allowed} allowed for {size} pixels in {} bytes",
        file.len()
    );
    let (mask, bytes) = counting::held(|| decode_mask(file, MAX_PIXELS));
    assert!(bytes <= allowed, "mask: {bytes} bytes held, {allowed} allowed for {size} pixels");
    drop(mask);
    picture.is_ok()
}

/// Most memory that the process ever held.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
}

#[test]
fn damaged_files_are_pictures_or_errors_in_bounded_memory() {
    let before = peak_bytes();
    for format in FORMATS {
        let corpus = corpus(format);
        assert!(corpus.len() >= 10, "{format}");
        let sound = corpus.iter().filter(|file| read(file)).count();
        assert!(sound > corpus.len() / 2, "{format}: {sound} of {} are pictures", corpus.len());
        let share = DAMAGED.div_ceil(FORMATS.len());
        let mut pictures = 0;
        for number in 0..share {
            let mut file = damaged(&corpus, number);
            if format == "png" && number % 4 != 0 {
                file = with_checksums(file);
            }
            let found = catch_unwind(AssertUnwindSafe(|| read(&file)));
            pictures += usize::from(found.unwrap_or_else(|_| panic!("damaged {format} file {number}")));
        }
        assert!((share / 20..share).contains(&pictures), "{format}: {pictures} of {share} are pictures");
    }
    let grown = peak_bytes() - before;
    assert!(grown < RESIDENT_BYTES, "{grown} bytes more than before");
}
