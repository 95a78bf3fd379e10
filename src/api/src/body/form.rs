//! Reads the fields and files of a request, from a form or from JSON.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use tokio::sync::Semaphore;

use lamagrid_client::Staging;
use lamagrid_domain::{Failure, FailureKind, Owner};

use super::json::{Object, Value};
use super::multipart::{Multipart, MultipartError, PartHead, Piece};
use super::reader::{BodyReader, Room, Share, announced};
use super::upload::{Upload, UploadWriter};
use crate::problem::{Fault, Problem};

/// Limit on all text fields of a form together, in bytes.
const FIELDS_BYTES: u64 = 1 << 20;
/// Limit on the fields and files of a request.
const FIELDS: usize = 100;
/// Longest name of a field, in bytes.
const MAX_NAME_BYTES: usize = 64;
/// The largest body in JSON: it is held in memory, where a form is not.
const JSON_BYTES: u64 = 16 << 20;
/// Bodies in JSON that are held at the same time.
const JSON_BODIES: usize = 4;

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum FieldValue {
    /// A text of a form, which may stand for a number.
    Written(String),
    Null,
    Bool(bool),
    Int(i64),
    /// Above 2^63.
    Large(u64),
    Float(f64),
    Text(String),
}

/// A field with its name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) value: FieldValue,
}

/// An uploaded file with the name of its field.
#[derive(Debug)]
pub(crate) struct NamedFile {
    pub(crate) name: String,
    pub(crate) upload: Upload,
}

/// The fields and files of a request.
#[derive(Debug)]
pub(crate) struct Form {
    pub(crate) fields: Vec<Field>,
    pub(crate) files: Vec<NamedFile>,
    /// Held until the task has taken the files over.
    _share: Share,
}

/// Reads the bodies of requests that submit tasks.
#[derive(Debug)]
pub(crate) struct FormReader {
    staging: Staging,
    room: Room,
    json: Semaphore,
    max_file_bytes: u64,
    min_free_bytes: u64,
    /// Names of the fields that are files.
    files: &'static [&'static str],
}

impl FormReader {
    pub(crate) fn new(
        staging: Staging,
        max_file_bytes: u64,
        min_free_bytes: u64,
        files: &'static [&'static str],
    ) -> Self {
        Self {
            staging,
            room: Room::new(),
            json: Semaphore::new(JSON_BODIES),
            max_file_bytes,
            min_free_bytes,
            files,
        }
    }

    /// Reads a request's body; its files may have `max_bytes` together.
    ///
    /// # Errors
    /// 400, 408, 413, 415, 503 or 507.
    pub(crate) async fn read(
        &self,
        owner: &Owner,
        request: Request,
        max_bytes: u64,
    ) -> Result<Form, Problem> {
        let (head, body) = request.into_parts();
        let kind = head.headers.get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or_default());
        let kind = kind.unwrap_or_default();
        let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        if head.headers.contains_key(header::CONTENT_ENCODING) {
            return Err(unsupported("the body has a Content-Encoding; send it as it is"));
        }
        let limit =
            (self.files.len() as u64 * self.max_file_bytes).min(max_bytes).saturating_add(FIELDS_BYTES);
        match essence.as_str() {
            "multipart/form-data" => {
                let length = announced(&head.headers, limit)?;
                let parser = Multipart::new(kind)?;
                self.must_fit(length.unwrap_or(0))?;
                self.read_form(parser, BodyReader::new(body, limit, self.room.enter(owner)?), max_bytes).await
            }
            "application/json" => {
                let limit = limit.min(JSON_BYTES);
                announced(&head.headers, limit).map_err(|problem| json_too_large(problem, limit))?;
                self.read_json(body, limit, owner).await
            }
            other => Err(unsupported(&format!(
                "the body's type is {:?}; send multipart/form-data or application/json",
                other.chars().take(80).collect::<String>()
            ))),
        }
    }

    /// Refuses an upload that would leave too little space on the disk.
    fn must_fit(&self, bytes: u64) -> Result<(), Problem> {
        // Ignored if it cannot be read: the write itself reports a full disk.
        let Ok(found) = rustix::fs::statvfs(self.staging.root()) else { return Ok(()) };
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        if self.min_free_bytes == 0 || free >= self.min_free_bytes.saturating_add(bytes) {
            return Ok(());
        }
        let text = format!(
            "the disk of the scheduler has {free} bytes left, and {} are kept free (limits.min_free_bytes); try again \
             later",
            self.min_free_bytes
        );
        Err(Problem::of_failure(&Failure::new(FailureKind::DiskFull, text)))
    }

    async fn read_form(
        &self,
        mut parser: Multipart,
        mut body: BodyReader,
        max_bytes: u64,
    ) -> Result<Form, Problem> {
        let mut form = Parts { fields: Vec::new(), files: Vec::new(), field_bytes: 0, file_bytes: 0 };
        let mut open = None;
        while let Some(bytes) = body.next().await? {
            parser.push(&bytes);
            while let Some(piece) = parser.next()? {
                match piece {
                    Piece::Begin(head) => open = Some(self.begin(head, &form)?),
                    Piece::Data(data) => {
                        if let Some(part) = &mut open {
                            form.add(part, &data, max_bytes).await?;
                        }
                    }
                    Piece::End => {
                        if let Some(part) = open.take() {
                            form.end(part).await?;
                        }
                    }
                }
            }
        }
        parser.finish()?;
        Ok(Form { fields: form.fields, files: form.files, _share: body.into_share() })
    }

    fn begin(&self, head: PartHead, form: &Parts) -> Result<Part, Problem> {
        let PartHead { name, is_file } = head;
        check_name(&name)?;
        if form.fields.len() + form.files.len() >= FIELDS {
            return Err(Problem::bad(format!("the form has more than {FIELDS} fields; leave some out")));
        }
        if form.has(&name) {
            return Err(doubled(&name));
        }
        if self.files.contains(&name.as_str()) {
            let writer = UploadWriter::new(&self.staging, &name, self.max_file_bytes);
            return Ok(Part::File { name, writer: Box::new(writer) });
        }
        if is_file {
            let files = self.files.join(", ");
            return Err(Problem::bad(format!("the field {name} is a file; only {files} may be")));
        }
        Ok(Part::Field { name, text: Vec::new() })
    }

    async fn read_json(&self, body: Body, limit: u64, owner: &Owner) -> Result<Form, Problem> {
        let mut reader = BodyReader::new(body, limit, self.room.enter(owner)?);
        let _place = self.json.try_acquire().map_err(|_| {
            Problem::new(
                Fault::Busy,
                "too many bodies in JSON are being read; try again, or send multipart/form-data",
            )
        })?;
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next().await.map_err(|problem| json_too_large(problem, limit))? {
            bytes.extend_from_slice(&piece);
        }
        let text =
            std::str::from_utf8(&bytes).map_err(|_| Problem::bad("the body is not UTF-8; encode it so"))?;
        let Object(members) = serde_json::from_str(text).map_err(|error| {
            Problem::bad(format!("the body is no JSON object of plain values: {error}; correct it"))
        })?;
        let mut form = Parts { fields: Vec::new(), files: Vec::new(), field_bytes: 0, file_bytes: 0 };
        for (name, value) in members {
            check_name(&name)?;
            if form.has(&name) {
                return Err(doubled(&name));
            }
            if form.fields.len() + form.files.len() >= FIELDS {
                return Err(Problem::bad(format!("the body has more than {FIELDS} members; leave some out")));
            }
            if self.files.contains(&name.as_str()) && value != Value::Null {
                let bytes = decoded(&name, &value)?;
                let mut writer = UploadWriter::new(&self.staging, &name, self.max_file_bytes);
                writer.write(&bytes).await?;
                form.files.push(NamedFile { name, upload: writer.finish().await? });
            } else {
                let value = plain(value);
                form.fields.push(Field { name, value });
            }
        }
        Ok(Form { fields: form.fields, files: form.files, _share: reader.into_share() })
    }
}

/// A part of a form while it is read.
enum Part {
    Field { name: String, text: Vec<u8> },
    File { name: String, writer: Box<UploadWriter> },
}

/// The complete parts.
struct Parts {
    fields: Vec<Field>,
    files: Vec<NamedFile>,
    field_bytes: u64,
    file_bytes: u64,
}

impl Parts {
    fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|field| field.name == name) || self.files.iter().any(|file| file.name == name)
    }

    async fn add(&mut self, part: &mut Part, data: &Bytes, max_bytes: u64) -> Result<(), Problem> {
        match part {
            Part::Field { text, .. } => {
                self.field_bytes += data.len() as u64;
                if self.field_bytes > FIELDS_BYTES {
                    let text =
                        format!("the fields of the form have more than {FIELDS_BYTES} bytes; shorten them");
                    return Err(Problem::new(Fault::TooLarge, text));
                }
                text.extend_from_slice(data);
                Ok(())
            }
            Part::File { writer, .. } => {
                self.file_bytes += data.len() as u64;
                if self.file_bytes > max_bytes {
                    let text =
                        format!("the API key allows {max_bytes} bytes for one task; send smaller pictures");
                    return Err(Problem::new(Fault::TooLarge, text));
                }
                writer.write(data).await
            }
        }
    }

    async fn end(&mut self, part: Part) -> Result<(), Problem> {
        match part {
            Part::Field { name, text } => {
                let text = String::from_utf8(text)
                    .map_err(|_| Problem::bad(format!("the field {name} is not UTF-8; encode it so")))?;
                self.fields.push(Field { name, value: FieldValue::Written(text) });
            }
            Part::File { name, writer } => {
                self.files.push(NamedFile { name, upload: writer.finish().await? });
            }
        }
        Ok(())
    }
}

impl From<MultipartError> for Problem {
    fn from(error: MultipartError) -> Self {
        Self::bad(error.to_string())
    }
}

fn check_name(name: &str) -> Result<(), Problem> {
    if name.len() <= MAX_NAME_BYTES {
        return Ok(());
    }
    let shown: String = name.chars().take(20).collect();
    Err(Problem::bad(format!("there is no field {shown:?}...: names have at most {MAX_NAME_BYTES} bytes")))
}

fn doubled(name: &str) -> Problem {
    Problem::bad(format!("the field {name:?} comes twice; send it once"))
}

fn unsupported(text: &str) -> Problem {
    Problem::new(Fault::UnsupportedMediaType, text)
}

fn json_too_large(problem: Problem, limit: u64) -> Problem {
    if problem.status() != 413 {
        return problem;
    }
    let text = format!("a body in JSON may have {limit} bytes; send larger pictures as multipart/form-data");
    Problem::new(Fault::TooLarge, text)
}

/// The bytes of a picture in base64, with or without the head of a `data:` URL.
fn decoded(name: &str, value: &Value<'_>) -> Result<Vec<u8>, Problem> {
    let wrong = || {
        Problem::bad(format!("the member {name} is not base64 (RFC 4648, with padding); encode the file so"))
    };
    let Value::Text(text) = value else { return Err(wrong()) };
    let data = match text.strip_prefix("data:") {
        Some(rest) => rest.split_once(";base64,").ok_or_else(wrong)?.1,
        None => text,
    };
    BASE64_STANDARD.decode(data).map_err(|_| wrong())
}

fn plain(value: Value<'_>) -> FieldValue {
    match value {
        Value::Null => FieldValue::Null,
        Value::Bool(v) => FieldValue::Bool(v),
        Value::Int(v) => FieldValue::Int(v),
        Value::Large(v) => FieldValue::Large(v),
        Value::Float(v) => FieldValue::Float(v),
        Value::Text(v) => FieldValue::Text(v.into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: &[&str] = &["image", "mask"];

    async fn read(kind: &str, body: impl Into<Body>) -> Result<Form, Problem> {
        let dir = tempfile::tempdir().unwrap();
        let reader = FormReader::new(Staging::create(dir.path()).unwrap(), 1_000_000, 0, FILES);
        let request = Request::builder().header(header::CONTENT_TYPE, kind).body(body.into()).unwrap();
        reader.read(&Owner::local(), request, 700_000).await
    }

    fn part(name: &str, more: &str, data: &str) -> String {
        format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"{more}\r\n\r\n{data}\r\n")
    }

    async fn form(parts: &[String]) -> Result<Form, Problem> {
        read("multipart/form-data; boundary=b", parts.concat() + "--b--\r\n").await
    }

    #[tokio::test]
    async fn forms_and_json_carry_the_same() {
        let parts =
            [part("image", "; filename=x", "pict"), part("model", "", "lama"), part("sd_seed", "", "3")];
        let found = form(&parts).await.unwrap();
        let names: Vec<_> =
            found.fields.iter().map(|field| (field.name.as_str(), field.value.clone())).collect();
        let written = |text: &str| FieldValue::Written(text.to_owned());
        assert_eq!(names, [("model", written("lama")), ("sd_seed", written("3"))]);
        assert_eq!(
            (found.files[0].name.as_str(), found.files[0].upload.head.as_ref()),
            ("image", b"pict".as_slice())
        );
        let body =
            r#"{"image": "cGljdA==", "mask": "data:image/png;base64,cGljdA==", "sd_seed": 3, "queue": null}"#;
        let found = read("application/json; charset=utf-8", body).await.unwrap();
        assert_eq!(found.files.len(), 2);
        assert!(found.files.iter().all(|file| file.upload.head.as_ref() == b"pict"));
        assert_eq!(found.fields[0], Field { name: "sd_seed".into(), value: FieldValue::Int(3) });
    }

    #[tokio::test]
    async fn wrong_bodies_are_refused() {
        let image = part("image", "; filename=x", "pict");
        for (parts, wanted) in [
            (vec![image.clone(), image.clone()], "comes twice"),
            (vec![part("model", "", "a"), part("model", "", "b")], "comes twice"),
            (vec![part("model", "; filename=x", "a")], "is a file"),
            (vec![part(&"x".repeat(65), "", "a")], "there is no field"),
            (vec![part("prompt", "", &"x".repeat(1_100_000))], "more than 1048576 bytes"),
            (vec![part("image", "", &"x".repeat(700_001))], "the API key allows 700000 bytes"),
            ((0..101).map(|at| part(&format!("f{at}"), "", "")).collect(), "more than 100 fields"),
        ] {
            let problem = serde_json::to_string(&form(&parts).await.unwrap_err()).unwrap();
            assert!(problem.contains(wanted), "{problem}");
        }
        for (kind, body, status) in [
            ("text/plain", "x", 415),
            ("", "x", 415),
            ("multipart/form-data", "x", 400),
            ("application/json", "{\"image\": 3}", 400),
            ("application/json", "{\"image\": \"%%\"}", 400),
            ("application/json", "{\"image\": \"data:,x\"}", 400),
            ("application/json", "{\"model\": []}", 400),
            ("application/json", "{\"a\": 1, \"a\": 1}", 400),
            ("application/json", "", 400),
        ] {
            assert_eq!(read(kind, body).await.unwrap_err().status(), status, "{kind} {body}");
        }
        assert_eq!(read("application/json", vec![b'{', 0xff]).await.unwrap_err().status(), 400);
    }
}
