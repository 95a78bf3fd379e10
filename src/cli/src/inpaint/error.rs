//! Errors that end a whole run. The failure of one picture is a [`lamagrid_domain::Failure`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use lamagrid_client::ClientError;
use lamagrid_domain::FailureKind;

/// Why a run cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InpaintError {
    #[error("cannot read `{}`: {source}; check the path and its permissions", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` is neither a file nor a folder; name pictures, folders or patterns", path.display())]
    NoFile { path: PathBuf },
    #[error(
        "there is no picture in {places}; pictures end in .png, .jpg, .jpeg, .webp, .bmp, .tif, .tiff or .gif"
    )]
    NoPictures { places: String },
    #[error("the mask `{}` cannot be used: {reason}; name a picture file that is white where it shall be filled", path.display())]
    Mask { path: PathBuf, reason: String },
    #[error("cannot write in `{}`: {source}; check the folder's permissions and its disk", path.display())]
    Out { path: PathBuf, source: Arc<io::Error> },
    #[error("another run writes into `{}`; wait for its end, or name another folder by --out", path.display())]
    Locked { path: PathBuf },
    #[error("`{}` is no list of results of this version; move it away, or name another folder by --out", path.display())]
    Foreign { path: PathBuf },
    #[error("{error}; the same command goes on where this run ended")]
    Grid { error: ClientError },
}

impl InpaintError {
    /// The exit code, as listed in `lamagrid inpaint --help`.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Out { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                FailureKind::DiskFull.exit_code()
            }
            Self::Grid { error } => error.kind().exit_code(),
            Self::Read { .. }
            | Self::NoFile { .. }
            | Self::NoPictures { .. }
            | Self::Mask { .. }
            | Self::Out { .. }
            | Self::Locked { .. }
            | Self::Foreign { .. } => FailureKind::InvalidInput.exit_code(),
        }
    }
}
