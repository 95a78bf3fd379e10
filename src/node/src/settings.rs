//! Combines flags and configuration into the settings of a node.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lamagrid_config::{Config, ConfigError, Device, Loaded, process_env, socket_finder};
use lamagrid_domain::{ModelName, ModelOffer, NameError, NodeName, QueueName};
use lamagrid_gate::{Bundle, BundleError};
use lamagrid_hardware::Capabilities;
use lamagrid_session::read_node_bundle;
use lamagrid_transport::Endpoints;
use lamagrid_weights::{Environment, LAMA as LAMA_FILE, MANGA_INPAINTOR, MANGA_LINE, Weights};

use crate::flags::{BackendChoice, Flags};
use crate::signature::{Signature, Sizes};

/// Upstream pads the sides of a picture for manga to a multiple of this.
const MANGA_MODULO_PX: usize = 16;
/// The models whose files upstream provides, so that no file must be given.
const LAMA: &str = "lama";
const MANGA: &str = "manga";
/// Maximum number of models that a node may register.
const MAX_MODELS: usize = 256;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Invalid name of a node, model or queue.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Invalid device.
    #[error("--device: {0}")]
    Device(String),
    /// No file is given for a model that needs one.
    #[error(
        "model `{model}` has no file: write --model {model}=FILE or a [models.{model}] section with path or url; without one only lama and manga are fetched"
    )]
    NoFile {
        /// The model.
        model: ModelName,
    },
    /// A model's file is missing and cannot be downloaded.
    #[error(
        "model `{model}`: there is no file {place}. Put it there, or name another: --model {model}=FILE, models.{model}.path of the configuration, or upstream's variable {variable}"
    )]
    MissingFile {
        /// The model.
        model: ModelName,
        /// The file's path, with its origin.
        place: String,
        /// Upstream's environment variable for the path or URL.
        variable: String,
    },
    /// One file is given for manga, which has two.
    #[error(
        "model `manga` has two files, of upstream's signatures: write --model manga and set MANGA_INPAINTOR_MODEL_URL and MANGA_LINE_MODEL_URL to their paths"
    )]
    MangaFile,
    /// `--model` is not `NAME` or `NAME=FILE`.
    #[error("--model {text}: write NAME or NAME=FILE, for example --model mine=/srv/models/mine.pt")]
    Model {
        /// The value as given.
        text: String,
    },
    /// `--join` does not name the bundle of a node.
    #[error("--join {0}")]
    Join(#[from] BundleError),
    /// A path cannot be made absolute.
    #[error("--model {text}: {source}")]
    Path {
        /// The value as given.
        text: String,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Several slots for a torch node, whose device runs one task at a time.
    #[error(
        "node.slots is {slots}, but a torch node works on one task at a time: its device runs one model after the other, \
         and the next task is prepared meanwhile. Leave node.slots at 1 (--slots 1); without --device a node \
         uses every GPU, with --device cuda:0,cuda:1 these two"
    )]
    Slots {
        /// The requested number of slots.
        slots: u32,
    },
    /// The capability file leaves no model to serve.
    #[error(
        "the capability file leaves out every model of this node ({models}): remove one from its `leave_out`, or serve another one by --model NAME"
    )]
    NoModelLeft {
        /// The models.
        models: String,
    },
    /// More models than a node may register.
    #[error("{count} models, at most {MAX_MODELS} are possible on one node")]
    TooMany {
        /// The requested number of models.
        count: usize,
    },
}

/// The origin of a model's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A TorchScript file.
    File {
        /// The file; empty for the name of the download in upstream's directory.
        path: PathBuf,
        /// Where it is downloaded from; empty if it is not.
        url: String,
        /// Its SHA-256 sum; empty if it is not checked.
        sha256: String,
    },
    /// Upstream's lama, found or downloaded as upstream does.
    Lama,
    /// Upstream's manga, whose two files are found or downloaded in the same way.
    Manga,
}

impl Source {
    /// A file that is on this host, and is not checked.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::File { path: path.into(), url: String::new(), sha256: String::new() }
    }
}

/// A model that a node serves.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelPlan {
    /// The model's name, as tasks give it.
    pub name: ModelName,
    /// The queue that the configuration names for its tasks; `None` lets the scheduler choose.
    pub queue: Option<QueueName>,
    /// The origin of its files.
    pub source: Source,
    /// The inputs and the output of its network; of manga's only the sizes count.
    pub signature: Signature,
    /// True if it stays in memory once it is loaded.
    pub pin: bool,
}

impl ModelPlan {
    /// The queue to register with; schedulers before protocol 1.6 need one for each model.
    #[must_use]
    pub fn offered_queue(&self) -> QueueName {
        self.queue.clone().unwrap_or_else(|| self.name.default_queue())
    }

    /// Its files, in the order in which upstream loads them.
    #[must_use]
    pub fn weights(&self, environment: &Environment) -> Vec<Weights> {
        let upstreams = |file| Weights::new(file, environment.clone());
        match &self.source {
            Source::File { path, url, sha256 } => {
                vec![Weights::configured(url, path, sha256, environment.clone())]
            }
            Source::Lama => vec![upstreams(&LAMA_FILE)],
            Source::Manga => vec![upstreams(&MANGA_INPAINTOR), upstreams(&MANGA_LINE)],
        }
    }

    /// True if all its files are on this host.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.weights(&Environment::of_process()).iter().all(Weights::is_present)
    }

    /// The paths at which its files are or will be.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.weights(&Environment::of_process()).iter().filter_map(Weights::path).collect()
    }

    /// The total size of its files that are on this host, in bytes.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files().iter().filter_map(|path| Some(path.metadata().ok()?.len())).sum()
    }

    /// Checks that each file is on this host or can be downloaded.
    fn check_files(&self, environment: &Environment) -> Result<(), SettingsError> {
        let missing = |weights: &Weights| SettingsError::MissingFile {
            model: self.name.clone(),
            place: weights.describe(),
            variable: weights.url_variable().unwrap_or(LAMA_FILE.url_variable()).to_owned(),
        };
        self.weights(environment)
            .iter()
            .try_for_each(|weights| if weights.can_be_had() { Ok(()) } else { Err(missing(weights)) })
    }
}

/// The settings of a node.
#[derive(Debug)]
pub struct Settings {
    /// The whole configuration.
    pub config: Config,
    /// The sockets of a scheduler on this host; not used with a bundle.
    pub endpoints: Endpoints,
    /// The bundle for a scheduler on another host; `None` on the scheduler's own host.
    pub bundle: Option<Arc<Bundle>>,
    /// The directory of the log files.
    pub log_dir: PathBuf,
    /// The node's name; with several devices, each worker appends the number of its device.
    pub name: NodeName,
    /// The devices, with one worker each.
    pub devices: Vec<Device>,
    /// CPU threads of one inference; with 0, torch chooses.
    pub threads: u32,
    /// Number of tasks that each worker runs at once.
    pub slots: u16,
    /// The models that it serves; the first one is loaded at the start.
    pub models: Vec<ModelPlan>,
    /// Outdated configuration keys, with the change that each needs.
    pub remarks: Vec<String>,
}

impl Settings {
    /// Reads the configuration and overrides it with the flags.
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

    /// Removes the models that the capability file leaves out.
    ///
    /// # Errors
    /// [`SettingsError::NoModelLeft`].
    pub fn leave_out(&mut self, capabilities: &Capabilities) -> Result<(), SettingsError> {
        let names: Vec<_> = self.models.iter().map(|model| model.name.to_string()).collect();
        self.models.retain(|model| capabilities.offers(&model.name));
        if self.models.len() < names.len() {
            tracing::info!(
                configured = names.join(", "),
                kept = self.models.len(),
                "the capability file leaves models out"
            );
        }
        if self.models.is_empty() && !names.is_empty() {
            return Err(SettingsError::NoModelLeft { models: names.join(", ") });
        }
        Ok(())
    }

    /// Checks that the files of at least one model are on this host or can be downloaded: a node that can load no model must
    /// not start.
    ///
    /// # Errors
    /// [`SettingsError::MissingFile`] of the first model.
    pub fn check_files(&self) -> Result<(), SettingsError> {
        check_any(&self.models, &Environment::of_process())
    }

    /// The memory for models and their work, in bytes, on a device with `device_bytes`; 0 if that is unknown.
    #[must_use]
    pub fn memory_budget(&self, device_bytes: u64) -> u64 {
        let device_bytes = if device_bytes == 0 { u64::MAX } else { device_bytes };
        match self.config.node.memory_mib {
            0 => device_bytes / 10 * 9,
            mib => (mib << 20).min(device_bytes),
        }
    }

    /// The file in which checks of model files are recorded.
    ///
    /// # Errors
    /// [`ConfigError`] if no data directory can be named.
    pub fn ledger(&self) -> Result<PathBuf, ConfigError> {
        Ok(self.config.data_dir()?.join("verified-models"))
    }

    /// The models to register, none of which is loaded yet.
    #[must_use]
    pub fn offers(&self) -> Vec<ModelOffer> {
        let offer = |model: &ModelPlan| ModelOffer {
            model: model.name.clone(),
            queue: model.offered_queue(),
            routed: model.queue.is_none(),
            loaded: false,
            present: model.is_present(),
            memory_bytes: model.file_bytes(),
            pinned: model.pin,
        };
        self.models.iter().map(offer).collect()
    }

    /// Returns the log file name for a process of this node. Characters that are valid in a node's name but not in a file name
    /// become dashes.
    #[must_use]
    pub fn log_name(&self, process: &str) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
        format!("{process}-{}", self.name.as_str().chars().map(plain).collect::<String>())
    }
}

fn check_any(models: &[ModelPlan], environment: &Environment) -> Result<(), SettingsError> {
    let mut first = None;
    for model in models {
        match model.check_files(environment) {
            Ok(()) => return Ok(()),
            Err(error) => first = first.or(Some(error)),
        }
    }
    first.map_or(Ok(()), Err)
}

/// Plans the models given by flags or, without such flags, by the configuration.
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
            (None, _) if name.as_str() == MANGA => Source::Manga,
            _ if name.as_str() == MANGA => return Err(SettingsError::MangaFile),
            (Some(file), _) => Source::file(
                std::path::absolute(file)
                    .map_err(|source| SettingsError::Path { text: text.clone(), source })?,
            ),
            (None, Some(model)) if model.has_file() => Source::File {
                path: model.path.clone(),
                url: model.url.clone(),
                sha256: model.sha256.clone(),
            },
            (None, _) if name.as_str() == LAMA => Source::Lama,
            // The echo backend needs no files and serves any model.
            (None, _) if flags.backend == BackendChoice::Echo => Source::file(""),
            (None, _) => return Err(SettingsError::NoFile { model: name }),
        };
        let queue = match configured {
            Some(model) if !model.queue.is_empty() => Some(model.queue.parse()?),
            Some(_) | None => None,
        };
        let signature = match (&source, configured) {
            (Source::Manga, _) => {
                Signature { sizes: Sizes::MultipleOf(MANGA_MODULO_PX), ..Signature::lama() }
            }
            (_, Some(model)) => model.into(),
            (_, None) => Signature::lama(),
        };
        let pin = configured.is_some_and(|model| model.pin);
        // If a name is given twice, the last one counts, as is usual on a command line.
        models.retain(|model| model.name != name);
        models.push(ModelPlan { name, queue, source, signature, pin });
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
    fn several_slots_are_refused_for_torch_and_accepted_for_echo() {
        let dir = tempfile::tempdir().unwrap();
        let load = |backend: &str| {
            let dir = dir.path().to_str().unwrap();
            let args = ["lamagrid-node", "--backend", backend, "--slots", "2", "--data-dir", dir];
            Settings::load(&Flags::parse_from(args)).map(|settings| settings.slots)
        };
        assert_eq!(load("echo").unwrap(), 2);
        let text = load("torch").unwrap_err().to_string();
        assert!(text.contains("node.slots is 2") && text.contains("--device cuda:0,cuda:1"), "{text}");
    }

    #[test]
    fn models_come_from_flags_or_else_from_the_configuration() {
        let lama = &planned(&[]).unwrap()[0];
        assert_eq!((lama.name.as_str(), &lama.source), ("lama", &Source::Lama));
        assert_eq!(lama.signature, Signature::lama());
        let models = planned(&["--model", "lama", "--model", "mine=/m.pt", "--model", "lama=/l.pt"]).unwrap();
        let names: Vec<_> = models.iter().map(|model| (model.name.as_str(), &model.source)).collect();
        let file = |path: &str| Source::file(path);
        assert_eq!(names, [("mine", &file("/m.pt")), ("lama", &file("/l.pt"))]);
        assert_eq!((&models[0].queue, models[0].offered_queue()), (&None, QueueName::gpu()));
    }

    #[test]
    fn manga_uses_only_upstreams_two_files() {
        let manga = &planned(&["--model", "manga"]).unwrap()[0];
        assert_eq!((&manga.source, manga.signature.sizes), (&Source::Manga, Sizes::MultipleOf(16)));
        let text = planned(&["--model", "manga=/m.pt"]).unwrap_err().to_string();
        assert!(text.contains("MANGA_LINE_MODEL_URL"), "{text}");
    }

    #[test]
    fn a_file_that_is_missing_and_cannot_be_downloaded_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m.pt");
        let given = format!("mine={}", file.display());
        let checked = |models: &[&str], lama: &str| {
            let environment = Environment::from([("LAMA_MODEL_URL", lama), ("HOME", "/nowhere")]);
            check_any(&planned(models).unwrap(), &environment)
        };
        let text = checked(&["--model", &given], "").unwrap_err().to_string();
        assert!(text.contains(file.to_str().unwrap()) && text.contains("--model mine=FILE"), "{text}");
        std::fs::write(&file, b"x").unwrap();
        checked(&["--model", &given], "").unwrap();
        // Files that can be downloaded are downloaded at the first load.
        checked(&["--model", "lama", "--model", "manga"], "").unwrap();
        checked(&["--model", "lama"], "https://h/x.pt").unwrap();
        checked(&["--model", "lama"], file.to_str().unwrap()).unwrap();
        let text = checked(&["--model", "lama"], "/nowhere/x.pt").unwrap_err().to_string();
        assert!(text.contains("/nowhere/x.pt") && text.contains("LAMA_MODEL_URL"), "{text}");
        std::fs::remove_file(&file).unwrap();
        checked(&["--model", &given, "--model", "lama"], "").unwrap();
        std::fs::create_dir(&file).unwrap();
        checked(&["--model", &given], "").unwrap_err();
    }

    #[test]
    fn a_model_without_a_file_is_refused_where_a_file_is_needed() {
        let text = planned(&["--model", "mine"]).unwrap_err().to_string();
        assert!(text.contains("--model mine=FILE"), "{text}");
        assert!(planned(&["--model", "=x"]).is_err());
        assert_eq!(
            planned(&["--model", "cv2", "--backend", "echo"]).unwrap()[0].offered_queue(),
            QueueName::cpu()
        );
    }
}
