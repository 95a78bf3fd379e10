//! Parses `multipart/form-data` piece by piece, in memory of one piece.
//!
//! Does not: read a socket, or know fields. Lines end in CR LF and nothing comes before the first part, as all browsers
//! and HTTP libraries send forms.

use bytes::Bytes;

/// Limit on the head of one part, in bytes.
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// Longest boundary (RFC 2046).
const MAX_BOUNDARY_BYTES: usize = 70;

/// Why a body is no form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MultipartError {
    #[error("the Content-Type multipart/form-data has no valid boundary; let your HTTP library write it")]
    Boundary,
    #[error("the form does not begin with its boundary; let your HTTP library write it")]
    Start,
    #[error(
        "a boundary in the form is followed by something else than a line end; let your HTTP library write it"
    )]
    Delimiter,
    #[error("the head of a part of the form has more than {MAX_HEAD_BYTES} bytes; shorten it")]
    HeadTooLong,
    #[error("the head of a part of the form is not UTF-8; encode names as UTF-8")]
    NotUtf8,
    #[error("a part of the form has no `Content-Disposition: form-data; name=...`; name each part")]
    NoName,
    #[error("a part of the form has a Content-Transfer-Encoding; send the bytes as they are")]
    Encoding,
    #[error("the form ends in the middle of a part; send all of it")]
    CutOff,
}

/// The head of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartHead {
    pub(crate) name: String,
    /// True if it comes from a file.
    pub(crate) is_file: bool,
}

/// The next piece of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Begin(PartHead),
    Data(Bytes),
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    /// Behind a boundary.
    Delimited,
    Head,
    Data,
    Over,
}

/// The parser of one form.
#[derive(Debug)]
pub(crate) struct Multipart {
    delimiter: Vec<u8>,
    buffer: Vec<u8>,
    state: State,
}

impl Multipart {
    /// `content_type` is the value of the header.
    pub(crate) fn new(content_type: &str) -> Result<Self, MultipartError> {
        let boundary = parameter(content_type, "boundary").ok_or(MultipartError::Boundary)?;
        let is_valid = (1..=MAX_BOUNDARY_BYTES).contains(&boundary.len())
            && boundary.bytes().all(|b| (b' '..=b'~').contains(&b))
            && !boundary.ends_with(' ');
        if !is_valid {
            return Err(MultipartError::Boundary);
        }
        // With a line end in front, the first boundary is like the others.
        Ok(Self {
            delimiter: format!("\r\n--{boundary}").into(),
            buffer: b"\r\n".to_vec(),
            state: State::Start,
        })
    }

    /// Adds bytes of the body. Call [`Multipart::next`] until it returns `None` before the next call.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.state != State::Over {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next piece; `None` if more bytes are needed.
    pub(crate) fn next(&mut self) -> Result<Option<Piece>, MultipartError> {
        loop {
            match self.state {
                State::Start => {
                    let known = self.buffer.len().min(self.delimiter.len());
                    if self.buffer[..known] != self.delimiter[..known] {
                        return Err(MultipartError::Start);
                    }
                    if known < self.delimiter.len() {
                        return Ok(None);
                    }
                    self.take(known);
                    self.state = State::Delimited;
                }
                State::Delimited => match self.buffer.first_chunk() {
                    None => return Ok(None),
                    Some(b"\r\n") => {
                        self.take(2);
                        self.state = State::Head;
                    }
                    Some(b"--") => {
                        self.buffer = Vec::new();
                        self.state = State::Over;
                    }
                    Some(_) => return Err(MultipartError::Delimiter),
                },
                State::Head => {
                    let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") else {
                        return if self.buffer.len() > MAX_HEAD_BYTES {
                            Err(MultipartError::HeadTooLong)
                        } else {
                            Ok(None)
                        };
                    };
                    if end > MAX_HEAD_BYTES {
                        return Err(MultipartError::HeadTooLong);
                    }
                    let head = self.take(end + 4);
                    self.state = State::Data;
                    return part_head(&head[..end]).map(|head| Some(Piece::Begin(head)));
                }
                State::Data => {
                    if let Some(end) = memchr::memmem::find(&self.buffer, &self.delimiter) {
                        if end > 0 {
                            return Ok(Some(Piece::Data(self.take(end).into())));
                        }
                        self.take(self.delimiter.len());
                        self.state = State::Delimited;
                        return Ok(Some(Piece::End));
                    }
                    // The end of the buffer may be the beginning of a boundary.
                    let safe = self.buffer.len().saturating_sub(self.delimiter.len() - 1);
                    return Ok((safe > 0).then(|| Piece::Data(self.take(safe).into())));
                }
                State::Over => return Ok(None),
            }
        }
    }

    /// Call at the end of the body.
    pub(crate) fn finish(&self) -> Result<(), MultipartError> {
        if self.state == State::Over { Ok(()) } else { Err(MultipartError::CutOff) }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(count);
        std::mem::replace(&mut self.buffer, rest)
    }
}

fn part_head(head: &[u8]) -> Result<PartHead, MultipartError> {
    let head = std::str::from_utf8(head).map_err(|_| MultipartError::NotUtf8)?;
    let mut found = None;
    for line in head.split("\r\n") {
        let (name, value) = line.split_once(':').ok_or(MultipartError::NoName)?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-disposition") {
            let is_form =
                value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("form-data"));
            let name = parameter(value, "name").filter(|_| is_form && found.is_none());
            let is_file = parameter(value, "filename").is_some() || parameter(value, "filename*").is_some();
            found = Some(PartHead { name: name.ok_or(MultipartError::NoName)?, is_file });
        } else if name.eq_ignore_ascii_case("content-transfer-encoding")
            && !["binary", "8bit", "7bit"].iter().any(|plain| value.eq_ignore_ascii_case(plain))
        {
            return Err(MultipartError::Encoding);
        }
    }
    found.ok_or(MultipartError::NoName)
}

/// The value of a parameter of a header, such as `boundary` of `Content-Type`.
fn parameter(header: &str, wanted: &str) -> Option<String> {
    let mut rest = header.split_once(';')?.1;
    loop {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = after.trim_start().strip_prefix(';')?;
    }
}

/// Reads up to the closing quote, and returns the rest behind it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            // Browsers write a backslash of a file name as it is.
            '\\' if text[at + 1..].starts_with(['"', '\\']) => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=\"b+d\"";
    const FORM: &[u8] = b"--b+d\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nlama\r\n--b+d\r\n\
        content-type: image/png\r\ncontent-disposition: form-data; filename=\"a \\\"b\\\".png\"; name=image\r\n\r\n\
        \r\n--b+\r\n\r\n--b+d\r\nContent-Disposition: form-data; name=\"\xc3\xa9\"\r\n\r\n\r\n--b+d--\r\nepilogue";

    /// Parses a body that comes in pieces of `size` bytes; each part as its name and bytes.
    fn parse(body: &[u8], size: usize) -> Result<Vec<(PartHead, Vec<u8>)>, MultipartError> {
        let mut parser = Multipart::new(TYPE)?;
        let mut parts: Vec<(PartHead, Vec<u8>)> = Vec::new();
        for bytes in body.chunks(size) {
            parser.push(bytes);
            while let Some(piece) = parser.next()? {
                match piece {
                    Piece::Begin(head) => parts.push((head, Vec::new())),
                    Piece::Data(data) => parts.last_mut().unwrap().1.extend(data),
                    Piece::End => {}
                }
            }
            assert!(parser.buffer.len() <= MAX_HEAD_BYTES + size + 80);
        }
        parser.finish().map(|()| parts)
    }

    #[test]
    fn a_form_is_the_same_however_it_is_cut() {
        let part =
            |name: &str, is_file, data: &[u8]| (PartHead { name: name.into(), is_file }, data.to_vec());
        let wanted =
            vec![part("model", false, b"lama"), part("image", true, b"\r\n--b+\r\n"), part("é", false, b"")];
        for size in 1..=FORM.len() {
            assert_eq!(parse(FORM, size).unwrap(), wanted, "{size}");
        }
    }

    #[test]
    fn every_cut_form_is_refused() {
        let end = FORM.len() - b"\r\nepilogue".len();
        for len in 0..end {
            assert_eq!(parse(&FORM[..len], 7).unwrap_err(), MultipartError::CutOff, "{len}");
        }
        assert!(parse(&FORM[..end], 7).is_ok());
    }

    #[test]
    fn wrong_forms_are_refused_with_their_fault() {
        use MultipartError::{Delimiter, Encoding, HeadTooLong, NoName, NotUtf8, Start};
        let long = [b"--b+d\r\nx: ".as_slice(), &[b'y'; 9_000]].concat();
        for (body, wanted) in [
            (b"preamble\r\n--b+d\r\n".as_slice(), Start),
            (b"--other\r\n", Start),
            (b"--b+d \r\n", Delimiter),
            (b"--b+dx\r\n", Delimiter),
            (&long, HeadTooLong),
            (b"--b+d\r\nContent-Disposition: form-data; name=\"\xff\"\r\n\r\n", NotUtf8),
            (b"--b+d\r\nContent-Disposition: form-data\r\n\r\n", NoName),
            (b"--b+d\r\nContent-Disposition: form-data; name=\"open\r\n\r\n", NoName),
            (b"--b+d\r\nContent-Disposition: attachment; name=a\r\n\r\n", NoName),
            (b"--b+d\r\n\r\n\r\n\r\n", NoName),
            (b"--b+d\r\nnonsense\r\n\r\n", NoName),
            (
                b"--b+d\r\nContent-Disposition: form-data; name=a\r\nContent-Transfer-Encoding: base64\r\n\r\n",
                Encoding,
            ),
        ] {
            for size in [1, 5, body.len()] {
                assert_eq!(parse(body, size).unwrap_err(), wanted, "{:?}", String::from_utf8_lossy(body));
            }
        }
    }

    #[test]
    fn a_boundary_is_checked() {
        for header in [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=\"open",
            "multipart/form-data; boundary=\"a \"",
            "multipart/form-data; boundary=\"\u{e9}\"",
            &format!("multipart/form-data; boundary={}", "x".repeat(71)),
        ] {
            assert_eq!(Multipart::new(header).unwrap_err(), MultipartError::Boundary, "{header}");
        }
        assert!(Multipart::new("multipart/form-data; charset=utf-8; BOUNDARY=xyz").is_ok());
    }
}
