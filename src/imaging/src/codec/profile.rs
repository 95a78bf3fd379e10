//! Colour profiles (ICC): reads that of a file, and adds one to a finished file without encoding it again.
//!
//! Does not: convert colours. Decoded pixels are RGB as the file stores them, so that an RGB profile is still theirs; those
//! of grey and CMYK pictures are not, because decoding converts such pictures.

use lamagrid_domain::PictureFormat;

use super::{jpeg, png, sniff, tiff, webp};

/// Limit on a profile, bytes. Those of cameras and screens have 0.5 to 600 KB.
const MAX_BYTES: usize = 1 << 20;
/// Length of a profile's header.
const HEADER: usize = 128;

/// The colour profile of a picture file, if it is one for RGB.
///
/// `None` as well if the file or the profile is damaged, or the profile is larger than 1 MiB.
#[must_use]
pub fn rgb_profile(bytes: &[u8]) -> Option<Vec<u8>> {
    let profile = match sniff(bytes)? {
        PictureFormat::Png => png::profile(bytes),
        PictureFormat::Jpeg => jpeg::profile(bytes),
        PictureFormat::Webp => webp::profile(bytes).map(<[u8]>::to_vec),
        PictureFormat::Tiff => tiff::profile(bytes).map(<[u8]>::to_vec),
        PictureFormat::Bmp | PictureFormat::Gif => None,
    };
    profile.filter(|profile| is_rgb(profile))
}

/// Adds a colour profile to a file as [`super::encode`] writes it.
///
/// `None` if the file has one, is damaged, or its format carries none; a TIFF file keeps its profile with its other tags.
#[must_use]
pub fn with_profile(file: &[u8], profile: &[u8]) -> Option<Vec<u8>> {
    if profile.len() > MAX_BYTES {
        return None;
    }
    match sniff(file)? {
        PictureFormat::Png => png::with_profile(file, profile),
        PictureFormat::Jpeg => jpeg::with_profile(file, profile),
        PictureFormat::Webp => webp::with_profile(file, profile),
        PictureFormat::Bmp | PictureFormat::Tiff | PictureFormat::Gif => None,
    }
}

/// Whether the header says so.
///
/// Source: ICC.1:2022, 7.2.
fn is_rgb(profile: &[u8]) -> bool {
    let states = |at: usize, text: &[u8]| profile.get(at..at + text.len()) == Some(text);
    let length = u32::try_from(profile.len()).unwrap_or(u32::MAX).to_be_bytes();
    (HEADER..=MAX_BYTES).contains(&profile.len())
        && states(0, &length)
        && states(16, b"RGB ")
        && states(36, b"acsp")
}

#[cfg(test)]
mod tests {
    use super::super::{Metadata, decode, encode};
    use super::*;
    use crate::image::{Gray, Image, Rgb};

    const WRITES: [PictureFormat; 3] = [PictureFormat::Png, PictureFormat::Jpeg, PictureFormat::Webp];

    /// A profile of this length, whose content does not compress to nothing.
    fn made(length: usize, space: &[u8; 4]) -> Vec<u8> {
        let mut profile: Vec<u8> = (0..length).map(|i| (i * i / 7 % 251) as u8).collect();
        profile[..4].copy_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
        profile[16..20].copy_from_slice(space);
        profile[36..40].copy_from_slice(b"acsp");
        profile
    }

    fn file(format: PictureFormat, with_alpha: Option<u8>) -> Vec<u8> {
        let pixels = Image::<Rgb>::new(5, 7, (0..105).collect()).unwrap();
        let alpha = with_alpha.map(|value| Gray::new(5, 7, vec![value; 35]).unwrap());
        encode(&pixels, alpha.as_ref(), format, 90, &Metadata::default()).unwrap()
    }

    #[test]
    fn a_profile_that_was_added_is_read_and_changes_no_pixel() {
        // Two JPEG segments hold 131,038 bytes, the third one the rest.
        for length in [HEADER, 3_145, 65_519, 65_520, 200_001, MAX_BYTES] {
            let profile = made(length, b"RGB ");
            for format in WRITES {
                for alpha in [None, Some(77)] {
                    if format == PictureFormat::Jpeg && alpha.is_some() {
                        continue;
                    }
                    let plain = file(format, alpha);
                    assert_eq!(rgb_profile(&plain), None, "{format}");
                    let with = with_profile(&plain, &profile).unwrap();
                    assert_eq!(rgb_profile(&with).as_ref(), Some(&profile), "{format} {length}");
                    let [before, after] = [&plain, &with].map(|file| decode(file, 100).unwrap());
                    assert_eq!(before.pixels, after.pixels, "{format}");
                    assert_eq!(before.alpha, after.alpha, "{format}");
                    assert_eq!(before.metadata, after.metadata, "{format}");
                    assert_eq!(with_profile(&with, &profile), None, "{format} has one");
                }
            }
        }
    }

    #[test]
    fn profiles_of_other_colours_and_damaged_ones_are_not_kept() {
        let mut cut = made(400, b"RGB ");
        cut.truncate(399);
        for profile in [made(400, b"GRAY"), made(400, b"CMYK"), cut, b"ICC".to_vec()] {
            for format in WRITES {
                let with = with_profile(&file(format, None), &profile).unwrap();
                assert_eq!(rgb_profile(&with), None, "{format}");
            }
        }
        let whole = with_profile(&file(PictureFormat::Png, None), &made(400, b"RGB ")).unwrap();
        assert_eq!(with_profile(&whole, &vec![0; MAX_BYTES + 1]), None);
    }

    #[test]
    fn files_that_are_cut_off_or_changed_are_harmless() {
        for format in WRITES {
            let with = with_profile(&file(format, None), &made(70_000, b"RGB ")).unwrap();
            for at in (0..with.len()).step_by(97) {
                let mut changed = with.clone();
                changed[at] ^= 0x55;
                for file in [&with[..at], &changed] {
                    let _ = rgb_profile(file);
                    let _ = with_profile(file, &with[..40]);
                }
            }
        }
    }
}
