//! Takes one uploaded file: a small one stays in memory, a larger one goes to a file while it comes.

use bytes::Bytes;

use lamagrid_client::{Content, StagedWriter, Staging};
use lamagrid_domain::{Failure, FailureKind};

use crate::problem::{Fault, Problem};

/// A file up to this size stays in memory; such inputs travel in the message to the scheduler.
const MAX_MEMORY: usize = 256 * 1024;
/// Bytes that are written to a file at once.
const WRITE_BYTES: usize = 64 * 1024;

/// A complete uploaded file.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) content: Content,
    /// Its first bytes, which hold the header of a picture.
    pub(crate) head: Bytes,
}

/// A file that is being uploaded.
#[derive(Debug)]
pub(crate) struct UploadWriter {
    staging: Staging,
    limit: u64,
    name: String,
    len: u64,
    buffer: Vec<u8>,
    file: Option<StagedWriter>,
    head: Bytes,
}

impl UploadWriter {
    /// `name` is the field's, for error texts; the file may have `limit` bytes.
    pub(crate) fn new(staging: &Staging, name: &str, limit: u64) -> Self {
        Self {
            staging: staging.clone(),
            limit,
            name: name.to_owned(),
            len: 0,
            buffer: Vec::new(),
            file: None,
            head: Bytes::new(),
        }
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// 413 above the limit, 507 if the disk is full.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        self.len += bytes.len() as u64;
        if self.len > self.limit {
            let (name, limit) = (&self.name, self.limit);
            let text = format!(
                "the file {name} has more than the {limit} bytes that are allowed; send a smaller one"
            );
            return Err(Problem::new(Fault::TooLarge, text));
        }
        self.buffer.extend_from_slice(bytes);
        let most = if self.file.is_some() { WRITE_BYTES } else { MAX_MEMORY };
        if self.buffer.len() > most { self.flush().await } else { Ok(()) }
    }

    /// Ends the file.
    ///
    /// # Errors
    /// 507 if the disk is full.
    pub(crate) async fn finish(mut self) -> Result<Upload, Problem> {
        if self.file.is_some() {
            self.flush().await?;
        }
        let Some(file) = self.file else {
            let bytes = Bytes::from(self.buffer);
            return Ok(Upload { content: Content::Bytes(bytes.clone()), head: bytes });
        };
        Ok(Upload { content: Content::File(file.finish().into()), head: self.head })
    }

    /// Writes the buffered bytes to the file, on a thread for blocking work.
    async fn flush(&mut self) -> Result<(), Problem> {
        let (file, staging, buffer) =
            (self.file.take(), self.staging.clone(), std::mem::take(&mut self.buffer));
        let is_first = file.is_none();
        let write = move || -> std::io::Result<(StagedWriter, Vec<u8>)> {
            let mut file = file.map_or_else(|| staging.begin(), Ok)?;
            file.write(&buffer)?;
            Ok((file, buffer))
        };
        let written = tokio::task::spawn_blocking(write).await;
        let written =
            written.map_err(|_| Problem::new(Fault::Internal, "writing an upload failed; see the log"))?;
        let (file, mut buffer) = written.map_err(|error| {
            tracing::warn!(%error, "an upload cannot be written");
            let kind = match error.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => FailureKind::DiskFull,
                _ => FailureKind::Internal,
            };
            Problem::of_failure(&Failure::new(kind, "the upload cannot be written; try again later"))
        })?;
        self.file = Some(file);
        if is_first {
            self.head = buffer.into();
        } else {
            buffer.clear();
            self.buffer = buffer;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_large_file_goes_to_disk_with_its_hash_and_a_small_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let staging = Staging::create(dir.path()).unwrap();
        for (len, is_file) in
            [(0, false), (MAX_MEMORY, false), (MAX_MEMORY + 1, true), (3 * MAX_MEMORY + 7, true)]
        {
            let data: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let mut writer = UploadWriter::new(&staging, "image", len as u64);
            for piece in data.chunks(10_000) {
                writer.write(piece).await.unwrap();
                assert!(writer.buffer.len() <= MAX_MEMORY + 10_000);
            }
            let upload = writer.finish().await.unwrap();
            assert!(data.starts_with(&upload.head) && upload.head.len() >= len.min(MAX_MEMORY));
            assert_eq!(upload.content.len(), len as u64);
            match upload.content {
                Content::Bytes(bytes) => assert_eq!((bytes.as_ref(), is_file), (data.as_slice(), false)),
                Content::File(file) => {
                    assert!(is_file);
                    assert_eq!(file.hash(), lamagrid_protocol::hash(&data));
                    assert_eq!(std::fs::read(file.path()).unwrap(), data);
                }
            }
        }
        let mut writer = UploadWriter::new(&staging, "image", 3);
        assert_eq!(writer.write(b"four").await.unwrap_err().status(), 413);
    }
}
