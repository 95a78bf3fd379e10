//! Feeds a fuzzer's bytes to each decoder. A panic, a sanitizer's report, too much time or memory is a finding.

use std::borrow::Cow;

use bytes::Bytes;
use lamagrid_domain::PictureFormat;
use lamagrid_gate::fuzzing;
use lamagrid_imaging::codec::{self, Picture};
use lamagrid_protocol::frame::Frame;
use lamagrid_protocol::message::{
    AdminReply, AdminRequest, ClientReply, ClientRequest, ControlReply, ControlRequest, LaneMessage, Message,
    NodeEvent, ResultReply, ResultRequest,
};

/// Keeps one input below a few milliseconds.
const MAX_PIXELS: u64 = 1 << 16;

/// Decodes as picture and as mask; what was decoded can be written, and read again.
fn picture(data: &[u8], format: PictureFormat) {
    if codec::sniff(data) != Some(format) {
        return;
    }
    let _ = codec::decode_mask(data, MAX_PIXELS);
    let _ = codec::decode_mask_upright(data, MAX_PIXELS);
    let _ = codec::decode_upright(data, MAX_PIXELS);
    let Ok(Picture { pixels, alpha, metadata }) = codec::decode(data, MAX_PIXELS) else { return };
    let shape = pixels.shape();
    let written = if codec::encodes(format) { format } else { PictureFormat::Png };
    if let Ok(file) = codec::encode(&pixels, alpha.as_ref(), written, 90, &metadata) {
        let again = codec::decode(&file, MAX_PIXELS).expect("a file of ours");
        let turned = (shape.1, shape.0);
        assert!(
            [shape, turned].contains(&again.pixels.shape()),
            "{shape:?} became {:?}",
            again.pixels.shape()
        );
    }
}

/// The file with its signature put right, so that every input is one of this format.
fn signed<'a>(data: &'a [u8], signature: &[u8]) -> Cow<'a, [u8]> {
    if data.starts_with(signature) {
        return data.into();
    }
    [signature, data.get(signature.len()..).unwrap_or_default()].concat().into()
}

/// JPEG files.
pub fn jpeg(data: &[u8]) {
    picture(&signed(data, b"\xff\xd8\xff"), PictureFormat::Jpeg);
}

/// PNG files, their checksums put right as far as chunks can be told apart: no fuzzer guesses them.
pub fn png(data: &[u8]) {
    let mut file = signed(data, b"\x89PNG\r\n\x1a\n").into_owned();
    let mut at = 8;
    while let Some(length) = file.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        let end = at + 8 + u32::from_be_bytes(*length) as usize;
        let Some(chunk) = file.get(at + 4..end) else { break };
        let checksum = crc32fast::hash(chunk).to_be_bytes();
        let Some(place) = file.get_mut(end..end + 4) else { break };
        place.copy_from_slice(&checksum);
        at = end + 4;
    }
    picture(&file, PictureFormat::Png);
}

/// WebP files.
pub fn webp(data: &[u8]) {
    picture(data, PictureFormat::Webp);
}

/// BMP files.
pub fn bmp(data: &[u8]) {
    picture(&signed(data, b"BM"), PictureFormat::Bmp);
}

/// GIF files.
pub fn gif(data: &[u8]) {
    picture(&signed(data, b"GIF8"), PictureFormat::Gif);
}

/// TIFF files.
pub fn tiff(data: &[u8]) {
    picture(data, PictureFormat::Tiff);
}

/// An EXIF block, in a JPEG file.
pub fn exif(data: &[u8]) {
    const FILE: &[u8] = include_bytes!("../../src/imaging/tests/golden/jpeg/444_1x1.jpg");
    let Ok(length) = u16::try_from(data.len() + 8) else { return };
    let segment = [b"\xff\xe1", &length.to_be_bytes()[..], b"Exif\0\0", data].concat();
    picture(&[&FILE[..2], &segment, &FILE[2..]].concat(), PictureFormat::Jpeg);
}

/// The line before ZMTP, and the answer to it.
pub fn line(data: &[u8]) {
    fuzzing::line(data);
}

/// ZMTP: a handshake and what follows it, in pieces.
pub fn zmtp(data: &[u8]) {
    fuzzing::zmtp(data);
}

/// The parts of a message as every channel's messages: each part behind its length, as in the golden files.
pub fn messages(mut data: &[u8]) {
    let mut parts = Vec::new();
    while let Some((length, rest)) = data.split_first_chunk::<4>() {
        let (part, rest) = rest.split_at(rest.len().min(u32::from_be_bytes(*length) as usize));
        parts.push(Bytes::copy_from_slice(part));
        data = rest;
    }
    let Ok(frame) = Frame::from_parts(parts) else { return };
    message::<ClientRequest>(&frame);
    message::<ClientReply>(&frame);
    message::<ControlRequest>(&frame);
    message::<ControlReply>(&frame);
    message::<ResultRequest>(&frame);
    message::<ResultReply>(&frame);
    message::<AdminRequest>(&frame);
    message::<AdminReply>(&frame);
    message::<NodeEvent>(&frame);
    message::<LaneMessage>(&frame);
}

/// A message that was decoded can be encoded again, unless it is too long in our own encoding.
fn message<M: Message>(frame: &Frame) {
    if let Ok(message) = M::from_frame(frame)
        && let Ok(again) = message.to_frame(frame.blobs.clone())
    {
        assert!(M::from_frame(&again).is_ok(), "a message of ours is not understood");
    }
}
