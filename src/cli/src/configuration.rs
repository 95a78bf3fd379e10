//! `lamagrid config`: shows the configuration and the layer of each value, and checks it.

use std::path::PathBuf;

use serde::Serialize;

use lamagrid_config::{Config, Loaded, Origin, Row};

use crate::error::CliError;
use crate::output::{Format, Show, columns};
use crate::{Answer, Place};

/// Whether the table has a column for the origin of each value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origins {
    Show,
    Hide,
}

/// Every key. Without origins, the table is itself a valid configuration file.
#[derive(Serialize)]
#[serde(transparent)]
struct Rows {
    rows: Vec<Row>,
    #[serde(skip)]
    origins: Origins,
}

impl Show for Rows {
    fn table(&self) -> String {
        if self.origins == Origins::Show {
            let rows =
                self.rows.iter().map(|row| vec![row.key.clone(), row.value.clone(), row.origin.to_string()]);
            return columns(&["KEY", "VALUE", "ORIGIN"], rows);
        }
        let lines: Vec<_> = self.rows.iter().map(|row| format!("{} = {}", row.key, row.value)).collect();
        lines.join("\n")
    }
}

/// `lamagrid config show`
pub(crate) fn show(loaded: &Loaded, origins: Origins, format: Format) -> Result<Answer, CliError> {
    let text = format.render(&Rows { rows: loaded.rows(), origins })?;
    let remark = (!loaded.remarks.is_empty()).then(|| loaded.remarks.join("\n"));
    Ok(Answer { text, remark, code: 0 })
}

/// `lamagrid config default`
pub(crate) fn default(format: Format) -> Result<Answer, CliError> {
    match format {
        Format::Table => Ok(Answer::ok(lamagrid_config::default_toml().to_owned())),
        // Without environment variables there is no home directory, and so no file.
        Format::Json => show(&Config::load(None, std::iter::empty(), &[])?, Origins::Hide, format),
    }
}

/// Result of checking a valid configuration.
#[derive(Serialize)]
struct Checked {
    ok: bool,
    /// The named file, or the default one if it sets anything.
    file: Option<PathBuf>,
    /// Number of values from each layer.
    values: Layers,
}

#[derive(Serialize, Default)]
struct Layers {
    default: usize,
    file: usize,
    environment: usize,
    flag: usize,
}

impl Show for Checked {
    fn table(&self) -> String {
        let Layers { default, file, environment, flag } = self.values;
        let named =
            self.file.as_ref().map_or("no file".to_owned(), |path| format!("file {}", path.display()));
        format!(
            "the configuration is right: {named} ({file} values), environment ({environment}), \
             flags ({flag}), default ({default})"
        )
    }
}

/// `lamagrid config check`
pub(crate) fn check(place: &Place, file: Option<PathBuf>, format: Format) -> Result<Answer, CliError> {
    let named = match (file, place.globals.config.clone()) {
        (Some(file), Some(config)) => return Err(CliError::TwoFiles { file, config }),
        (file, config) => file.or(config),
    };
    let loaded = place.load_file(named.as_deref(), &[])?;
    let mut checked = Checked { ok: true, file: named, values: Layers::default() };
    for origin in loaded.origins.values() {
        match origin {
            Origin::Default => checked.values.default += 1,
            Origin::Env(_) => checked.values.environment += 1,
            Origin::Flag => checked.values.flag += 1,
            Origin::File(path) => {
                checked.values.file += 1;
                checked.file.get_or_insert_with(|| path.clone());
            }
        }
    }
    format.render(&checked).map(Answer::ok)
}
