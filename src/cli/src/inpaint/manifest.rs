//! Keeps the list of results in OUT: one JSON line for each step of each picture, so that a run can go on after any end.
//!
//! A step is on the disk before the next one begins: the task's id before its submission, the result's hash before the
//! result gets its name. Steps of several pictures share one sync.
//!
//! Memory: about 50 bytes for each picture; its last line is read again when it is needed.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use lamagrid_domain::{BatchId, Failure, TaskId};

use super::error::InpaintError;

/// Name of the list in OUT.
pub(crate) const NAME: &str = ".lamagrid-manifest.jsonl";
/// Version of its format.
const VERSION: u32 = 1;
/// Lines that share one sync.
const TOGETHER: usize = 256;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    lamagrid_manifest: u32,
}

/// The batch of a run, in a line of its own.
#[derive(Debug, Serialize, Deserialize)]
struct BatchLine {
    batch: BatchId,
    /// The run has ended: the next one begins another batch.
    closed: bool,
}

/// How far a picture is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Its task is or was about to be submitted.
    Submitted,
    /// Its result has come, and has or was about to get its name.
    Written,
    /// Its result is in its place.
    Done,
    Failed,
    /// By Ctrl-C, or because the picture or an option changed.
    Cancelled,
}

/// One step of one picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Below the folder that was named.
    pub(crate) input: String,
    /// Below OUT.
    pub(crate) output: String,
    /// Hash of the picture, its mask and the options that change the result.
    pub(crate) key: String,
    pub(crate) task: TaskId,
    pub(crate) state: State,
    /// Hash of the result, once it has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<String>,
    /// Hash of the file that the result replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replaces: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<Failure>,
}

/// The last line of one output.
#[derive(Debug, Clone, Copy)]
struct Slot {
    offset: u64,
    len: u32,
    is_claimed: bool,
}

#[derive(Debug, Default)]
struct Index {
    slots: HashMap<u128, Slot>,
    /// The batch of the last run, unless that has ended.
    open_batch: Option<BatchId>,
}

impl Index {
    fn put(&mut self, output: &str, offset: u64, len: usize) {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let slot = self.slots.entry(short_hash(output.as_bytes())).or_insert(Slot {
            offset,
            len,
            is_claimed: false,
        });
        (slot.offset, slot.len) = (offset, len);
    }
}

/// A line to append.
struct Append {
    /// `None` for a line about no picture.
    output: Option<String>,
    line: Vec<u8>,
    done: oneshot::Sender<Result<(), Arc<io::Error>>>,
}

/// The list of results of one folder. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    path: PathBuf,
    index: Arc<Mutex<Index>>,
    file: Option<Arc<File>>,
    appends: Option<mpsc::SyncSender<Append>>,
}

impl Manifest {
    /// Opens the list of a folder for writing, and keeps other runs out of the folder until it is dropped.
    ///
    /// # Errors
    /// [`InpaintError`] if the folder or the list cannot be written, or another run has it.
    pub(crate) fn open(folder: &Path) -> Result<Self, InpaintError> {
        let path = folder.join(NAME);
        let failed = |source: io::Error| InpaintError::Out { path: path.clone(), source: source.into() };
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(failed)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| InpaintError::Locked { path: folder.to_owned() })?;
        let (index, end) = read(&file, &path)?;
        // A line that a power loss cut off.
        file.set_len(end).map_err(failed)?;
        let mut end = end;
        if end == 0 {
            let mut line = serde_json::to_vec(&Header { lamagrid_manifest: VERSION }).unwrap_or_default();
            line.push(b'\n');
            (&file).write_all(&line).map_err(failed)?;
            sync_folder(folder).map_err(failed)?;
            end = line.len() as u64;
        }
        let (index, file) = (Arc::new(Mutex::new(index)), Arc::new(file));
        let (appends, queue) = mpsc::sync_channel(TOGETHER);
        let writer = Writer { file: Arc::clone(&file), index: Arc::clone(&index), end };
        let spawned = std::thread::Builder::new().name("manifest".to_owned()).spawn(|| writer.run(queue));
        spawned.map_err(failed)?;
        Ok(Self { path, index, file: Some(file), appends: Some(appends) })
    }

    /// Reads the list of a folder that may not exist, for a dry run.
    ///
    /// # Errors
    /// [`InpaintError`] if it exists and cannot be read.
    pub(crate) fn look_at(folder: &Path) -> Result<Self, InpaintError> {
        let path = folder.join(NAME);
        let (index, file) = match File::open(&path) {
            Ok(file) => (read(&file, &path)?.0, Some(Arc::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Index::default(), None),
            Err(source) => return Err(InpaintError::Read { path, source }),
        };
        Ok(Self { path, index: Arc::new(Mutex::new(index)), file, appends: None })
    }

    /// Claims an output for a picture of this run. False if another picture of this run has it.
    pub(crate) fn claim(&self, output: &str) -> bool {
        let mut index = self.index.lock();
        let slot = index.slots.entry(short_hash(output.as_bytes())).or_insert(Slot {
            offset: 0,
            len: 0,
            is_claimed: false,
        });
        !std::mem::replace(&mut slot.is_claimed, true)
    }

    /// The last step of an output.
    ///
    /// # Errors
    /// [`InpaintError::Read`].
    pub(crate) fn last(&self, output: &str) -> Result<Option<Record>, InpaintError> {
        let slot =
            self.index.lock().slots.get(&short_hash(output.as_bytes())).copied().filter(|slot| slot.len > 0);
        let (Some(slot), Some(file)) = (slot, &self.file) else { return Ok(None) };
        let mut line = vec![0; slot.len as usize];
        file.read_exact_at(&mut line, slot.offset)
            .map_err(|source| InpaintError::Read { path: self.path.clone(), source })?;
        Ok(serde_json::from_slice(&line).ok().filter(|record: &Record| record.output == output))
    }

    /// Appends a step. Returns when it is on the disk.
    ///
    /// # Errors
    /// [`InpaintError::Out`].
    pub(crate) async fn append(&self, record: &Record) -> Result<(), InpaintError> {
        self.write(record, Some(record.output.clone())).await
    }

    /// The batch of a run that was interrupted, so that the next one goes on with it.
    pub(crate) fn open_batch(&self) -> Option<BatchId> {
        self.index.lock().open_batch
    }

    /// Notes that a run with this batch has begun.
    ///
    /// # Errors
    /// [`InpaintError::Out`].
    pub(crate) async fn begin_batch(&self, batch: BatchId) -> Result<(), InpaintError> {
        self.write(&BatchLine { batch, closed: false }, None).await
    }

    /// Notes that a run with this batch has ended.
    ///
    /// # Errors
    /// [`InpaintError::Out`].
    pub(crate) async fn end_batch(&self, batch: BatchId) -> Result<(), InpaintError> {
        self.write(&BatchLine { batch, closed: true }, None).await
    }

    async fn write(&self, line: &impl Serialize, output: Option<String>) -> Result<(), InpaintError> {
        let failed = |source: Arc<io::Error>| InpaintError::Out { path: self.path.clone(), source };
        let ended = || failed(Arc::new(io::Error::other("the list's writer has ended")));
        let Some(appends) = &self.appends else { return Ok(()) };
        let mut line = serde_json::to_vec(line).map_err(|error| failed(Arc::new(error.into())))?;
        line.push(b'\n');
        let (done, written) = oneshot::channel();
        // Has room for every picture in flight many times over, so it does not block.
        appends.send(Append { output, line, done }).map_err(|_| ended())?;
        written.await.map_err(|_| ended())?.map_err(failed)
    }
}

/// Appends lines on a thread of its own.
struct Writer {
    file: Arc<File>,
    index: Arc<Mutex<Index>>,
    end: u64,
}

impl Writer {
    fn run(mut self, queue: mpsc::Receiver<Append>) {
        while let Ok(first) = queue.recv() {
            let mut appends = vec![first];
            appends.extend(queue.try_iter().take(TOGETHER - 1));
            let lines: Vec<u8> = appends.iter().flat_map(|append| append.line.iter().copied()).collect();
            let written = (&*self.file).write_all(&lines).and_then(|()| self.file.sync_data());
            let written = written.map_err(Arc::new);
            if written.is_err() {
                // Removes a part of a line; the run ends in any case.
                let _ = self.file.set_len(self.end);
            } else {
                let mut index = self.index.lock();
                for append in &appends {
                    if let Some(output) = &append.output {
                        index.put(output, self.end, append.line.len());
                    }
                    self.end += append.line.len() as u64;
                }
            }
            for append in appends {
                let _ = append.done.send(written.clone());
            }
        }
    }
}

/// Writes a folder's entries to the disk.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The first half of a hash, which tells names apart in less memory.
pub(crate) fn short_hash(bytes: &[u8]) -> u128 {
    let hash = lamagrid_protocol::hash(bytes);
    hash.first_chunk().map_or(0, |half| u128::from_be_bytes(*half))
}

/// Reads a list, and the place behind its last whole line. Lines that are damaged are left out: their pictures are done again.
fn read(file: &File, path: &Path) -> Result<(Index, u64), InpaintError> {
    /// The part of a line that the index needs.
    #[derive(Deserialize)]
    struct Output {
        output: String,
    }
    let failed = |source| InpaintError::Read { path: path.to_owned(), source };
    let mut reader = BufReader::new(file);
    let (mut index, mut end, mut line) = (Index::default(), 0, Vec::new());
    loop {
        line.clear();
        let len = reader.read_until(b'\n', &mut line).map_err(failed)?;
        if len == 0 || line.last() != Some(&b'\n') {
            return Ok((index, end));
        }
        if end == 0 {
            let header: Option<Header> = serde_json::from_slice(&line).ok();
            if header.is_none_or(|header| header.lamagrid_manifest != VERSION) {
                return Err(InpaintError::Foreign { path: path.to_owned() });
            }
        } else if let Ok(Output { output }) = serde_json::from_slice(&line) {
            index.put(&output, end, len);
        } else if let Ok(BatchLine { batch, closed }) = serde_json::from_slice(&line) {
            index.open_batch = (!closed).then_some(batch);
        }
        end += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(output: &str, state: State) -> Record {
        Record {
            input: "a.jpg".into(),
            output: output.into(),
            key: "00".into(),
            task: "000102030405060708090a0b0c0d0e0f".parse().unwrap(),
            state,
            result: None,
            replaces: None,
            failure: None,
        }
    }

    #[tokio::test]
    async fn the_last_step_of_each_output_counts_and_survives() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = Manifest::open(dir.path()).unwrap();
        for (output, state) in [("a", State::Submitted), ("b", State::Submitted), ("a", State::Done)] {
            manifest.append(&record(output, state)).await.unwrap();
        }
        assert_eq!(manifest.last("a").unwrap(), Some(record("a", State::Done)));
        assert!(manifest.claim("a") && manifest.claim("c") && !manifest.claim("a"));
        assert_eq!(manifest.last("c").unwrap(), None);
        assert!(matches!(Manifest::open(dir.path()), Err(InpaintError::Locked { .. })));
        assert_eq!(
            Manifest::look_at(dir.path()).unwrap().last("b").unwrap().unwrap().state,
            State::Submitted
        );
        drop(manifest);
        let again = reopened(dir.path());
        assert_eq!(again.last("a").unwrap().unwrap().state, State::Done);
        assert!(again.claim("a"), "claims are of one run");
    }

    /// Opens a list whose writer may be about to end.
    fn reopened(folder: &Path) -> Manifest {
        loop {
            match Manifest::open(folder) {
                Err(InpaintError::Locked { .. }) => std::thread::yield_now(),
                opened => return opened.unwrap(),
            }
        }
    }

    #[tokio::test]
    async fn lines_that_were_cut_off_or_damaged_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let whole = serde_json::to_string(&record("a", State::Done)).unwrap();
        std::fs::write(&path, format!("{{\"lamagrid_manifest\":1}}\n\0\0\n{whole}\n{}", &whole[..20]))
            .unwrap();
        let manifest = Manifest::open(dir.path()).unwrap();
        assert_eq!(manifest.last("a").unwrap().unwrap().state, State::Done);
        manifest.append(&record("b", State::Failed)).await.unwrap();
        drop(manifest);
        let again = reopened(dir.path());
        assert_eq!(again.last("b").unwrap().unwrap().state, State::Failed);
        drop(again);
        std::fs::write(&path, "{\"lamagrid_manifest\":2}\n").unwrap();
        assert!(matches!(Manifest::look_at(dir.path()), Err(InpaintError::Foreign { .. })));
    }
}
