//! The options of a task: their names, types and values, as in `lamagrid.TaskOptions` and `lamagrid.options`.
//!
//! `tests/api` compares the table with Python's.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use lamagrid_client::new_task_id;
use lamagrid_domain::{
    ClientName, Durability, ModelName, OutputForm, Params, PictureFormat, QueueName, Scalar, TaskId,
};

use crate::body::{Field, FieldValue};
use crate::problem::Problem;

/// The values that an option accepts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Integer,
    Number,
    Boolean,
    Text,
    Words(&'static [&'static str]),
}

/// An option of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModelOption {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
}

const CONTROLNETS: Kind = Kind::Words(&[
    "control_v11p_sd15_canny",
    "control_v11p_sd15_openpose",
    "control_v11p_sd15_inpaint",
    "control_v11f1p_sd15_depth",
]);

const fn option(name: &'static str, kind: Kind) -> ModelOption {
    ModelOption { name, kind }
}

use Kind::{Boolean, Integer, Number, Text, Words};

/// Upstream's fields of `Config`, how its models are built, and our own.
pub(crate) const MODEL_OPTIONS: &[ModelOption] = &[
    option("ldm_steps", Integer),
    option("ldm_sampler", Words(&["ddim", "plms"])),
    option("hd_strategy", Words(&["Original", "Resize", "Crop"])),
    option("zits_wireframe", Boolean),
    option("hd_strategy_crop_margin", Integer),
    option("hd_strategy_crop_trigger_size", Integer),
    option("hd_strategy_resize_limit", Integer),
    option("prompt", Text),
    option("negative_prompt", Text),
    option("use_croper", Boolean),
    option("croper_x", Integer),
    option("croper_y", Integer),
    option("croper_height", Integer),
    option("croper_width", Integer),
    option("sd_scale", Number),
    option("sd_mask_blur", Integer),
    option("sd_strength", Number),
    option("sd_steps", Integer),
    option("sd_guidance_scale", Number),
    option("sd_sampler", Words(&["ddim", "pndm", "k_lms", "k_euler", "k_euler_a", "dpm++", "uni_pc"])),
    option("sd_seed", Integer),
    option("sd_match_histograms", Boolean),
    option("cv2_flag", Words(&["INPAINT_NS", "INPAINT_TELEA"])),
    option("cv2_radius", Integer),
    option("paint_by_example_steps", Integer),
    option("paint_by_example_guidance_scale", Number),
    option("paint_by_example_mask_blur", Integer),
    option("paint_by_example_seed", Integer),
    option("paint_by_example_match_histograms", Boolean),
    option("p2p_steps", Integer),
    option("p2p_image_guidance_scale", Number),
    option("p2p_guidance_scale", Number),
    option("controlnet_conditioning_scale", Number),
    option("controlnet_method", CONTROLNETS),
    option("sd_controlnet", Boolean),
    option("sd_controlnet_method", CONTROLNETS),
    option("no_half", Boolean),
    option("disable_nsfw", Boolean),
    option("sd_cpu_textencoder", Boolean),
    option("sd_run_local", Boolean),
    option("sd_local_model_path", Text),
    option("local_files_only", Boolean),
    option("cpu_offload", Boolean),
    option("enable_xformers", Boolean),
    option("keep_orientation", Boolean),
    option("echo_ms", Integer),
    option("echo_abort", Integer),
];

/// The files of a task.
pub(crate) const FILES: &[&str] = &["image", "mask", "example"];
/// The fields of a task that are no option of a model.
pub(crate) const TASK_FIELDS: &[&str] = &[
    "model",
    "queue",
    "output",
    "quality",
    "priority",
    "durability",
    "deadline",
    "wait_limit",
    "no_node_wait",
    "run_limit",
    "client",
    "task_id",
];
/// Upstream's default of `--quality`.
const QUALITY: u8 = 95;
/// Ten years; every clock can add it without overflow.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Longest quotation of a value, in characters.
const SHOWN_CHARS: usize = 80;

/// The options of one task.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TaskOptions {
    /// The id that the program chose.
    pub(crate) id: Option<TaskId>,
    pub(crate) model: ModelName,
    pub(crate) queue: Option<QueueName>,
    pub(crate) output: OutputForm,
    pub(crate) priority: i8,
    pub(crate) durability: Durability,
    pub(crate) deadline: Option<Duration>,
    pub(crate) wait_limit: Option<Duration>,
    pub(crate) no_node_wait: Option<Duration>,
    pub(crate) run_limit: Option<Duration>,
    pub(crate) client: Option<ClientName>,
    pub(crate) params: Params,
}

impl TaskOptions {
    /// Checks the fields of a request.
    ///
    /// # Errors
    /// 400, which names the field, and for an unknown one the nearest that exists.
    pub(crate) fn of(fields: Vec<Field>) -> Result<Self, Problem> {
        let mut options = Self {
            id: None,
            model: "lama".parse().expect("four letters are a model's name"),
            queue: None,
            output: OutputForm::Raw,
            priority: 0,
            durability: Durability::default(),
            deadline: None,
            wait_limit: None,
            no_node_wait: None,
            run_limit: None,
            client: None,
            params: Params::default(),
        };
        let (mut format, mut quality) = (PictureFormat::Png, QUALITY);
        let mut params = BTreeMap::new();
        for Field { name, value } in fields {
            if value == FieldValue::Null {
                known(&name)?;
                continue;
            }
            match name.as_str() {
                "model" => options.model = parsed(&name, &value)?,
                "queue" => options.queue = Some(parsed(&name, &value)?),
                "output" => format = output(&name, &value)?,
                "quality" => quality = u8::try_from(whole(&name, &value, 1, 100)?).unwrap_or(QUALITY),
                "priority" => {
                    options.priority = i8::try_from(whole(&name, &value, -128, 127)?).unwrap_or_default()
                }
                "durability" => {
                    options.durability = match word(&name, &value, &["full", "process"])? {
                        "process" => Durability::Process,
                        _ => Durability::Full,
                    }
                }
                "deadline" => options.deadline = Some(seconds(&name, &value)?),
                "wait_limit" => options.wait_limit = Some(seconds(&name, &value)?),
                "no_node_wait" => options.no_node_wait = Some(seconds(&name, &value)?),
                "run_limit" => options.run_limit = Some(seconds(&name, &value)?),
                "client" => options.client = Some(parsed(&name, &value)?),
                "task_id" => options.id = Some(parsed(&name, &value)?),
                _ => {
                    let option = MODEL_OPTIONS.iter().find(|option| option.name == name);
                    let option = option.ok_or_else(|| unknown(&name))?;
                    params.insert(name, scalar(option, &value)?);
                }
            }
        }
        options.output = OutputForm::Encoded { format, quality };
        options.params = Params::try_from(params).map_err(|error| Problem::bad(error.to_string()))?;
        Ok(options)
    }

    /// The id that the program chose, or a new one.
    pub(crate) fn id_or_new(&self) -> TaskId {
        self.id.unwrap_or_else(new_task_id)
    }
}

/// A duration in milliseconds.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().chain(TASK_FIELDS).copied().chain(MODEL_OPTIONS.iter().map(|option| option.name))
}

fn known(name: &str) -> Result<(), Problem> {
    if names().any(|known| known == name) { Ok(()) } else { Err(unknown(name)) }
}

fn unknown(name: &str) -> Problem {
    let nearest = lamagrid_config::most_similar(name, names());
    let hint = nearest.map_or_else(
        || "/api/openapi.json lists the known ones".to_owned(),
        |nearest| format!("did you mean {nearest}?"),
    );
    Problem::bad(format!("there is no field {}; {hint}", shown(name)))
}

fn shown(text: &str) -> String {
    let short: String = text.chars().take(SHOWN_CHARS).collect();
    if short.len() < text.len() { format!("{short:?}...") } else { format!("{short:?}") }
}

fn described(value: &FieldValue) -> String {
    match value {
        FieldValue::Written(text) | FieldValue::Text(text) => shown(text),
        FieldValue::Null => "null".to_owned(),
        FieldValue::Bool(v) => v.to_string(),
        FieldValue::Int(v) => v.to_string(),
        FieldValue::Large(v) => v.to_string(),
        FieldValue::Float(v) => v.to_string(),
    }
}

fn wrong(name: &str, value: &FieldValue, wanted: impl Display) -> Problem {
    Problem::bad(format!("{name} is {}, but must be {wanted}", described(value)))
}

fn text<'a>(name: &str, value: &'a FieldValue) -> Result<&'a str, Problem> {
    match value {
        FieldValue::Written(text) | FieldValue::Text(text) => Ok(text),
        _ => Err(wrong(name, value, "a text")),
    }
}

fn parsed<T: FromStr<Err: Display>>(name: &str, value: &FieldValue) -> Result<T, Problem> {
    text(name, value)?.parse().map_err(|error| Problem::bad(format!("{name}: {error}")))
}

fn word<'a>(name: &str, value: &'a FieldValue, words: &[&str]) -> Result<&'a str, Problem> {
    let given = text(name, value)?;
    if words.contains(&given) {
        return Ok(given);
    }
    let nearest = lamagrid_config::most_similar(given, words.iter().copied());
    let hint = nearest.map_or_else(String::new, |nearest| format!(", did you mean {nearest}?"));
    Err(Problem::bad(format!("{name} is {}{hint}; it may be {}", described(value), words.join(", "))))
}

fn output(name: &str, value: &FieldValue) -> Result<PictureFormat, Problem> {
    let formats = PictureFormat::ALL.into_iter().filter(|format| *format != PictureFormat::Gif);
    let words: Vec<_> = formats.map(PictureFormat::as_str).collect();
    word(name, value, &words)?.parse().map_err(|error| Problem::bad(format!("{name}: {error}")))
}

fn integer(name: &str, value: &FieldValue) -> Result<i64, Problem> {
    let parsed = match value {
        FieldValue::Int(v) => Some(*v),
        FieldValue::Written(text) => text.trim().parse().ok(),
        _ => None,
    };
    parsed.ok_or_else(|| wrong(name, value, "a whole number from -2^63 to 2^63 - 1"))
}

fn whole(name: &str, value: &FieldValue, min: i64, max: i64) -> Result<i64, Problem> {
    let number = integer(name, value)?;
    if (min..=max).contains(&number) {
        return Ok(number);
    }
    Err(wrong(name, value, format!("a whole number from {min} to {max}")))
}

fn number(name: &str, value: &FieldValue) -> Result<f64, Problem> {
    let parsed = match value {
        FieldValue::Int(v) => Some(*v as f64),
        FieldValue::Large(v) => Some(*v as f64),
        FieldValue::Float(v) => Some(*v),
        FieldValue::Written(text) => text.trim().parse().ok(),
        FieldValue::Null | FieldValue::Bool(_) | FieldValue::Text(_) => None,
    };
    parsed.filter(|number| number.is_finite()).ok_or_else(|| wrong(name, value, "a finite number"))
}

fn seconds(name: &str, value: &FieldValue) -> Result<Duration, Problem> {
    let seconds = number(name, value)?;
    if seconds < 0.0 {
        return Err(wrong(name, value, "a number of seconds, 0 or more"));
    }
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST).min(LONGEST))
}

fn scalar(option: &ModelOption, value: &FieldValue) -> Result<Scalar, Problem> {
    let name = option.name;
    Ok(match option.kind {
        Kind::Integer => match value {
            // torch takes seeds of 64 bits without a sign; upstream reads the number again.
            FieldValue::Large(seed) if name.ends_with("_seed") => Scalar::Text(seed.to_string()),
            FieldValue::Written(text) if name.ends_with("_seed") && text.trim().parse::<i64>().is_err() => {
                let seed = text.trim().parse::<u64>().map_err(|_| wrong(name, value, "a whole number"))?;
                Scalar::Text(seed.to_string())
            }
            value => Scalar::Int(integer(name, value)?),
        },
        Kind::Number => Scalar::Float(number(name, value)?),
        Kind::Boolean => Scalar::Bool(match value {
            FieldValue::Bool(v) => *v,
            FieldValue::Written(text) if text.eq_ignore_ascii_case("true") => true,
            FieldValue::Written(text) if text.eq_ignore_ascii_case("false") => false,
            _ => return Err(wrong(name, value, "true or false")),
        }),
        Kind::Text => Scalar::Text(text(name, value)?.to_owned()),
        Kind::Words(words) => Scalar::Text(word(name, value, words)?.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, value: FieldValue) -> Field {
        Field { name: name.into(), value }
    }

    fn written(name: &str, text: &str) -> Field {
        field(name, FieldValue::Written(text.into()))
    }

    #[test]
    fn a_form_and_json_mean_the_same() {
        let form = TaskOptions::of(vec![
            written("model", "sd1.5"),
            written("sd_seed", "7"),
            written("sd_scale", "0.5"),
            written("use_croper", "True"),
            written("hd_strategy", "Crop"),
            written("prompt", "3"),
            written("deadline", "1.5"),
            written("priority", "-3"),
            written("output", "jpeg"),
        ]);
        let json = TaskOptions::of(vec![
            field("model", FieldValue::Text("sd1.5".into())),
            field("sd_seed", FieldValue::Int(7)),
            field("sd_scale", FieldValue::Float(0.5)),
            field("use_croper", FieldValue::Bool(true)),
            field("hd_strategy", FieldValue::Text("Crop".into())),
            field("prompt", FieldValue::Text("3".into())),
            field("deadline", FieldValue::Float(1.5)),
            field("priority", FieldValue::Int(-3)),
            field("output", FieldValue::Text("jpeg".into())),
            field("queue", FieldValue::Null),
        ]);
        let (form, json) = (form.unwrap(), json.unwrap());
        assert_eq!(form, json);
        assert_eq!(form.deadline, Some(Duration::from_millis(1_500)));
        assert_eq!(form.output, OutputForm::Encoded { format: PictureFormat::Jpeg, quality: 95 });
        assert_eq!(form.params.int("sd_seed"), Some(7));
    }

    #[test]
    fn large_seeds_become_texts() {
        for value in [FieldValue::Large(u64::MAX), FieldValue::Written(u64::MAX.to_string())] {
            let options = TaskOptions::of(vec![field("sd_seed", value)]).unwrap();
            assert_eq!(options.params.text("sd_seed"), Some("18446744073709551615"));
        }
    }

    #[test]
    fn wrong_fields_are_named_with_a_remedy() {
        let text = |name: &str, text: &str| field(name, FieldValue::Text(text.into()));
        for (wrong, wanted) in [
            (written("hd_stratgy", "Crop"), "did you mean hd_strategy?"),
            (field("modle", FieldValue::Null), "did you mean model?"),
            (written("zzzzzz", "1"), "lists the known ones"),
            (written("hd_strategy", "crop"), "did you mean Crop?; it may be Original, Resize, Crop"),
            (text("sd_steps", "5"), "sd_steps is \"5\", but must be a whole number"),
            (written("sd_steps", "5.0"), "must be a whole number"),
            (field("sd_steps", FieldValue::Large(u64::MAX)), "must be a whole number"),
            (written("sd_scale", "nan"), "a finite number"),
            (field("use_croper", FieldValue::Int(1)), "true or false"),
            (written("quality", "101"), "from 1 to 100"),
            (written("priority", "128"), "from -128 to 127"),
            (written("deadline", "-1"), "0 or more"),
            (written("output", "gif"), "it may be png, jpeg, webp, bmp, tiff"),
            (written("durability", "none"), "it may be full, process"),
            (written("model", "a b"), "model"),
            (written("task_id", "12"), "is not 32 hexadecimal digits"),
            (written("prompt", &"x".repeat(8_193)), "is too long"),
            (field("prompt", FieldValue::Int(3)), "must be a text"),
        ] {
            let shown = format!("{wrong:?}");
            let problem = serde_json::to_string(&TaskOptions::of(vec![wrong]).unwrap_err()).unwrap();
            let problem = problem.replace("\\\"", "\"");
            assert!(problem.contains(wanted), "{shown}: {problem}");
        }
    }
}
