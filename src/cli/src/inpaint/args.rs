//! Defines the options of `lamagrid inpaint`. The doc comments are the help texts.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use lamagrid_domain::{ClientName, ModelName, PictureFormat, QueueName};

use super::colour::Colour;
use super::params::ParamArgs;
use crate::time_span::span;

pub(crate) const AFTER_HELP: &str = "\
Masks: white marks the area to fill. In a folder of masks, that of holiday/beach.jpg is holiday/beach.png or
holiday/beach_mask.png there, else beach.png or beach_mask.png; any picture format will do.

A run that was interrupted is started again by the same command: it skips what is done, and takes up tasks that the
grid still has. A picture is done again if it, its mask or an option that changes its result has changed.

Ctrl-C cancels the tasks under way and ends; a second Ctrl-C leaves them in the grid for the next run.

Examples:
  lamagrid inpaint photos --mask logo.png --out clean
  lamagrid inpaint 'scans/**/*.tif' --mask masks --out clean --format png --hd-strategy Original
  lamagrid inpaint photos --mask-color '#ff00ff' --out clean --dry-run

Exit codes: 0 all pictures are done; 1 some failed, see the report; 65 IN, the mask or OUT cannot be used; 69 no
scheduler answers; 73 the disk of OUT is full; 130 ended by Ctrl-C.";

/// `lamagrid inpaint`
#[derive(Debug, Args)]
pub(crate) struct InpaintArgs {
    /// Pictures: files, folders with all that is in them, or patterns such as 'photos/**/*.jpg'.
    #[arg(value_name = "IN", required = true)]
    pub(crate) inputs: Vec<PathBuf>,
    /// One mask for all pictures, or a folder that has one for each.
    #[arg(long, value_name = "FILE|FOLDER", required_unless_present = "mask_color")]
    pub(crate) mask: Option<PathBuf>,
    /// Fill the area that has this colour in the picture itself, for example '#ff00ff'.
    #[arg(long, value_name = "COLOUR", conflicts_with = "mask")]
    pub(crate) mask_color: Option<Colour>,
    /// How far red, green and blue may each be from the colour. JPEG changes colours a little.
    #[arg(long, value_name = "N", default_value_t = 16, requires = "mask_color")]
    pub(crate) mask_tolerance: u8,
    /// Folder of the results, with the structure of IN.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) out: PathBuf,
    /// Format of the results; by default that of each picture.
    #[arg(long, value_name = "png|jpeg|webp", value_parser = written_format)]
    pub(crate) format: Option<PictureFormat>,
    /// Quality of JPEG and WebP.
    #[arg(long, value_name = "N", default_value_t = 95, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) quality: u8,
    /// Replace files in OUT that an earlier run did not write, or that were changed since.
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// How many pictures are worked on at a time. Twice the slots of all nodes keep them busy.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub(crate) in_flight: u16,
    /// List what would be done, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) task: TaskArgs,
    #[command(flatten)]
    pub(crate) params: ParamArgs,
}

/// How the tasks are run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of the tasks")]
pub(crate) struct TaskArgs {
    /// Model, as nodes offer it.
    #[arg(long, value_name = "NAME", default_value = "lama")]
    pub(crate) model: ModelName,
    /// Queue; by default the scheduler chooses it.
    #[arg(long, value_name = "NAME")]
    pub(crate) queue: Option<QueueName>,
    /// Higher goes first, from -128 to 127. A user at a browser has 0.
    #[arg(long, value_name = "N", default_value_t = -10, allow_negative_numbers = true)]
    pub(crate) priority: i8,
    /// On whose behalf: shares are fair between clients.
    #[arg(long, value_name = "NAME")]
    pub(crate) client: Option<ClientName>,
    /// A task fails once no node could run it for this long: 90s, 10m, 2h or 7d.
    #[arg(long, visible_alias = "no-node-wait", value_name = "TIME", default_value = "1d", value_parser = span)]
    pub(crate) wait_for_node: Duration,
    /// A task fails once it has waited for a node this long. Can only shorten the scheduler's limit.
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub(crate) wait_limit: Option<Duration>,
    /// Stop and try again an attempt that takes longer. Can only shorten the scheduler's limit.
    #[arg(long, value_name = "TIME", value_parser = span)]
    pub(crate) run_limit: Option<Duration>,
}

/// The error for a word that is no format of results.
#[derive(Debug, thiserror::Error)]
#[error("results are png, jpeg or webp")]
pub(crate) struct FormatError;

fn written_format(text: &str) -> Result<PictureFormat, FormatError> {
    match text {
        "png" => Ok(PictureFormat::Png),
        "jpeg" | "jpg" => Ok(PictureFormat::Jpeg),
        "webp" => Ok(PictureFormat::Webp),
        _ => Err(FormatError),
    }
}
