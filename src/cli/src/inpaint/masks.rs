//! Finds the mask of each picture.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use lamagrid_domain::{Failure, FailureKind, Hash, PictureSize};
use lamagrid_imaging::codec;

use super::colour::ColourRange;
use super::error::InpaintError;
use super::walk::{ENDINGS, FoundPicture, MASK_SUFFIX};

/// A mask file.
#[derive(Debug, Clone)]
pub(crate) struct MaskFile {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Bytes,
    pub(crate) size: PictureSize,
    pub(crate) hash: Hash,
}

impl MaskFile {
    fn read(path: &Path) -> Result<Self, Failure> {
        let invalid = |reason: String| {
            let path = path.display();
            Failure::new(FailureKind::InvalidInput, format!("the mask `{path}` cannot be read: {reason}"))
        };
        let bytes = Bytes::from(fs::read(path).map_err(|error| invalid(error.to_string()))?);
        let size = codec::upright_size(&bytes).map_err(|error| invalid(error.to_string()))?;
        let hash = lamagrid_protocol::hash(&bytes);
        Ok(Self { path: path.to_owned(), bytes, size, hash })
    }
}

/// The mask of one picture.
#[derive(Debug, Clone)]
pub(crate) enum Mask {
    File(MaskFile),
    Colour(ColourRange),
}

impl Mask {
    /// Says in a line of the dry run where the mask comes from.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::File(file) => file.path.display().to_string(),
            Self::Colour(range) => range.colour.to_string(),
        }
    }
}

/// Where masks come from.
#[derive(Debug)]
pub(crate) enum MaskSource {
    /// One mask for all pictures.
    One(MaskFile),
    /// A folder with a mask for each.
    Folder(PathBuf),
    /// The pictures themselves.
    Colour(ColourRange),
}

impl MaskSource {
    /// Opens a mask file or a folder of masks.
    ///
    /// # Errors
    /// [`InpaintError::Mask`].
    pub(crate) fn of_path(path: &Path) -> Result<Self, InpaintError> {
        let wrong = |reason: String| InpaintError::Mask { path: path.to_owned(), reason };
        let found = fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
        if found.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        MaskFile::read(path).map(Self::One).map_err(|failure| wrong(failure.message))
    }

    /// The folder of masks.
    pub(crate) fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(folder) => Some(folder),
            Self::One(_) | Self::Colour(_) => None,
        }
    }

    /// Finds and reads the mask of a picture of this size.
    ///
    /// # Errors
    /// `InvalidInput` if it is missing or has another size.
    pub(crate) fn of_picture(&self, picture: &FoundPicture, size: PictureSize) -> Result<Mask, Failure> {
        let file = match self {
            Self::Colour(range) => return Ok(Mask::Colour(*range)),
            Self::One(file) => file.clone(),
            Self::Folder(folder) => match in_folder(folder, picture) {
                Some(path) => MaskFile::read(&path)?,
                None => {
                    let stem = picture.relative.with_extension("");
                    let text = format!(
                        "it has no mask: `{}` has neither {stem}.png nor {stem}{MASK_SUFFIX}.png, nor one of another format",
                        folder.display(),
                        stem = stem.display()
                    );
                    return Err(Failure::new(FailureKind::InvalidInput, text));
                }
            },
        };
        if file.size != size {
            let text = format!(
                "the picture has {} x {} pixels, its mask `{}` {} x {}; both must have the same size",
                size.width,
                size.height,
                file.path.display(),
                file.size.width,
                file.size.height
            );
            return Err(Failure::new(FailureKind::InvalidInput, text));
        }
        Ok(Mask::File(file))
    }
}

/// The mask by the picture's relative path, else by its name alone.
fn in_folder(folder: &Path, picture: &FoundPicture) -> Option<PathBuf> {
    let stem = picture.relative.file_stem()?;
    let beside = folder.join(picture.relative.parent()?);
    let is_mask = |path: &Path| path.is_file() && !is_same(path, &picture.path);
    let mut folders = vec![beside.as_path()];
    if beside != folder {
        folders.push(folder);
    }
    let candidates = folders.iter().flat_map(|folder| {
        [MASK_SUFFIX, ""].into_iter().flat_map(move |suffix| {
            ENDINGS.into_iter().flat_map(move |ending| {
                [ending.to_owned(), ending.to_ascii_uppercase()].into_iter().map(move |ending| {
                    let mut name = OsString::from(stem);
                    name.push(suffix);
                    name.push(".");
                    name.push(ending);
                    folder.join(name)
                })
            })
        })
    });
    candidates.into_iter().find(|path| is_mask(path))
}

/// True for the picture itself, which lies in the folder of masks where that is the folder of pictures.
fn is_same(path: &Path, picture: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    match (fs::metadata(path), fs::metadata(picture)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_found_by_path_then_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let put = |name: &str| {
            fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
            fs::write(folder.join(name), "x").unwrap();
        };
        ["a.jpg", "a_mask.PNG", "s/b.png", "b_mask.png", "c.tif", "d.jpg"].into_iter().for_each(put);
        let mask = |relative: &str| {
            let picture = FoundPicture { path: folder.join(relative), relative: relative.into() };
            in_folder(folder, &picture)
                .map(|path| path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned())
        };
        assert_eq!(mask("a.jpg").as_deref(), Some("a_mask.PNG"));
        assert_eq!(mask("s/b.jpg").as_deref(), Some("s/b.png"));
        assert_eq!(mask("t/b.jpg").as_deref(), Some("b_mask.png"));
        assert_eq!(mask("t/u/c.jpg").as_deref(), Some("c.tif"));
        assert_eq!(mask("d.jpg"), None, "a picture is not its own mask");
        assert_eq!(mask("e.jpg"), None);
    }
}
