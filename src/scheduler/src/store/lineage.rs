//! Tells whether a write-ahead log belongs to its database, and whether a spool was last used with it.
//!
//! SQLite replays any valid log that lies beside a database, also one that was written for another copy of the file.
//! Each commit therefore writes a link: a random id, and the id of the commit before it. The database file as it is
//! without its log then holds the id of the last commit that was copied into it, and the log holds the ids since its
//! beginning. [`belongs`] compares them before SQLite opens either file; see docs/decisions/0021.
//!
//! The spool has the ids of the last commit in a file of its own, so that a database that was put back to an older
//! state is noticed before blobs are deleted that it does not know.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension};

pub(super) type Id = [u8; 16];

/// The table with the one link. Not part of a schema version: a version that does not know it leaves it alone.
pub(super) const TABLE: &str =
    "CREATE TABLE IF NOT EXISTS lineage (one INTEGER PRIMARY KEY CHECK (one = 1), link BLOB NOT NULL);";
pub(super) const PUT: &str = "INSERT OR REPLACE INTO lineage (one, link) VALUES (1, ?1)";

const MAGIC: &[u8; 8] = b"LGrdLink";
const LINK_BYTES: usize = 41;
/// A table's leaf page, and how the row of the link begins there: 44 bytes of payload, row 1, a header of three bytes, no
/// value (the row's number is it), a blob of 41 bytes.
const LEAF: u8 = 0x0d;
const ROW: [u8; 5] = [44, 1, 3, 0, 94];

/// What a commit says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) id: Id,
    /// The commit before it; zeros where there was none.
    pub(super) before: Id,
    /// Whether a checkpoint may have copied this commit or an earlier one, while later ones went into the same log.
    pub(super) mark: bool,
}

impl Link {
    pub(super) fn after(before: Id, mark: bool) -> Self {
        Self { id: lamagrid_process::random_id(), before, mark }
    }

    pub(super) fn to_bytes(self) -> [u8; LINK_BYTES] {
        let mut bytes = [0; LINK_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..24].copy_from_slice(&self.id);
        bytes[24..40].copy_from_slice(&self.before);
        bytes[40] = u8::from(self.mark);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (head, mark) = bytes.get(..LINK_BYTES)?.split_at(LINK_BYTES - 1);
        let ids = head.strip_prefix(MAGIC)?;
        Some(Self { id: ids[..16].try_into().ok()?, before: ids[16..].try_into().ok()?, mark: mark[0] != 0 })
    }

    /// The link on a page of the log, if that is the page it lies on.
    fn on_page(page: &[u8]) -> Option<Self> {
        if page.first() != Some(&LEAF) || page.get(3..5)? != [0, 1] {
            return None;
        }
        let row = usize::from(u16::from_be_bytes(page.get(8..10)?.try_into().ok()?));
        Self::from_bytes(page.get(row..)?.strip_prefix(&ROW)?)
    }
}

/// The link of the last commit, None where there is none yet.
pub(super) fn read(connection: &Connection) -> rusqlite::Result<Option<Link>> {
    let link =
        connection.query_row("SELECT link FROM lineage", [], |row| row.get::<_, Vec<u8>>(0)).optional()?;
    Ok(link.and_then(|link| Link::from_bytes(&link)))
}

/// Whether the log is one of this database file's, so that replaying it is right. No connection of this process may be
/// open: closing a second file descriptor would drop its locks.
pub(super) fn belongs(path: &Path, log: &Path) -> io::Result<bool> {
    let log = match File::open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        log => log?,
    };
    if log.metadata()?.len() == 0 {
        return Ok(true);
    }
    let has_pages = std::fs::metadata(path).is_ok_and(|file| file.len() > 0);
    let stored = without_log(path);
    let mut chain = Chain::new(stored.unwrap_or_default());
    committed_links(log, |link| chain.add(link))?;
    Ok(chain.is_empty || (has_pages && chain.has_stored()))
}

/// The id in the database file alone. None where it cannot be read: an older version wrote it, a crash tore it, or it is
/// no database of ours; the log, or SQLite, then says more.
fn without_log(path: &Path) -> Option<Id> {
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => {
                uri.push(char::from(*byte))
            }
            other => uri.push_str(&format!("%{other:02x}")),
        }
    }
    // So it takes no locks and ignores the log.
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri, flags).ok()?;
    read(&connection).ok()?.map(|link| link.id)
}

/// The commits of a log, compared with the id in the database file.
struct Chain {
    stored: Id,
    is_empty: bool,
    /// The log begins where the file ends.
    begins_there: bool,
    /// The file has the last commit.
    ends_there: bool,
    /// The file has a commit of the log.
    has_commit: bool,
    /// From that commit on, one says that a checkpoint may have copied so far.
    was_copied: bool,
}

impl Chain {
    fn new(stored: Id) -> Self {
        Self {
            stored,
            is_empty: true,
            begins_there: false,
            ends_there: false,
            has_commit: false,
            was_copied: false,
        }
    }

    fn add(&mut self, link: Link) {
        self.begins_there |= self.is_empty && link.before == self.stored;
        self.is_empty = false;
        self.ends_there = link.id == self.stored;
        self.has_commit |= self.ends_there;
        self.was_copied |= self.has_commit && link.mark;
    }

    fn has_stored(&self) -> bool {
        self.begins_there || self.ends_there || self.was_copied
    }
}

/// Calls `found` for the link of each commit that SQLite would replay, in order.
///
/// Format: <https://www.sqlite.org/fileformat2.html#walformat>.
fn committed_links(log: impl Read, mut found: impl FnMut(Link)) -> io::Result<()> {
    let mut log = BufReader::with_capacity(1 << 20, log);
    let word = |bytes: &[u8], at: usize| {
        u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let mut header = [0; 32];
    if !fill(&mut log, &mut header)? {
        return Ok(());
    }
    let big_endian = match word(&header, 0) {
        0x377f_0682 => false,
        0x377f_0683 => true,
        _ => return Ok(()),
    };
    let page_bytes = word(&header, 8);
    let mut sum = Sum { big_endian, first: 0, second: 0 };
    sum.add(&header[..24]);
    if !sum.is(word(&header, 24), word(&header, 28))
        || !page_bytes.is_power_of_two()
        || !(512..=65_536).contains(&page_bytes)
    {
        return Ok(());
    }
    let mut frame = vec![0; 24 + page_bytes as usize];
    let mut pending = None;
    while fill(&mut log, &mut frame)? {
        sum.add(&frame[..8]);
        sum.add(&frame[24..]);
        if frame[8..16] != header[16..24] || !sum.is(word(&frame, 16), word(&frame, 20)) {
            break;
        }
        pending = Link::on_page(&frame[24..]).or(pending);
        if word(&frame, 4) != 0 {
            pending.take().into_iter().for_each(&mut found);
        }
    }
    Ok(())
}

/// The log's running checksum.
struct Sum {
    big_endian: bool,
    first: u32,
    second: u32,
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let word = |bytes: &[u8]| {
            let bytes = [bytes[0], bytes[1], bytes[2], bytes[3]];
            if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        let (mut first, mut second) = (self.first, self.second);
        for pair in bytes.chunks_exact(8) {
            first = first.wrapping_add(word(pair)).wrapping_add(second);
            second = second.wrapping_add(word(&pair[4..])).wrapping_add(first);
        }
        (self.first, self.second) = (first, second);
    }

    const fn is(&self, first: u32, second: u32) -> bool {
        self.first == first && self.second == second
    }
}

/// Fills `bytes`; false at the end of the file.
fn fill(from: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match from.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The file in the spool with the ids of the last commit and of the one before.
///
/// Only a hint: without it what a crash leaves is deleted, so that no fault of it is an error.
#[derive(Debug)]
pub(super) struct SpoolMark(Option<File>);

impl SpoolMark {
    pub(super) const NAME: &str = "last-commit";

    pub(super) fn open(spool: &Path) -> Self {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(spool.join(Self::NAME));
        let file = file.inspect_err(|error| {
            tracing::warn!(%error, path = %spool.join(Self::NAME).display(),
            "cannot note the last commit in the spool")
        });
        Self(file.ok())
    }

    /// Whether the spool was last used with a database that has not this commit: it was put back to an older state, or
    /// another took its place. A spool without ids says nothing.
    pub(super) fn contradicts(&self, link: Option<Link>) -> bool {
        let mut text = [0; 66];
        if self.0.as_ref().is_none_or(|file| file.read_exact_at(&mut text, 0).is_err()) {
            return false;
        }
        let last = link.map(|link| hex(&link.id));
        last.is_none_or(|last| !text.split(|byte| *byte == b'\n').any(|line| line == last.as_bytes()))
    }

    /// Before the commit, which may succeed or not.
    pub(super) fn put(&self, link: Link) {
        let text = format!("{}\n{}\n", hex(&link.id), hex(&link.before));
        if let Some(Err(error)) = self.0.as_ref().map(|file| file.write_all_at(text.as_bytes(), 0)) {
            tracing::debug!(%error, "the last commit is not noted in the spool");
        }
    }
}

fn hex(id: &Id) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    id.iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|half| char::from(DIGITS[usize::from(half)]))
        .collect()
}
