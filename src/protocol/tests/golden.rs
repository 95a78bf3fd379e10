//! Compares messages with stored samples: one per message kind and channel, in a folder per version. Samples
//! of the previous minor version must still decode, and invalid messages must cause errors and never panics.
//!
//! `UPDATE_GOLDEN=1` writes the samples of this version. A changed file of a released version means a changed
//! protocol: increase its minor version.

mod samples;

use std::collections::BTreeSet;
use std::path::PathBuf;

use bytes::Bytes;
use samples::{Sample, samples};

use lamagrid_protocol::frame::{Frame, FrameError, MAJOR, MAX_HEADER_BYTES, MAX_INLINE_BYTES, MINOR};
use lamagrid_protocol::message::{
    AdminReply, AdminRequest, ClientReply, ClientRequest, ControlReply, ControlRequest, LaneMessage, Message,
    NodeEvent, ResultReply, ResultRequest,
};

fn dir(minor: u8) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{MAJOR}.{minor}"))
}

/// Each part with its length before it, four bytes big-endian.
fn pack(parts: &[Bytes]) -> Vec<u8> {
    parts.iter().flat_map(|p| (p.len() as u32).to_be_bytes().into_iter().chain(p.iter().copied())).collect()
}

fn unpack(mut packed: &[u8]) -> Vec<Bytes> {
    let mut parts = Vec::new();
    while let Some((len, rest)) = packed.split_first_chunk::<4>() {
        let (part, rest) = rest.split_at(u32::from_be_bytes(*len) as usize);
        parts.push(Bytes::copy_from_slice(part));
        packed = rest;
    }
    parts
}

fn stored(sample: &Sample, minor: u8) -> Vec<Bytes> {
    let path = dir(minor).join(sample.file());
    let packed = std::fs::read(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; write it with UPDATE_GOLDEN=1", path.display()));
    unpack(&packed)
}

#[test]
fn stored_samples_decode_and_encode_to_the_same_bytes() {
    let samples = samples();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(dir(MINOR)).unwrap();
        for sample in &samples {
            std::fs::write(dir(MINOR).join(sample.file()), pack(&sample.parts)).unwrap();
        }
    }
    for sample in &samples {
        let parts = stored(sample, MINOR);
        let frame = Frame::from_parts(parts.clone()).unwrap();
        assert_eq!(frame.kind, sample.kind, "{}", sample.file());
        (sample.reads_back)(&frame);
        assert_eq!(parts, sample.parts, "{} is written otherwise now", sample.file());
    }
    let known: BTreeSet<_> = samples.iter().map(Sample::file).collect();
    let files: BTreeSet<_> = std::fs::read_dir(dir(MINOR))
        .unwrap()
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files, known, "a sample without its message, or two of one name");
}

#[test]
fn samples_of_the_previous_minor_version_decode() {
    let before = dir(MINOR - 1);
    for sample in samples().into_iter().filter(|sample| before.join(sample.file()).exists()) {
        let frame = Frame::from_parts(stored(&sample, MINOR - 1)).unwrap();
        let decode = CHANNELS.iter().find(|(channel, _)| *channel == sample.channel).unwrap().1;
        assert_eq!(decode(&frame), Ok(()), "{}", sample.file());
    }
}

type Decode = fn(&Frame) -> Result<(), FrameError>;

const CHANNELS: [(&str, Decode); 10] = [
    ("client-request", |f| ClientRequest::from_frame(f).map(drop)),
    ("client-reply", |f| ClientReply::from_frame(f).map(drop)),
    ("admin-request", |f| AdminRequest::from_frame(f).map(drop)),
    ("admin-reply", |f| AdminReply::from_frame(f).map(drop)),
    ("control-request", |f| ControlRequest::from_frame(f).map(drop)),
    ("control-reply", |f| ControlReply::from_frame(f).map(drop)),
    ("result-request", |f| ResultRequest::from_frame(f).map(drop)),
    ("result-reply", |f| ResultReply::from_frame(f).map(drop)),
    ("lane", |f| LaneMessage::from_frame(f).map(drop)),
    ("node-event", |f| NodeEvent::from_frame(f).map(drop)),
];

#[test]
fn every_kind_has_a_sample_and_other_kinds_are_unknown() {
    let samples: BTreeSet<_> = samples().iter().map(|s| (s.channel, s.kind)).collect();
    for (channel, decode) in CHANNELS {
        for kind in 0..=u16::MAX {
            let frame = Frame { kind, header: Bytes::from_static(&[0xc0]), blobs: Vec::new() };
            let unknown = decode(&frame) == Err(FrameError::UnknownKind { kind });
            assert_eq!(unknown, !samples.contains(&(channel, kind)), "{channel} {kind:#06x}");
        }
    }
}

/// A MessagePack map with one more entry.
fn with_field(header: &[u8], key: &str, value: &[u8]) -> Bytes {
    let (mut grown, entries) = match header[0] {
        fix @ 0x80..=0x8e => (vec![fix + 1], &header[1..]),
        0x8f => (vec![0xde, 0, 16], &header[1..]),
        0xde => {
            let count = u16::from_be_bytes([header[1], header[2]]) + 1;
            (vec![0xde, count.to_be_bytes()[0], count.to_be_bytes()[1]], &header[3..])
        }
        other => panic!("not a map: {other:#x}"),
    };
    grown.push(0xa0 | key.len() as u8);
    grown.extend(key.as_bytes());
    grown.extend(value);
    grown.extend(entries);
    grown.into()
}

#[test]
fn an_unknown_field_is_ignored() {
    let values: [&[u8]; 4] = [&[0xc0], &[0x01], &[0x92, 0x01, 0xa1, b'x'], &[0x81, 0xa1, b'k', 0xc3]];
    for sample in samples() {
        for value in values {
            let mut parts = sample.parts.clone();
            parts[1] = with_field(&parts[1], "later", value);
            (sample.reads_back)(&Frame::from_parts(parts).unwrap());
        }
    }
}

#[test]
fn neighbouring_minor_versions_are_accepted_and_others_rejected() {
    let from = |major, minor| {
        let mut parts = samples().swap_remove(0).parts;
        let mut prelude = parts[0].to_vec();
        (prelude[2], prelude[3]) = (major, minor);
        parts[0] = prelude.into();
        Frame::from_parts(parts)
    };
    assert!(from(MAJOR, MINOR + 1).is_ok());
    for (major, minor) in [(MAJOR, MINOR + 2), (MAJOR + 1, MINOR), (MAJOR - 1, MINOR), (MAJOR, u8::MAX)] {
        let error = from(major, minor).unwrap_err();
        assert_eq!(error, FrameError::Version { major, minor });
        assert!(error.to_string().contains("install the same lamagrid version"), "{error}");
    }
}

#[test]
fn limits_are_checked_before_anything_is_decoded() {
    let sample = samples().swap_remove(0).parts;
    let of = |parts: Vec<Bytes>| match Frame::from_parts(parts) {
        Err(FrameError::Malformed { what }) => what,
        other => panic!("{other:?}"),
    };
    let zeros = |len| Bytes::from(vec![0; len]);
    let (prelude, header) = (sample[0].clone(), sample[1].clone());
    assert_eq!(of(Vec::new()), "wrong number of frames");
    assert_eq!(of(vec![prelude.clone()]), "wrong number of frames");
    assert_eq!(
        of(vec![prelude.clone(), header.clone(), zeros(0), zeros(0), zeros(0), zeros(0), zeros(0)]),
        "wrong number of frames"
    );
    assert_eq!(of(vec![prelude.slice(..7), header.clone()]), "the prelude is not 8 bytes");
    assert_eq!(of(vec![zeros(8), header.clone()]), "the prelude does not begin with LG");
    assert_eq!(of(vec![prelude.clone(), zeros(MAX_HEADER_BYTES + 1)]), "the header is longer than 64 KiB");
    assert_eq!(
        of(vec![prelude.clone(), header.clone(), zeros(MAX_INLINE_BYTES + 1)]),
        "an inline blob is longer than 256 KiB"
    );
    assert_eq!(of(vec![prelude, zeros(1 << 20), header]), "longer than 1 MiB");
}

/// Knuth's linear congruential generator: the same cases on every machine.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % bound
    }
}

#[test]
fn damaged_messages_are_errors_and_never_panics() {
    let samples: Vec<_> = samples().into_iter().map(|s| s.parts).collect();
    let mut random = Lcg(20_260_101);
    let (mut understood, mut refused) = (0, 0);
    for _ in 0..200_000 {
        let mut parts = samples[random.below(samples.len())].clone();
        for _ in 0..=random.below(4) {
            let at = random.below(parts.len());
            let mut part = parts[at].to_vec();
            let byte = random.below(part.len().max(1));
            match random.below(7) {
                0 => part.truncate(byte),
                1 if !part.is_empty() => drop(part.remove(byte)),
                2 => part.insert(byte.min(part.len()), random.below(256) as u8),
                3 => part = (0..random.below(40)).map(|_| random.below(256) as u8).collect(),
                4 => parts.truncate(at + 1),
                5 => parts.push(Bytes::copy_from_slice(&part)),
                // MessagePack's length markers, which decoders tend to trust.
                _ if !part.is_empty() => {
                    part[byte] = [0xc6, 0xdb, 0xdd, 0xdf, 0x91, 0xff, 0x00][random.below(7)]
                }
                _ => {}
            }
            let at = at.min(parts.len() - 1);
            parts[at] = part.into();
        }
        let Ok(frame) = Frame::from_parts(parts) else {
            refused += 1;
            continue;
        };
        for (_, decode) in CHANNELS {
            match decode(&frame) {
                Ok(()) => understood += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(
        understood > 10_000 && refused > 100_000,
        "{understood} understood, {refused} refused: a dull test"
    );
}
