#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lamagrid_fuzz::exif(data));
