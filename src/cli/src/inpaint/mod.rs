//! `lamagrid inpaint`: runs a file, a folder or a pattern of pictures through the grid.
//!
//! Does not: inpaint; nodes do. Or know about HTTP: another way to the grid is another [`transport::Transport`].
//!
//! Invariant: a picture's task has its id in the list of results before it is submitted, and its result is in its place
//! before the list says so. A run that ends at any moment is gone on with by the same command.

mod args;
mod batch;
mod colour;
mod dry_run;
mod error;
mod manifest;
mod masks;
mod output_folder;
mod params;
mod pattern;
mod planner;
mod progress;
mod report;
mod transport;
mod walk;

pub(crate) use args::{AFTER_HELP, InpaintArgs};
pub(crate) use error::InpaintError;

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lamagrid_client::{Client, ClientError, ClientOptions, GridStatus, NewTask, new_task_id};
use lamagrid_config::Config;
use lamagrid_domain::{Failure, FailureKind, Label, ModelName};
use lamagrid_process::{Parent, StopSignals};

use crate::Answer;
use crate::error::{CliError, REFUSED};
use crate::grid::{PATIENCE, endpoint};
use crate::output::{Format, Streams};
use batch::{Batch, Console, RunEnd};
use colour::ColourRange;
use manifest::Manifest;
use masks::MaskSource;
use output_folder::{Existing, OutputFolder};
use planner::{Planner, ResultOptions};
use progress::Progress;
use report::Reporter;
use transport::SocketTransport;
use walk::{MaskNames, Pictures};

/// Exit code after Ctrl-C.
const INTERRUPTED: u8 = 130;
/// Exit code when the reader of the output has gone.
const UNREAD: u8 = 141;

/// The scheduler and the format of the output, as the options of every command say.
pub(crate) struct Place<'a> {
    pub(crate) config: &'a Config,
    pub(crate) join: Option<&'a Path>,
    pub(crate) format: Format,
}

/// `lamagrid inpaint`
pub(crate) fn run(args: InpaintArgs, place: &Place<'_>, streams: &mut Streams) -> Result<Answer, CliError> {
    let masks = mask_source(&args)?;
    let mask_names = if masks.folder().is_some() { MaskNames::Masks } else { MaskNames::Pictures };
    let left_out: Vec<&Path> =
        [Some(args.out.as_path()), masks.folder().filter(|folder| !is_input(&args, folder))]
            .into_iter()
            .flatten()
            .collect();
    let pictures = Pictures::new(&args.inputs, &left_out, mask_names)?;
    let total = count(&pictures, &args)?;
    let manifest = if args.dry_run { Manifest::look_at(&args.out)? } else { open(&args.out)? };
    let existing = if args.overwrite { Existing::Replace } else { Existing::Keep };
    let planner = Planner {
        masks,
        options: ResultOptions {
            model: args.task.model.clone(),
            params: args.params.0.clone(),
            format: args.format,
            quality: args.quality,
        },
        output: OutputFolder::new(&args.out, existing),
        manifest,
        max_pixels: place.config.limits.max_pixels,
    };
    if args.dry_run {
        return dry_run::list(&planner, &pictures, place.format, streams);
    }
    let (runtime, endpoint) = endpoint(place.config, place.join)?;
    let options = ClientOptions {
        owner: endpoint.owner().clone(),
        ping: Duration::from_millis(place.config.client.ping_ms),
        silence: Duration::from_millis(place.config.client.silence_ms),
        data_dir: Some(place.config.data_dir()?),
        ..ClientOptions::default()
    };
    let template = template(&args)?;
    let mut reporter = Reporter::new(&args.out, place.format);
    let mut progress = Progress::new(total);
    let end = runtime.block_on(async {
        let signals = StopSignals::install(Parent::Ignored).map_err(CliError::Runtime)?;
        endpoint.look_up().await?;
        let client = Client::with_endpoint(endpoint, options);
        // Fails here, not after the first pictures, if there is no scheduler.
        if let Some(text) = remark(&client.survey(PATIENCE).await?, &template.model) {
            streams.say(&text);
        }
        let transport = SocketTransport::new(client);
        let in_flight = usize::from(args.in_flight);
        let name = Label::from(args.out.display().to_string());
        let batch = Batch { planner, transport, template, in_flight, name };
        let mut console = Console { progress: &mut progress, reporter: &mut reporter, streams };
        let end = batch.run(pictures, signals, &mut console).await;
        progress.clear(streams);
        Ok::<_, CliError>(end?)
    });
    // Does not wait for files that are being read.
    runtime.shutdown_background();
    let end = end?;
    let text = reporter.summary(&progress.counts, progress.elapsed())?;
    let code = match end {
        RunEnd::Interrupted => INTERRUPTED,
        RunEnd::Unread => UNREAD,
        RunEnd::Finished if progress.counts.failed > 0 => REFUSED,
        RunEnd::Finished => 0,
    };
    Ok(Answer { text, remark: None, code })
}

fn mask_source(args: &InpaintArgs) -> Result<MaskSource, InpaintError> {
    match (&args.mask, args.mask_color) {
        (Some(path), _) => MaskSource::of_path(path),
        (None, Some(colour)) => {
            Ok(MaskSource::Colour(ColourRange { colour, tolerance: args.mask_tolerance }))
        }
        // The command line requires one of the two.
        (None, None) => Err(InpaintError::Mask { path: "".into(), reason: "no mask is named".to_owned() }),
    }
}

/// True if the folder of masks is also one of the folders of pictures.
fn is_input(args: &InpaintArgs, folder: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    let wanted = real(folder);
    args.inputs.iter().any(|input| wanted.is_some() && real(input) == wanted)
}

/// Counts the pictures before the first one, for the progress.
fn count(pictures: &Pictures, args: &InpaintArgs) -> Result<u64, InpaintError> {
    let mut total = 0;
    pictures.visit(&mut |_| {
        total += 1;
        ControlFlow::Continue(())
    })?;
    if total == 0 {
        let places: Vec<String> = args.inputs.iter().map(|path| format!("`{}`", path.display())).collect();
        return Err(InpaintError::NoPictures { places: places.join(", ") });
    }
    Ok(total)
}

fn open(out: &Path) -> Result<Manifest, InpaintError> {
    let failed = |source| InpaintError::Out { path: out.to_owned(), source: Arc::new(source) };
    fs::create_dir_all(out).map_err(failed)?;
    Manifest::open(out)
}

/// The task of every picture, without its inputs.
fn template(args: &InpaintArgs) -> Result<NewTask, CliError> {
    let ms = |limit: Duration| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let task = &args.task;
    let template = NewTask {
        queue: task.queue.clone(),
        priority: task.priority,
        client: task.client.clone(),
        wait_limit_ms: task.wait_limit.map(ms),
        no_node_wait_ms: Some(ms(task.wait_for_node)),
        run_limit_ms: task.run_limit.map(ms),
        ..NewTask::new(new_task_id(), task.model.clone(), Vec::new())
    };
    let refused = |error: lamagrid_domain::ParamsError| {
        CliError::from(ClientError::from(Failure::new(FailureKind::InvalidInput, error.to_string())))
    };
    template.with_params(args.params.0.clone()).map_err(refused)
}

/// A fact that the user should know before a run that may wait long.
fn remark(grid: &GridStatus, model: &ModelName) -> Option<String> {
    let is_offered =
        |node: &lamagrid_client::NodeStatus| node.info.models.iter().any(|offer| offer.model == *model);
    (!grid.nodes.iter().any(is_offered))
        .then(|| format!("no connected node offers {model}; the tasks wait for one (--wait-for-node)\n"))
}
