//! Makes flags of the fields of Lama Cleaner's `Config` and of the options by which its models are built.
//!
//! The table has the names of `MODEL_OPTIONS` in `python/lamagrid/options.py`, with dashes; `tests/batch` compares them.

use std::collections::BTreeMap;

use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};

use lamagrid_domain::Scalar;

/// The values that a parameter accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Int,
    Float,
    Bool,
    Text,
    Word(&'static [&'static str]),
}

/// Where a flag is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// In `-h` and `--help`.
    First,
    /// In `--help`.
    Long,
    /// Nowhere: for tests.
    Nowhere,
}

/// One parameter of tasks.
struct Param {
    flag: &'static str,
    kind: Kind,
    shown: Shown,
    help: &'static str,
}

const fn param(flag: &'static str, kind: Kind, shown: Shown, help: &'static str) -> Param {
    Param { flag, kind, shown, help }
}

const SAMPLERS: &[&str] = &["ddim", "pndm", "k_lms", "k_euler", "k_euler_a", "dpm++", "uni_pc"];
const CONTROLNETS: &[&str] = &[
    "control_v11p_sd15_canny",
    "control_v11p_sd15_openpose",
    "control_v11p_sd15_inpaint",
    "control_v11f1p_sd15_depth",
];

use Kind::{Bool, Float, Int, Text, Word};
use Shown::{First, Long, Nowhere};

const PARAMS: &[Param] = &[
    param(
        "hd-strategy",
        Word(&["Original", "Resize", "Crop"]),
        First,
        "How a large picture reaches the network: as it is, smaller, or the surroundings of each hole",
    ),
    param("hd-strategy-crop-margin", Int, First, "Pixels around each hole, for Crop"),
    param("hd-strategy-crop-trigger-size", Int, First, "Larger pictures are cropped, for Crop"),
    param("hd-strategy-resize-limit", Int, First, "The longer side is at most this, for Resize"),
    param("prompt", Text, First, "Description of the contents of the hole, for diffusion models"),
    param("negative-prompt", Text, First, "Description of contents to avoid"),
    param("sd-seed", Int, First, "Seed of diffusion models; -1 draws one"),
    param("sd-steps", Int, Long, "Steps of diffusion models"),
    param("sd-guidance-scale", Float, Long, "How closely they follow the prompt"),
    param("sd-sampler", Word(SAMPLERS), Long, "Their sampler"),
    param("sd-strength", Float, Long, "How much of the picture they may change"),
    param("sd-mask-blur", Int, Long, "Blur of the mask's edge in pixels"),
    param("sd-scale", Float, Long, "Scale of the picture before the network"),
    param("sd-match-histograms", Bool, Long, "Match the colours of the result with the picture"),
    param("use-croper", Bool, Long, "Work on the rectangle of the four options below only"),
    param("croper-x", Int, Long, "Its left edge"),
    param("croper-y", Int, Long, "Its upper edge"),
    param("croper-height", Int, Long, "Its height"),
    param("croper-width", Int, Long, "Its width"),
    param("ldm-steps", Int, Long, "Steps of ldm"),
    param("ldm-sampler", Word(&["ddim", "plms"]), Long, "Sampler of ldm"),
    param("zits-wireframe", Bool, Long, "Use the wireframe of zits"),
    param("cv2-flag", Word(&["INPAINT_NS", "INPAINT_TELEA"]), Long, "Algorithm of cv2"),
    param("cv2-radius", Int, Long, "Radius of cv2"),
    param("paint-by-example-steps", Int, Long, "Steps of paint_by_example"),
    param("paint-by-example-guidance-scale", Float, Long, "Its guidance scale"),
    param("paint-by-example-mask-blur", Int, Long, "Its blur of the mask's edge"),
    param("paint-by-example-seed", Int, Long, "Its seed"),
    param(
        "paint-by-example-match-histograms",
        Bool,
        Long,
        "Match the colours of its result with the picture",
    ),
    param("p2p-steps", Int, Long, "Steps of instruct_pix2pix"),
    param("p2p-image-guidance-scale", Float, Long, "How closely it follows the picture"),
    param("p2p-guidance-scale", Float, Long, "How closely it follows the prompt"),
    param("controlnet-conditioning-scale", Float, Long, "Weight of the ControlNet"),
    param("controlnet-method", Word(CONTROLNETS), Long, "The ControlNet that is used"),
    param("sd-controlnet", Bool, Long, "Load the model with a ControlNet"),
    param("sd-controlnet-method", Word(CONTROLNETS), Long, "The ControlNet that is loaded"),
    param("no-half", Bool, Long, "Compute with 32 bits"),
    param("disable-nsfw", Bool, Long, "Load no filter for indecent pictures"),
    param("sd-cpu-textencoder", Bool, Long, "Run the text encoder on the CPU"),
    param("sd-run-local", Bool, Long, "Load diffusion models from the node's disk only"),
    param("sd-local-model-path", Text, Long, "A model file on the node's disk"),
    param("local-files-only", Bool, Long, "Do not ask for newer files"),
    param("cpu-offload", Bool, Long, "Keep idle parts of the model in the host's memory"),
    param("enable-xformers", Bool, Long, "Use xformers"),
    param("keep-orientation", Bool, Long, "Keep the orientation in the EXIF, as Lama Cleaner does"),
    param("echo-ms", Int, Nowhere, "Time that a task takes on an echo node"),
    param("echo-abort", Int, Nowhere, "Ends the node that runs the task"),
];

/// The error for a value of a wrong kind.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParamError {
    #[error("write a whole number")]
    Int,
    #[error("write a number, for example 7.5")]
    Float,
    #[error("write true or false")]
    Bool,
    #[error("write one of {0}")]
    Word(String),
}

impl Param {
    /// The parameter's name in a task.
    fn name(&self) -> String {
        self.flag.replace('-', "_")
    }

    fn arg(&self) -> Arg {
        let (flag, kind) = (self.flag, self.kind);
        let arg = Arg::new(flag).long(flag).help(self.help).help_heading("Options of the model");
        let arg = arg.allow_hyphen_values(matches!(kind, Int | Float)).value_name(match kind {
            Int => "N",
            Float => "X",
            Bool => "true|false",
            Text => "TEXT",
            Word(_) => "WORD",
        });
        let arg = if flag == "sd-seed" { arg.visible_alias("seed") } else { arg };
        let arg = if kind == Bool { arg.num_args(0..=1).default_missing_value("true") } else { arg };
        arg.hide_short_help(self.shown != First)
            .hide(self.shown == Nowhere)
            .value_parser(move |text: &str| scalar(flag, kind, text))
    }
}

fn scalar(flag: &str, kind: Kind, text: &str) -> Result<Scalar, ParamError> {
    match kind {
        Int => match text.parse() {
            Ok(number) => Ok(Scalar::Int(number)),
            // torch takes seeds of 64 bits without a sign, which a task carries as a text.
            Err(_) if flag.ends_with("seed") && text.parse::<u64>().is_ok() => Ok(Scalar::Text(text.into())),
            Err(_) => Err(ParamError::Int),
        },
        Float => {
            let number = text.parse().ok().filter(|number: &f64| number.is_finite());
            number.map(Scalar::Float).ok_or(ParamError::Float)
        }
        Bool => text.parse().map(Scalar::Bool).map_err(|_| ParamError::Bool),
        Text => Ok(Scalar::Text(text.into())),
        Word(words) if words.contains(&text) => Ok(Scalar::Text(text.into())),
        Word(words) => Err(ParamError::Word(words.join(", "))),
    }
}

/// The parameters of the command line, by their names in a task.
#[derive(Debug, Clone, Default)]
pub(crate) struct ParamArgs(pub(crate) BTreeMap<String, Scalar>);

impl FromArgMatches for ParamArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = |param: &Param| {
            let value: Option<&Scalar> = matches.get_one(param.flag);
            value.map(|value| (param.name(), value.clone()))
        };
        Ok(Self(PARAMS.iter().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for ParamArgs {
    fn augment_args(command: Command) -> Command {
        command.args(PARAMS.iter().map(Param::arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<BTreeMap<String, Scalar>, Error> {
        let matches =
            ParamArgs::augment_args(Command::new("x")).try_get_matches_from([&["x"], words].concat())?;
        Ok(ParamArgs::from_arg_matches(&matches)?.0)
    }

    #[test]
    fn flags_become_parameters_of_their_kind() {
        let words = [
            "--hd-strategy",
            "Crop",
            "--seed",
            "-1",
            "--sd-scale",
            "1",
            "--no-half",
            "--zits-wireframe=false",
        ];
        let wanted = [
            ("hd_strategy", Scalar::Text("Crop".into())),
            ("sd_seed", Scalar::Int(-1)),
            ("sd_scale", Scalar::Float(1.0)),
            ("no_half", Scalar::Bool(true)),
            ("zits_wireframe", Scalar::Bool(false)),
        ];
        let wanted: BTreeMap<_, _> =
            wanted.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        assert_eq!(parsed(&words).unwrap(), wanted);
        assert_eq!(parsed(&[]).unwrap(), BTreeMap::new());
    }

    #[test]
    fn values_of_another_kind_are_refused() {
        for (flag, value) in [
            ("--sd-steps", "many"),
            ("--sd-scale", "nan"),
            ("--hd-strategy", "crop"),
            ("--use-croper=perhaps", ""),
            ("--sd-steps", "18446744073709551615"),
        ] {
            assert!(parsed(&[flag, value]).is_err(), "{flag} {value}");
        }
        let seed = parsed(&["--sd-seed", "18446744073709551615"]).unwrap();
        assert_eq!(seed["sd_seed"], Scalar::Text("18446744073709551615".into()));
    }
}
