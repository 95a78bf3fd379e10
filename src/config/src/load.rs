//! Reads and merges the layers, records the layer of each value, and checks the rules between keys.
//!
//! Does not: define the keys ([`crate::schema`]) or check single values ([`crate::check`]).

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use crate::check::{Place, described, example};
use crate::dirs::BaseDirs;
use crate::error::ConfigError;
use crate::key::{ENV_PREFIX, KeyPath, variable_part};
use crate::model::{Config, ModelConfig};
use crate::names::{NAME_RULE, is_name};
use crate::origin::{Origin, Row};
use crate::schema::{self, Kind};

/// The variable that names the configuration file.
const FILE_VARIABLE: &str = "LAMAGRID_CONFIG";

/// A configuration with the origin of each value.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// The layer of each key, by dotted path.
    pub origins: BTreeMap<String, Origin>,
    /// Outdated keys that were accepted, with the change that each needs.
    pub remarks: Vec<String>,
    rows: Vec<Row>,
}

impl Loaded {
    /// All keys with values and origins, ordered by key; for `config show --origin`.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        self.rows.clone()
    }
}

/// The environment variables of this process, for [`Config::load`].
///
/// Unlike `std::env::vars` it never panics on bytes that are not Unicode: they are replaced in LamaGrid's own
/// variables; other variables that contain them are left out.
pub fn process_env() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        if name.starts_with("LAMAGRID") {
            return Some((name, value.to_string_lossy().into_owned()));
        }
        Some((name, value.into_string().ok()?))
    })
}

impl Config {
    /// Merges the layers and checks every value.
    ///
    /// `file` is the file named by a flag; without it `LAMAGRID_CONFIG` names one, else
    /// `$XDG_CONFIG_HOME/lamagrid/config.toml` (or that below `~/.config`) is read if it exists.
    /// `env` are all variables of the process ([`process_env`]); `flags` are dotted keys with values; the last
    /// value of a key counts.
    ///
    /// # Errors
    /// [`ConfigError`] for the first error, in this order: default, file, environment, flags, rules between keys.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: &[(String, String)],
    ) -> Result<Loaded, ConfigError> {
        let env: BTreeMap<String, String> = env.collect();
        let mut layers = Layers::embedded()?;
        layers.dirs = BaseDirs::new(|name| env.get(name).map(PathBuf::from));
        let named = env.get(FILE_VARIABLE).filter(|path| !path.is_empty());
        if let Some(path) = file {
            layers.add_file(path, "the command line")?;
        } else if let Some(path) = named {
            layers.add_file(Path::new(path), FILE_VARIABLE)?;
        } else if let Some(path) = layers.dirs.config_file() {
            // If access to it is denied, reading it reports that.
            if path.try_exists().unwrap_or(true) {
                layers.add_file(&path, "its default place")?;
            }
        }
        for (variable, value) in &env {
            layers.add_variable(variable, value)?;
        }
        for (key, value) in flags {
            layers.add_text(&KeyPath::parse(key), value, &Origin::Flag)?;
        }
        let dirs = layers.dirs.clone();
        let mut loaded = layers.finish()?;
        if loaded.config.data_dir.as_os_str().is_empty() {
            // Without a home directory it stays empty, because not every program needs it.
            loaded.config.data_dir = dirs.data_dir().unwrap_or_default();
        }
        Ok(loaded)
    }
}

impl Default for Config {
    /// The embedded default, without file, environment and flags.
    fn default() -> Self {
        Layers::embedded().and_then(Layers::finish).expect("the embedded default is valid, as tested").config
    }
}

/// The layers merged so far.
#[derive(Debug, Default)]
struct Layers {
    values: BTreeMap<KeyPath, (Value, Origin)>,
    /// Section and name of each `[queues.NAME]` and `[models.NAME]`, with the first layer that names it.
    names: BTreeMap<(String, String), Origin>,
    dirs: BaseDirs,
    remarks: Vec<String>,
}

impl Layers {
    fn embedded() -> Result<Self, ConfigError> {
        let mut layers = Self::default();
        let table: Table = crate::default_toml().parse().map_err(internal)?;
        layers.add_table(&KeyPath(Vec::new()), &table, &Origin::Default)?;
        Ok(layers)
    }

    fn add_file(&mut self, path: &Path, named_by: &'static str) -> Result<(), ConfigError> {
        let read = |source: io::Error| ConfigError::Read { path: path.to_owned(), named_by, source };
        let text = std::fs::read_to_string(path).map_err(read)?;
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            ConfigError::Syntax {
                path: path.to_owned(),
                line: 1 + before.matches('\n').count(),
                message: error.message().to_owned(),
            }
        })?;
        let absolute = std::path::absolute(path).map_err(read)?;
        self.add_table(&KeyPath(Vec::new()), &table, &Origin::File(absolute))
    }

    fn add_table(&mut self, parent: &KeyPath, table: &Table, layer: &Origin) -> Result<(), ConfigError> {
        for (segment, value) in table {
            let path = parent.child(segment);
            if schema::old(&path.segments()).is_some() {
                if let Some(path) = self.renamed(&path, layer) {
                    self.set(&path, value.clone(), layer)?;
                }
                continue;
            }
            match value {
                _ if schema::find(&path.segments()).is_some() => self.set(&path, value.clone(), layer)?,
                _ if !schema::is_section(&path.segments()) => return Err(unknown(&path, layer)),
                Value::Table(inner) => {
                    self.begin(&path, layer)?;
                    self.add_table(&path, inner, layer)?;
                }
                other => {
                    return Err(ConfigError::WrongType {
                        key: path.to_string(),
                        layer: layer.clone(),
                        found: described(other),
                        wanted: "a table",
                        example: format!("[{path}]"),
                    });
                }
            }
        }
        Ok(())
    }

    fn add_variable(&mut self, variable: &str, value: &str) -> Result<(), ConfigError> {
        let Some(rest) = variable.strip_prefix(ENV_PREFIX) else {
            return Ok(());
        };
        let mut path = KeyPath::from_variable(rest);
        // A variable's name cannot contain every character: match it to the known name with this notation.
        if let Some((section, name)) = path.section_and_name() {
            let known = self.names.keys().find(|(known_section, known)| {
                known_section == section && variable_part(known) == variable_part(name)
            });
            if let Some((_, known)) = known {
                path.0[1] = known.clone();
            }
        }
        self.add_text(&path, value, &Origin::Env(variable.to_owned()))
    }

    fn add_text(&mut self, path: &KeyPath, text: &str, layer: &Origin) -> Result<(), ConfigError> {
        if schema::old(&path.segments()).is_some() {
            return match self.renamed(path, layer) {
                Some(path) => self.add_text(&path, text, layer),
                None => Ok(()),
            };
        }
        let key = schema::find(&path.segments()).ok_or_else(|| unknown(path, layer))?;
        let value = Place { key, path, layer }.typed(text)?;
        self.set(path, value, layer)
    }

    /// The present path of a key from an earlier version, if it still has an effect. Adds a remark.
    fn renamed(&mut self, path: &KeyPath, layer: &Origin) -> Option<KeyPath> {
        let now = schema::old(&path.segments())?
            .now
            .map(|now| KeyPath(now.iter().map(|&part| part.to_owned()).collect()));
        self.remarks.push(match &now {
            Some(now) => format!("`{path}` in {layer} is called `{now}` now: it counts as that; rename it"),
            None => format!("`{path}` in {layer} has no effect any more: remove it"),
        });
        now
    }

    /// Checks and stores a value of a known key.
    fn set(&mut self, path: &KeyPath, value: Value, layer: &Origin) -> Result<(), ConfigError> {
        let key = schema::find(&path.segments()).ok_or_else(|| unknown(path, layer))?;
        Place { key, path, layer }.check(&value)?;
        self.begin(path, layer)?;
        let value = match (key.kind, value) {
            (Kind::Path, Value::String(text)) => {
                let base = match layer {
                    Origin::File(file) => file.parent(),
                    _ => None,
                };
                let path = self.dirs.resolve(&text, base)?;
                Value::String(path.to_string_lossy().into_owned())
            }
            (_, value) => value,
        };
        self.values.insert(path.clone(), (value, layer.clone()));
        Ok(())
    }

    /// Records the name of a queue or model after checking it.
    fn begin(&mut self, path: &KeyPath, layer: &Origin) -> Result<(), ConfigError> {
        let Some((section, name)) = path.section_and_name() else {
            return Ok(());
        };
        if !is_name(name) {
            return Err(ConfigError::OutOfRange {
                key: path.to_string(),
                layer: layer.clone(),
                value: format!("named {name:?}"),
                allowed: NAME_RULE.to_owned(),
            });
        }
        self.names.entry((section.to_owned(), name.to_owned())).or_insert_with(|| layer.clone());
        Ok(())
    }

    /// Completes the named sections, checks the rules between keys, and converts to [`Config`].
    fn finish(mut self) -> Result<Loaded, ConfigError> {
        self.complete()?;
        self.check_rules()?;
        let mut root = Table::new();
        for (path, (value, _)) in &self.values {
            insert(&mut root, &path.0, value.clone())?;
        }
        let config = Config::deserialize(root).map_err(internal)?;
        for (name, model) in &config.models {
            self.check_model(name, model)?;
        }
        if let Some((leaf, allowed)) = config.http.fault() {
            let path = KeyPath(vec!["http".into(), leaf.into()]);
            let (value, layer) = self.values.get(&path).ok_or_else(|| internal("http without a key"))?;
            return Err(ConfigError::OutOfRange {
                key: path.to_string(),
                layer: layer.clone(),
                value: value.to_string(),
                allowed: allowed.to_owned(),
            });
        }
        let rows: Vec<Row> = self.values.keys().filter_map(|path| self.row(path)).collect();
        let origins = rows.iter().map(|row| (row.key.clone(), row.origin.clone())).collect();
        Ok(Loaded { config, origins, remarks: self.remarks, rows })
    }

    fn complete(&mut self) -> Result<(), ConfigError> {
        for (section, name) in self.names.keys() {
            for key in schema::KEYS.iter().filter(|key| key.path.len() > 2 && key.path[0] == section) {
                let mut path = KeyPath(vec![section.clone(), name.clone()]);
                path.0.extend(key.path[2..].iter().map(|&part| part.to_owned()));
                if self.values.contains_key(&path) {
                    continue;
                }
                let default: Table = format!("value = {}", key.default).parse().map_err(internal)?;
                let value = default.get("value").cloned().ok_or_else(|| internal("no default"))?;
                self.values.insert(path, (value, Origin::Default));
            }
        }
        Ok(())
    }

    fn check_rules(&self) -> Result<(), ConfigError> {
        for &(left, relation, right) in schema::RULES {
            let (left, right) = (KeyPath::parse(left), KeyPath::parse(right));
            let number = |path| self.values.get(path).and_then(|(value, _)| value.as_integer());
            let (Some(left_value), Some(right_value)) = (number(&left), number(&right)) else {
                continue;
            };
            if relation.holds(left_value, right_value) {
                continue;
            }
            if let (Some(left), Some(right)) = (self.row(&left), self.row(&right)) {
                let (left, right) = (Box::new(left), Box::new(right));
                return Err(ConfigError::Conflict { left, rule: relation.words(), right });
            }
        }
        let queues: Vec<&str> =
            self.names.keys().filter(|(section, _)| section == "queues").map(|(_, n)| n.as_str()).collect();
        for (path, (value, layer)) in &self.values {
            let is_queue =
                schema::find(&path.segments()).is_some_and(|key| matches!(key.kind, Kind::QueueName));
            if is_queue && !value.as_str().is_some_and(|name| name.is_empty() || queues.contains(&name)) {
                return Err(ConfigError::OutOfRange {
                    key: path.to_string(),
                    layer: layer.clone(),
                    value: value.to_string(),
                    allowed: format!("one of the queues {}; or add its [queues.NAME]", queues.join(", ")),
                });
            }
        }
        queues.iter().try_for_each(|queue| self.check_spill(queue))
    }

    /// Follows the spill of a queue, which must end.
    fn check_spill(&self, queue: &str) -> Result<(), ConfigError> {
        let key_of = |queue: &str| KeyPath(vec!["queues".into(), queue.into(), "spill_to".into()]);
        let target = |queue: &str| self.values.get(&key_of(queue)).and_then(|(value, _)| value.as_str());
        let mut way = vec![queue];
        while let Some(next) = target(way[way.len() - 1]).filter(|next| !next.is_empty()) {
            let is_circle = way.contains(&next);
            way.push(next);
            if !is_circle {
                continue;
            }
            let path = key_of(queue);
            let (value, layer) = self.values.get(&path).ok_or_else(|| internal("a spill without a key"))?;
            return Err(ConfigError::OutOfRange {
                key: path.to_string(),
                layer: layer.clone(),
                value: value.to_string(),
                allowed: format!("a queue whose spill does not go round in a circle ({})", way.join(" -> ")),
            });
        }
        Ok(())
    }

    /// Checks that the keys of a `[models.NAME]` section fit together.
    fn check_model(&self, name: &str, model: &ModelConfig) -> Result<(), ConfigError> {
        let path = |leaf: &str| KeyPath(vec!["models".into(), name.into(), leaf.into()]);
        let is_set =
            |leaf: &str| self.values.get(&path(leaf)).is_some_and(|(_, origin)| *origin != Origin::Default);
        let Some(fault) = model.fault(name, is_set) else { return Ok(()) };
        let path = path(fault.key);
        let Some(allowed) = fault.allowed else {
            let section = ("models".to_owned(), name.to_owned());
            let layer = self.names.get(&section).cloned().unwrap_or(Origin::Default);
            let key = schema::find(&path.segments()).ok_or_else(|| unknown(&path, &layer))?;
            let example = match layer {
                Origin::Env(_) => format!("{}={}", path.variable(), key.sample.trim_matches('"')),
                _ => example(key, &path, &layer),
            };
            return Err(ConfigError::Missing { key: path.to_string(), layer, example });
        };
        let (value, layer) = self.values.get(&path).ok_or_else(|| internal("a model without a key"))?;
        Err(ConfigError::OutOfRange {
            key: path.to_string(),
            layer: layer.clone(),
            value: value.to_string(),
            allowed: allowed.to_owned(),
        })
    }

    fn row(&self, path: &KeyPath) -> Option<Row> {
        let (value, origin) = self.values.get(path)?;
        Some(Row { key: path.to_string(), value: value.to_string(), origin: origin.clone() })
    }
}

fn insert(table: &mut Table, path: &[String], value: Value) -> Result<(), ConfigError> {
    let [segment, rest @ ..] = path else {
        return Err(internal("a value without a key"));
    };
    if rest.is_empty() {
        table.insert(segment.clone(), value);
        return Ok(());
    }
    match table.entry(segment.clone()).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(inner) => insert(inner, rest, value),
        _ => Err(internal("a value where a section belongs")),
    }
}

fn unknown(path: &KeyPath, layer: &Origin) -> ConfigError {
    ConfigError::UnknownKey { key: path.to_string(), layer: layer.clone(), nearest: schema::nearest(path) }
}

fn internal(reason: impl fmt::Display) -> ConfigError {
    ConfigError::Internal { message: reason.to_string() }
}
