//! Checks whether a write-ahead log belongs to its database, and whether the spool was last used with that
//! database.
//!
//! SQLite replays any valid log beside a database, even one written for another copy of the file. Each commit
//! therefore writes a link: a random id and the id of the commit before it. Read without its log, the
//! database file holds the id of the last commit that a checkpoint copied into it; the log holds all ids
//! since its start. [`belongs`] compares them before SQLite opens either file; see docs/decisions/0021.
//!
//! The spool keeps the ids of the last two commits in a file of its own. A database that was restored to an
//! older state is thus noticed before blobs that it does not know are deleted.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension};

pub(super) type Id = [u8; 16];

/// Creates the table with the one link. It is not part of a schema version: versions that do not know it
/// ignore it.
pub(super) const TABLE: &str =
    "CREATE TABLE IF NOT EXISTS lineage (one INTEGER PRIMARY KEY CHECK (one = 1), link BLOB NOT NULL);";
pub(super) const PUT: &str = "INSERT OR REPLACE INTO lineage (one, link) VALUES (1, ?1)";

const MAGIC: &[u8; 8] = b"LGrdLink";
const LINK_BYTES: usize = 41;
/// Type of a table's leaf page, and the first bytes of the link's row on it: 44 bytes of payload, row 1, a
/// header of three bytes, NULL (the row number stands for it), a blob of 41 bytes.
const LEAF: u8 = 0x0d;
const ROW: [u8; 5] = [44, 1, 3, 0, 94];

/// Identifies a commit and its predecessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) id: Id,
    /// Id of the commit before it; zeros for the first commit.
    pub(super) before: Id,
    /// True if a checkpoint may have copied this commit or an earlier one while later commits went into the
    /// same log.
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

    /// Reads the link from a page of the log; `None` if the page does not hold it.
    fn on_page(page: &[u8]) -> Option<Self> {
        if page.first() != Some(&LEAF) || page.get(3..5)? != [0, 1] {
            return None;
        }
        let row = usize::from(u16::from_be_bytes(page.get(8..10)?.try_into().ok()?));
        Self::from_bytes(page.get(row..)?.strip_prefix(&ROW)?)
    }
}

/// Reads the link of the last commit; `None` before the first one.
pub(super) fn read(connection: &Connection) -> rusqlite::Result<Option<Link>> {
    let link =
        connection.query_row("SELECT link FROM lineage", [], |row| row.get::<_, Vec<u8>>(0)).optional()?;
    Ok(link.and_then(|link| Link::from_bytes(&link)))
}

/// True if the log was written for this database file, so that replaying it is right. This process must have
/// no connection open: closing a second file descriptor would drop its locks.
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

/// Reads the commit id in the database file without its log. `None` if that fails: an older version wrote the
/// file, a crash tore it, or it is another program's. The log, or SQLite, then decides.
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
    // `immutable` makes SQLite take no locks and ignore the log.
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri, flags).ok()?;
    read(&connection).ok()?.map(|link| link.id)
}

/// The commits of a log, compared with the id in the database file.
struct Chain {
    stored: Id,
    is_empty: bool,
    /// The log's first commit follows the file's last one.
    begins_there: bool,
    /// The log's last commit is the file's.
    ends_there: bool,
    /// The log contains the file's commit.
    has_commit: bool,
    /// That commit or a later one has [`Link::mark`]: a checkpoint may have copied part of the log.
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

/// Calls `found` with the link of each commit that SQLite would replay, in order.
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

/// Running checksum of the log.
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

/// File in the spool with the ids of the last two commits.
///
/// Only a hint, so its errors are logged and not returned: without it, the next start deletes blobs without a
/// row.
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

    /// True if the spool was last used with a database that has a commit this one lacks: the database was
    /// restored to an older state or replaced. A spool without ids contradicts nothing.
    pub(super) fn contradicts(&self, link: Option<Link>) -> bool {
        let mut text = [0; 66];
        if self.0.as_ref().is_none_or(|file| file.read_exact_at(&mut text, 0).is_err()) {
            return false;
        }
        let last = link.map(|link| hex(&link.id));
        last.is_none_or(|last| !text.split(|byte| *byte == b'\n').any(|line| line == last.as_bytes()))
    }

    /// Notes a commit that is about to be tried and may fail; hence the file keeps two ids.
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
