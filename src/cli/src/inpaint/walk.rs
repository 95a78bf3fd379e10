//! Finds the pictures that the command line names, one after the other, so that memory does not grow with their number.
//!
//! A picture that several paths name is found once, by the first of them.
//!
//! Does not: open pictures, or sort them. Links to folders are not followed, because they may lead in circles.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, ReadDir};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::error::InpaintError;
use super::manifest::short_hash;
use super::pattern::Pattern;

/// Endings of picture files, in lower case.
pub(crate) const ENDINGS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif"];
/// The end of the name of a mask that lies beside its picture.
pub(crate) const MASK_SUFFIX: &str = "_mask";

/// One picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundPicture {
    pub(crate) path: PathBuf,
    /// Its path below the folder that was named; the result gets the same one.
    pub(crate) relative: PathBuf,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Folder(PathBuf),
    Pattern(Pattern),
}

/// The pictures of a command line.
#[derive(Debug)]
pub(crate) struct Pictures {
    sources: Vec<Source>,
    /// Folders that are left out, by their real paths: those of the results and of the masks.
    left_out: Vec<PathBuf>,
    masks: MaskNames,
}

/// The meaning of a name that ends in `_mask`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MaskNames {
    /// A mask: they may lie beside the pictures.
    Masks,
    /// A picture like others.
    Pictures,
}

impl Pictures {
    /// Checks the paths.
    ///
    /// # Errors
    /// [`InpaintError`] if one is missing.
    pub(crate) fn new(paths: &[PathBuf], left_out: &[&Path], masks: MaskNames) -> Result<Self, InpaintError> {
        let sources = paths.iter().map(|path| source(path)).collect::<Result<_, _>>()?;
        // A folder that does not exist yet has no pictures.
        let left_out = left_out.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
        Ok(Self { sources, left_out, masks })
    }

    /// Calls `visit` for each picture until it breaks.
    ///
    /// # Errors
    /// [`InpaintError::Read`] if a folder cannot be read.
    pub(crate) fn visit(
        &self,
        visit: &mut dyn FnMut(FoundPicture) -> ControlFlow<()>,
    ) -> Result<(), InpaintError> {
        let mut visited = Visited::by(&self.sources);
        let visit = &mut |folder: &Path, picture: FoundPicture| {
            if visited.is_new(folder, &picture) { visit(picture) } else { ControlFlow::Continue(()) }
        };
        for source in &self.sources {
            let flow = match source {
                Source::File(path) => {
                    let relative = path.file_name().map_or_else(PathBuf::new, PathBuf::from);
                    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                    let folder = real(folder.unwrap_or(Path::new(".")));
                    visit(&folder, FoundPicture { path: path.clone(), relative })
                }
                Source::Folder(root) => self.visit_folder(root, None, visit)?,
                Source::Pattern(pattern) => self.visit_folder(&pattern.root, Some(pattern), visit)?,
            };
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn visit_folder(
        &self,
        root: &Path,
        pattern: Option<&Pattern>,
        visit: &mut dyn FnMut(&Path, FoundPicture) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, InpaintError> {
        let deepest = pattern.and_then(Pattern::depth).unwrap_or(usize::MAX);
        let mut open = vec![read(root)?];
        while let Some(folder) = open.last_mut() {
            let Some(entry) = folder.entries.next() else {
                open.pop();
                continue;
            };
            let entry = entry.map_err(|source| InpaintError::Read { path: folder.path.clone(), source })?;
            let path = entry.path();
            if is_hidden(&entry.file_name()) {
                continue;
            }
            // A file that vanishes meanwhile is no picture.
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                if open.len() < deepest && !self.is_left_out(&path) {
                    open.push(read(&path)?);
                }
                continue;
            }
            if !(kind.is_file() || path.is_file()) || !self.is_picture(&path) {
                continue;
            }
            let relative = path.strip_prefix(root).unwrap_or(&path).to_owned();
            if pattern.is_none_or(|pattern| pattern.matches(&relative))
                && visit(&folder.real, FoundPicture { path, relative }).is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn is_left_out(&self, folder: &Path) -> bool {
        !self.left_out.is_empty() && fs::canonicalize(folder).is_ok_and(|real| self.left_out.contains(&real))
    }

    fn is_picture(&self, path: &Path) -> bool {
        let ending = path.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
        let is_known = ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()));
        let is_mask =
            || path.file_stem().and_then(OsStr::to_str).is_some_and(|stem| stem.ends_with(MASK_SUFFIX));
        is_known && !(self.masks == MaskNames::Masks && is_mask())
    }
}

/// The pictures that were visited.
///
/// Takes about 20 bytes for each, and nothing if there is one path: that names no picture twice.
struct Visited(Option<HashSet<u128>>);

impl Visited {
    fn by(sources: &[Source]) -> Self {
        Self((sources.len() > 1).then(HashSet::new))
    }

    /// True at the first visit of a picture in this folder. A link to a picture is another picture: it has another name.
    fn is_new(&mut self, folder: &Path, picture: &FoundPicture) -> bool {
        let (Some(visited), Some(name)) = (&mut self.0, picture.path.file_name()) else { return true };
        visited.insert(short_hash(folder.join(name).as_os_str().as_encoded_bytes()))
    }
}

/// The path of a folder without links; the path itself if the folder has gone.
fn real(folder: &Path) -> PathBuf {
    fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned())
}

struct OpenFolder {
    path: PathBuf,
    real: PathBuf,
    entries: ReadDir,
}

fn read(path: &Path) -> Result<OpenFolder, InpaintError> {
    let entries =
        fs::read_dir(path).map_err(|source| InpaintError::Read { path: path.to_owned(), source })?;
    Ok(OpenFolder { path: path.to_owned(), real: real(path), entries })
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

fn source(path: &Path) -> Result<Source, InpaintError> {
    match (fs::metadata(path), Pattern::of(path)) {
        (Ok(found), _) if found.is_file() => Ok(Source::File(path.to_owned())),
        (Ok(found), _) if found.is_dir() => Ok(Source::Folder(path.to_owned())),
        (Ok(_), _) => Err(InpaintError::NoFile { path: path.to_owned() }),
        (Err(_), Some(pattern)) => Ok(Source::Pattern(pattern)),
        (Err(source), None) => Err(InpaintError::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pictures: &Pictures) -> Vec<String> {
        let mut names = Vec::new();
        let visit = &mut |picture: FoundPicture| {
            names.push(picture.relative.to_str().unwrap().to_owned());
            ControlFlow::Continue(())
        };
        pictures.visit(visit).unwrap();
        names.sort();
        names
    }

    #[test]
    fn folders_patterns_and_files_give_their_pictures() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for name in ["a.PNG", "a_mask.png", "notes.txt", ".hidden.png", "s/b.jpg", "s/t/c.webp", "out/a.png"]
        {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        std::os::unix::fs::symlink(root, root.join("s/loop")).unwrap();
        std::os::unix::fs::symlink(root.join("a.PNG"), root.join("s/link.png")).unwrap();
        let out = root.join("out");
        let of = |path: &str, masks| Pictures::new(&[root.join(path)], &[&out], masks).unwrap();
        let all = ["a.PNG", "s/b.jpg", "s/link.png", "s/t/c.webp"];
        assert_eq!(found(&of("", MaskNames::Masks)), all);
        assert_eq!(found(&of("", MaskNames::Pictures)).len(), 5);
        assert_eq!(found(&of("*", MaskNames::Masks)), ["a.PNG"]);
        assert_eq!(found(&of("*/*", MaskNames::Masks)), ["s/b.jpg", "s/link.png"]);
        assert_eq!(found(&of("**/*.webp", MaskNames::Masks)), ["s/t/c.webp"]);
        assert_eq!(found(&of("s/t/c.webp", MaskNames::Masks)), ["c.webp"]);
        let missing = Pictures::new(&[root.join("nothing")], &[], MaskNames::Masks).unwrap_err();
        assert!(matches!(missing, InpaintError::Read { .. }), "{missing}");
    }

    #[test]
    fn a_picture_that_several_paths_name_is_found_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir(root.join("s")).unwrap();
        ["a.png", "b.png", "s/a.png"].into_iter().for_each(|name| fs::write(root.join(name), "x").unwrap());
        std::os::unix::fs::symlink(root.join("s"), root.join("other")).unwrap();
        std::os::unix::fs::symlink(root.join("a.png"), root.join("s/link.png")).unwrap();
        let of = |paths: &[&str]| {
            let paths: Vec<PathBuf> = paths.iter().map(|path| root.join(path)).collect();
            found(&Pictures::new(&paths, &[], MaskNames::Pictures).unwrap())
        };
        assert_eq!(of(&["a*", "*.png", "a.png", "s/../a.png"]), ["a.png", "b.png"]);
        assert_eq!(of(&["", "s", "s/*"]), ["a.png", "b.png", "s/a.png", "s/link.png"]);
        // The first path gives the name; a folder is the same by a link.
        assert_eq!(of(&["s", "other", ""]), ["a.png", "a.png", "b.png", "link.png"]);
    }

    #[test]
    fn a_visit_ends_when_it_is_told_to() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..5 {
            fs::write(dir.path().join(format!("{n}.png")), "x").unwrap();
        }
        let path = dir.path().to_owned();
        let pictures = Pictures::new(&[path.clone(), path], &[], MaskNames::Pictures).unwrap();
        let mut count = 0;
        pictures
            .visit(&mut |_| {
                count += 1;
                if count == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
        assert_eq!(count, 3);
    }
}
