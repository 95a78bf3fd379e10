//! Flags and configuration, put together into what a node does.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lamagrid_config::{Config, ConfigError, Device, Loaded, process_env, socket_finder};
use lamagrid_domain::{ModelName, ModelOffer, NameError, NodeName, QueueName};
use lamagrid_gate::{Bundle, BundleError};
use lamagrid_session::read_node_bundle;
use lamagrid_transport::Endpoints;
use lamagrid_weights::{LAMA as LAMA_FILE, MANGA_INPAINTOR, MANGA_LINE, UpstreamFile, Weights};

use crate::flags::{BackendChoice, Flags};

/// Upstream's moduli.
const LAMA_MODULO_PX: usize = 8;
const MANGA_MODULO_PX: usize = 16;
/// The models that need no file of their own.
const LAMA: &str = "lama";
const MANGA: &str = "manga";
/// Bound of what a node registers with.
const MAX_MODELS: usize = 256;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A device is none.
    #[error("--device: {0}")]
    Device(String),
    /// A model has no file.
    #[error(
        "model `{model}` has no file: write --model {model}=FILE or a [models.{model}] section; only lama and manga are fetched"
    )]
    NoFile {
        /// Which.
        model: ModelName,
    },
    /// A model's file is not there, and cannot be fetched.
    #[error(
        "model `{model}`: there is no file {place}. Put it there, or name another: --model {model}=FILE, models.{model}.path of the configuration, or upstream's variable {variable}"
    )]
    MissingFile {
        /// Which.
        model: ModelName,
        /// Where it was looked for.
        place: String,
        /// What upstream calls the file's place.
        variable: &'static str,
    },
    /// One file for the model of two.
    #[error(
        "model `manga` has two files, of upstream's signatures: write --model manga and set MANGA_INPAINTOR_MODEL_URL and MANGA_LINE_MODEL_URL to their paths"
    )]
    MangaFile,
    /// `--model` is not `NAME` or `NAME=FILE`.
    #[error("--model {text}: write NAME or NAME=FILE, for example --model mine=/srv/models/mine.pt")]
    Model {
        /// What was given.
        text: String,
    },
    /// `--join` names no bundle of a node.
    #[error("--join {0}")]
    Join(#[from] BundleError),
    /// A path cannot be made absolute.
    #[error("--model {text}: {source}")]
    Path {
        /// What was given.
        text: String,
        /// What came back.
        source: std::io::Error,
    },
    /// Several tasks at once on one device.
    #[error(
        "node.slots is {slots}, but a torch node works on one task at a time: its device runs one model after the other, \
         and the next task is prepared meanwhile. Leave node.slots at 1 (--slots 1); for more devices name each one: \
         --device cuda:0 --device cuda:1"
    )]
    Slots {
        /// How many were asked for.
        slots: u32,
    },
    /// More models than a node may register.
    #[error("{count} models, at most {MAX_MODELS} are possible on one node")]
    TooMany {
        /// How many.
        count: usize,
    },
}

/// Where a model's file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// This TorchScript file.
    File(PathBuf),
    /// Upstream's lama, found or fetched as upstream does.
    Lama,
    /// Upstream's manga, whose two files are found or fetched the same way.
    Manga,
}

/// A model that a node serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPlan {
    /// As tasks name it.
    pub name: ModelName,
    /// The queue of its tasks.
    pub queue: QueueName,
    /// Its file.
    pub source: Source,
    /// Sides are padded to a multiple of this, pixels.
    pub pad_modulo: usize,
}

impl ModelPlan {
    /// Whether its files are on this host.
    #[must_use]
    pub fn is_present(&self) -> bool {
        match &self.source {
            Source::File(path) => path.is_file(),
            Source::Lama | Source::Manga => {
                self.upstreams().iter().all(|&file| Weights::of_process(file).is_present())
            }
        }
    }

    /// Where its files are or will be.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        match &self.source {
            Source::File(path) => vec![path.clone()],
            Source::Lama | Source::Manga => {
                self.upstreams().iter().filter_map(|&file| Weights::of_process(file).path()).collect()
            }
        }
    }

    fn upstreams(&self) -> &'static [&'static UpstreamFile] {
        match self.source {
            Source::File(_) => &[],
            Source::Lama => &[&LAMA_FILE],
            Source::Manga => &[&MANGA_LINE, &MANGA_INPAINTOR],
        }
    }

    /// Checks that each file is here or can be fetched.
    fn check_files(&self, env: &impl Fn(&str) -> Option<String>) -> Result<(), SettingsError> {
        let model = || self.name.clone();
        match &self.source {
            Source::File(path) if !path.is_file() => Err(SettingsError::MissingFile {
                model: model(),
                place: path.display().to_string(),
                variable: "LAMA_MODEL_URL",
            }),
            _ => self.upstreams().iter().try_for_each(|&file| {
                let weights = Weights::new(file, env);
                let (place, variable) = (weights.describe(), file.url_variable());
                let missing = || SettingsError::MissingFile { model: model(), place, variable };
                weights.can_be_had().then_some(()).ok_or_else(missing)
            }),
        }
    }
}

/// What a node does.
#[derive(Debug)]
pub struct Settings {
    /// Everything that is configured.
    pub config: Config,
    /// Where the scheduler's sockets are, where it is on this host.
    pub endpoints: Endpoints,
    /// How to reach a scheduler of another host.
    pub bundle: Option<Arc<Bundle>>,
    /// Where log files go.
    pub log_dir: PathBuf,
    /// The node's name; workers of several devices get a number behind it.
    pub name: NodeName,
    /// One worker each.
    pub devices: Vec<Device>,
    /// Processor threads of one inference; 0 leaves that to torch.
    pub threads: u32,
    /// Tasks that each worker takes at the same time.
    pub slots: u16,
    /// What it serves, the eager one first.
    pub models: Vec<ModelPlan>,
    /// What should be changed in the configuration.
    pub remarks: Vec<String>,
}

impl Settings {
    /// Reads the configuration and lays the flags over it.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn load(flags: &Flags) -> Result<Self, SettingsError> {
        let mut keys: Vec<(String, String)> = Vec::new();
        let mut set =
            |key: &str, value: Option<String>| keys.extend(value.map(|value| (key.to_owned(), value)));
        set("data_dir", flags.data_dir.as_ref().map(|path| path.to_string_lossy().into_owned()));
        set("node.threads", flags.threads.map(|n| n.to_string()));
        set("node.slots", flags.slots.map(|n| n.to_string()));
        let Loaded { config, remarks, .. } = Config::load(flags.config.as_deref(), process_env(), &keys)?;
        let bundle = flags.join.as_deref().map(read_node_bundle).transpose()?;
        let name: NodeName = match (&flags.name, &bundle) {
            (Some(name), _) => name.parse()?,
            (None, Some(bundle)) => bundle.certificate.name.parse()?,
            (None, None) => config.node.display_name().parse()?,
        };
        let devices: Vec<Device> = flags
            .device
            .iter()
            .map(|text| text.parse().map_err(SettingsError::Device))
            .collect::<Result<_, _>>()?;
        let models = plan(flags, &config)?;
        if flags.backend == BackendChoice::Torch && config.node.slots != 1 {
            return Err(SettingsError::Slots { slots: config.node.slots });
        }
        Ok(Self {
            endpoints: Endpoints::found_by(socket_finder(&config.data_dir()?)?),
            bundle: bundle.map(Arc::new),
            log_dir: config.log_dir()?,
            name,
            devices: if devices.is_empty() { vec![config.node.device] } else { devices },
            threads: config.node.threads,
            // The configuration allows 1 to 64.
            slots: u16::try_from(config.node.slots).unwrap_or(1),
            models,
            remarks,
            config,
        })
    }

    /// Checks that each model's files are here or can be fetched: a node that can never load its model must not start.
    ///
    /// # Errors
    /// [`SettingsError::MissingFile`].
    pub fn check_files(&self) -> Result<(), SettingsError> {
        let env = |name: &str| std::env::var(name).ok();
        self.models.iter().try_for_each(|model| model.check_files(&env))
    }

    /// What is offered before anything is loaded.
    #[must_use]
    pub fn offers(&self) -> Vec<ModelOffer> {
        let offer = |model: &ModelPlan| ModelOffer {
            model: model.name.clone(),
            queue: model.queue.clone(),
            loaded: false,
            present: model.is_present(),
        };
        self.models.iter().map(offer).collect()
    }

    /// A log file's name for a process of this node: node names may hold characters that those may not.
    #[must_use]
    pub fn log_name(&self, process: &str) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
        format!("{process}-{}", self.name.as_str().chars().map(plain).collect::<String>())
    }
}

/// The models by flag, else by configuration.
fn plan(flags: &Flags, config: &Config) -> Result<Vec<ModelPlan>, SettingsError> {
    let wished = if flags.model.is_empty() { &config.node.models } else { &flags.model };
    let mut models: Vec<ModelPlan> = Vec::new();
    for text in wished {
        let (name, file) = match text.split_once('=') {
            Some((name, file)) if !name.is_empty() && !file.is_empty() => (name, Some(Path::new(file))),
            Some(_) => return Err(SettingsError::Model { text: text.clone() }),
            None => (text.as_str(), None),
        };
        let name: ModelName = name.parse()?;
        let configured = config.models.get(name.as_str());
        let source = match (file, configured) {
            (None, None) if name.as_str() == MANGA => Source::Manga,
            _ if name.as_str() == MANGA => return Err(SettingsError::MangaFile),
            (Some(file), _) => Source::File(
                std::path::absolute(file)
                    .map_err(|source| SettingsError::Path { text: text.clone(), source })?,
            ),
            (None, Some(model)) => Source::File(model.path.clone()),
            (None, None) if name.as_str() == LAMA => Source::Lama,
            // Echo needs no files, and must be able to play any model.
            (None, None) if flags.backend == BackendChoice::Echo => Source::File(PathBuf::new()),
            (None, None) => return Err(SettingsError::NoFile { model: name }),
        };
        let queue = match configured {
            Some(model) => model.queue.parse()?,
            None => name.default_queue(),
        };
        let pad_modulo = match (&source, configured) {
            (Source::Manga, _) => MANGA_MODULO_PX,
            (_, Some(model)) => model.pad_modulo as usize,
            (_, None) => LAMA_MODULO_PX,
        };
        // The last one of a name counts, as everywhere on a command line.
        models.retain(|model| model.name != name);
        models.push(ModelPlan { name, queue, source, pad_modulo });
    }
    if models.len() > MAX_MODELS {
        return Err(SettingsError::TooMany { count: models.len() });
    }
    Ok(models)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn planned(args: &[&str]) -> Result<Vec<ModelPlan>, SettingsError> {
        let flags = Flags::parse_from(std::iter::once(&"lamagrid-node").chain(args));
        plan(&flags, &Config::default())
    }

    #[test]
    fn a_torch_node_of_several_slots_is_refused_and_an_echo_node_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let load = |backend: &str| {
            let dir = dir.path().to_str().unwrap();
            let args = ["lamagrid-node", "--backend", backend, "--slots", "2", "--data-dir", dir];
            Settings::load(&Flags::parse_from(args)).map(|settings| settings.slots)
        };
        assert_eq!(load("echo").unwrap(), 2);
        let text = load("torch").unwrap_err().to_string();
        assert!(text.contains("node.slots is 2") && text.contains("--device cuda:1"), "{text}");
    }

    #[test]
    fn models_come_from_flags_or_else_from_the_configuration() {
        let lama = &planned(&[]).unwrap()[0];
        assert_eq!((lama.name.as_str(), &lama.source, lama.pad_modulo), ("lama", &Source::Lama, 8));
        let models = planned(&["--model", "lama", "--model", "mine=/m.pt", "--model", "lama=/l.pt"]).unwrap();
        let names: Vec<_> = models.iter().map(|model| (model.name.as_str(), &model.source)).collect();
        let file = |path: &str| Source::File(path.into());
        assert_eq!(names, [("mine", &file("/m.pt")), ("lama", &file("/l.pt"))]);
        assert_eq!(models[0].queue, QueueName::gpu());
    }

    #[test]
    fn manga_is_upstreams_two_files_and_no_other() {
        let manga = &planned(&["--model", "manga"]).unwrap()[0];
        assert_eq!((&manga.source, manga.pad_modulo), (&Source::Manga, 16));
        let text = planned(&["--model", "manga=/m.pt"]).unwrap_err().to_string();
        assert!(text.contains("MANGA_LINE_MODEL_URL"), "{text}");
    }

    #[test]
    fn a_file_that_is_not_there_and_cannot_be_fetched_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.pt");
        let given = format!("mine={}", file.display());
        let checked = |models: &[&str], lama: &str| {
            let env = |name: &str| match name {
                "LAMA_MODEL_URL" => Some(lama.to_owned()).filter(|lama| !lama.is_empty()),
                "HOME" => Some("/nowhere".to_owned()),
                _ => None,
            };
            planned(models).unwrap().iter().try_for_each(|model| model.check_files(&env))
        };
        let text = checked(&["--model", &given], "").unwrap_err().to_string();
        assert!(text.contains(file.to_str().unwrap()) && text.contains("--model mine=FILE"), "{text}");
        std::fs::write(&file, b"x").unwrap();
        checked(&["--model", &given], "").unwrap();
        // What can be fetched is fetched at the first load.
        checked(&["--model", "lama", "--model", "manga"], "").unwrap();
        checked(&["--model", "lama"], "https://h/x.pt").unwrap();
        checked(&["--model", "lama"], file.to_str().unwrap()).unwrap();
        let text = checked(&["--model", "lama"], "/nowhere/x.pt").unwrap_err().to_string();
        assert!(text.contains("/nowhere/x.pt") && text.contains("LAMA_MODEL_URL"), "{text}");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        checked(&["--model", &given], "").unwrap_err();
    }

    #[test]
    fn a_model_without_a_file_is_refused_where_a_file_is_needed() {
        let text = planned(&["--model", "mine"]).unwrap_err().to_string();
        assert!(text.contains("--model mine=FILE"), "{text}");
        assert!(planned(&["--model", "=x"]).is_err());
        assert_eq!(planned(&["--model", "cv2", "--backend", "echo"]).unwrap()[0].queue, QueueName::cpu());
    }
}
