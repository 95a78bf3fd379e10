//! Writes the length and kind before a chunk's content, and the checksum after it.

/// Appends the head of a chunk, up to its content, and returns the offset at which the chunk begins.
pub(super) fn open(out: &mut Vec<u8>, kind: &[u8; 4]) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(kind);
    start
}

/// Ends the chunk that begins at `start`: sets its length and appends its checksum.
pub(super) fn close(out: &mut Vec<u8>, start: usize) {
    // Far below 2^31: at most one deflate block longer than `bits::CHUNK`.
    let length = (out.len() - start - 8) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    let checksum = crc32fast::hash(&out[start + 4..]);
    out.extend_from_slice(&checksum.to_be_bytes());
}

/// Appends a chunk whose content is `content`, part by part.
pub(super) fn chunk(out: &mut Vec<u8>, kind: &[u8; 4], content: &[&[u8]]) {
    let start = open(out, kind);
    content.iter().for_each(|part| out.extend_from_slice(part));
    close(out, start);
}
