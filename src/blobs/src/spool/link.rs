//! Takes a file of the same host over as a blob.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use lamagrid_domain::TaskId;

use super::{BlobName, Spool, SpoolError, repeated};

impl Spool {
    /// Makes the file `from` a blob too, by a hard link; copies it if the file system has none. A blob of that name is
    /// replaced.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn link(&self, task: TaskId, name: BlobName, from: &Path) -> Result<(), SpoolError> {
        let link = || -> io::Result<()> {
            let mut writer = self.begin(task, name)?;
            let (dir, temporary) = (&writer.dir, writer.temporary.as_str());
            rustix::fs::unlinkat(dir, temporary, AtFlags::empty())?;
            match rustix::fs::linkat(rustix::fs::CWD, from, dir, temporary, AtFlags::empty()) {
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::XDEV | Errno::MLINK) => {
                    writer = self.begin(task, name)?;
                    io::copy(&mut File::open(from)?, &mut writer.file)?;
                }
                linked => linked?,
            }
            writer.rename()
        };
        repeated(io::ErrorKind::NotFound, link)
            .map_err(|source| self.io("link", self.path(task, &name.file()), source))
    }
}
