//! The keys of a capability file; an error names file, line, key, and what to write there.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::CapabilityError;

pub(crate) const LABELS_WANTED: &str =
    "a list of at most 32 words of 1 to 64 letters, digits and -_. each, for example: [\"a100\", \"lab-2\"]";
pub(crate) const MODELS_WANTED: &str = "a list of names of models, for example: [\"manga\"]";
pub(crate) const ID_WANTED: &str =
    "the GPU's UUID as `lamagrid-node capabilities` prints it, for example: id = \"GPU-...\"";
pub(crate) const DEVICE_WANTED: &str = "`cpu`, or `cuda:N` with a number";
pub(crate) const NAME_WANTED: &str = "a GPU's name, for example: gpu = \"Test GPU\"";
/// The values that each key takes, for errors about values of a wrong type.
const WANTED: [(&str, &str); 10] = [
    ("labels", LABELS_WANTED),
    ("leave_out", MODELS_WANTED),
    ("cpu", "a table: [cpu]"),
    ("gpus", "a list of tables: [[gpus]]"),
    ("pretend", "a table: [pretend]"),
    ("cores", "a whole number of cores"),
    ("memory_mib", "a whole number of MiB, for example: memory_mib = 8192"),
    ("id", ID_WANTED),
    ("use", "true or false"),
    ("device", DEVICE_WANTED),
];

/// A whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FileContent {
    pub(crate) labels: Vec<String>,
    pub(crate) leave_out: Vec<String>,
    pub(crate) cpu: CpuCaps,
    pub(crate) gpus: Vec<GpuEntry>,
    pub(crate) pretend: Option<PretendedDevice>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CpuCaps {
    pub(crate) cores: Option<i64>,
    pub(crate) memory_mib: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GpuEntry {
    pub(crate) id: Option<String>,
    pub(crate) memory_mib: Option<i64>,
    #[serde(rename = "use")]
    pub(crate) in_use: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PretendedDevice {
    pub(crate) device: Option<String>,
    pub(crate) gpu: Option<String>,
    pub(crate) memory_mib: Option<i64>,
}

/// A file that was read.
#[derive(Debug)]
pub(crate) struct CapabilityFile {
    pub(crate) path: PathBuf,
    pub(crate) content: FileContent,
}

impl CapabilityFile {
    pub(crate) fn read(path: &Path) -> Result<Self, CapabilityError> {
        let path = path.to_owned();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(CapabilityError::Read { path, source }),
        };
        match toml::from_str(&text) {
            Ok(content) => Ok(Self { path, content }),
            Err(error) => Err(malformed(path, &text, &error)),
        }
    }

    /// The error for the value of a key, which must be `wanted`.
    pub(crate) fn wrong(&self, key: &str, found: &str, wanted: &str) -> CapabilityError {
        CapabilityError::Wrong {
            path: self.path.clone(),
            key: key.to_owned(),
            found: found.to_owned(),
            wanted: wanted.to_owned(),
        }
    }

    /// A number from 1 to `most`; `None` if its key is absent.
    pub(crate) fn number(
        &self,
        key: &str,
        value: Option<i64>,
        unit: &str,
        most: u64,
    ) -> Result<Option<u64>, CapabilityError> {
        let Some(value) = value else { return Ok(None) };
        let number = u64::try_from(value).ok().filter(|number| (1..=most).contains(number));
        let wanted = || format!("a whole number of {unit} from 1 to {most}, which were found on this host");
        number.map(Some).ok_or_else(|| self.wrong(key, &value.to_string(), &wanted()))
    }
}

/// The parser's error with its place, and the remedy for the key that is there.
fn malformed(path: PathBuf, text: &str, error: &toml::de::Error) -> CapabilityError {
    let at = error.span().map_or(0, |span| text.floor_char_boundary(span.start));
    let (before, line) =
        (&text[..at], text.lines().nth(text[..at].matches('\n').count()).unwrap_or_default());
    let key = line.split('=').next().unwrap_or_default().trim().trim_matches(['[', ']']);
    let wanted =
        WANTED.iter().find(|(known, _)| *known == key).map(|(_, wanted)| format!("; write {wanted}"));
    CapabilityError::Malformed {
        path,
        line: 1 + before.matches('\n').count(),
        column: 1 + before.chars().rev().take_while(|c| *c != '\n').count(),
        message: error.message().trim().replace('\n', ", "),
        source_line: line.trim().to_owned(),
        remedy: wanted.unwrap_or_default(),
    }
}
