//! The need of a task: a class of device, and memory for its model and for the pixels that reach the network.
//!
//! The built-in figures are the least that a model takes: a task that is tried and runs out of memory teaches the
//! scheduler more (`state::learned_needs`); one that is never tried teaches nothing. `[models.NAME.need]` replaces them.

use std::collections::BTreeMap;

use lamagrid_config::{NeedConfig, NeededDevice};
use lamagrid_domain::{
    BlobForm, DeviceClass, ModelName, Params, PictureSize, QueueName, Role, Scalar, TaskSpec,
};

const MIB: u64 = 1 << 20;
pub(crate) const MEGAPIXEL: u64 = 1_000_000;
/// The defaults of a TorchScript node for absent parameters.
const DEFAULT_RESIZE_LIMIT_PX: i64 = 2_048;
const DEFAULT_CROP_TRIGGER_PX: i64 = 800;

/// The needs of one model's tasks, as the tables say them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ModelNeed {
    /// The only class of device that they run on; `None` if each will do.
    device: Option<DeviceClass>,
    prefers: DeviceClass,
    model_bytes: u64,
    bytes_per_megapixel: u64,
    /// Pictures up to this size prefer a CPU.
    cpu_up_to_pixels: u64,
    /// The figures are those of 16-bit floats, which the option `no_half` doubles.
    is_half: bool,
}

impl ModelNeed {
    /// The figures for upstream's models; 0 for models that nothing is known of.
    fn built_in(model: &ModelName) -> Self {
        let (model_mib, mib_per_megapixel, is_half) = match model.as_str() {
            "lama" => (200, 700, false),
            "manga" => (180, 600, false),
            "ldm" => (1_400, 400, false),
            "zits" => (900, 700, false),
            "mat" => (250, 700, false),
            "fcf" => (280, 0, false),
            "sd1.5" | "anything4" | "realisticVision1.4" => (2_000, 700, true),
            "sd2" => (2_400, 700, true),
            "paint_by_example" => (2_500, 0, true),
            "instruct_pix2pix" => (2_000, 700, true),
            "plugin/InteractiveSeg" => (360, 0, false),
            "plugin/RemoveBG" | "plugin/AnimeSeg" => (170, 0, false),
            "plugin/RealESRGAN" => (17, 0, true),
            "plugin/GFPGAN" => (330, 0, false),
            "plugin/RestoreFormer" => (280, 0, false),
            _ => (0, 0, false),
        };
        let is_for_cpu = model.default_queue() == QueueName::cpu();
        Self {
            device: None,
            prefers: if is_for_cpu { DeviceClass::Cpu } else { DeviceClass::Gpu },
            model_bytes: model_mib * MIB,
            bytes_per_megapixel: mib_per_megapixel * MIB,
            cpu_up_to_pixels: 0,
            is_half,
        }
    }

    fn configured(model: &ModelName, config: NeedConfig) -> Self {
        let built_in = Self::built_in(model);
        let set = |mib: u64, built_in: u64| if mib > 0 { mib * MIB } else { built_in };
        let device = match config.device {
            NeededDevice::Auto | NeededDevice::Any => None,
            NeededDevice::Gpu => Some(DeviceClass::Gpu),
            NeededDevice::Cpu => Some(DeviceClass::Cpu),
        };
        let prefers = match config.device {
            NeededDevice::Auto => built_in.prefers,
            NeededDevice::Any | NeededDevice::Gpu => DeviceClass::Gpu,
            NeededDevice::Cpu => DeviceClass::Cpu,
        };
        Self {
            device,
            prefers,
            model_bytes: set(config.memory_mib, built_in.model_bytes),
            bytes_per_megapixel: set(config.mib_per_megapixel, built_in.bytes_per_megapixel),
            cpu_up_to_pixels: config.cpu_up_to_megapixels * MEGAPIXEL,
            is_half: built_in.is_half && config.memory_mib == 0,
        }
    }
}

/// The needs of all models: those of the configuration, and the built-in ones.
#[derive(Debug, Default)]
pub(crate) struct NeedTable(BTreeMap<ModelName, ModelNeed>);

impl NeedTable {
    pub(crate) fn set(&mut self, model: &ModelName, config: NeedConfig) {
        self.0.insert(model.clone(), ModelNeed::configured(model, config));
    }

    fn of(&self, model: &ModelName) -> ModelNeed {
        self.0.get(model).copied().unwrap_or_else(|| ModelNeed::built_in(model))
    }
}

/// The need of a task by the tables alone. Fixed at its acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Demand {
    /// The only class of device that it runs on; `None` if each will do.
    pub(crate) device: Option<DeviceClass>,
    pub(crate) prefers: DeviceClass,
    pub(crate) model_bytes: u64,
    pub(crate) bytes_per_megapixel: u64,
    /// Pixels that reach the network at once; 0 if the picture's size is unknown.
    pub(crate) pixels: u64,
}

impl Default for Demand {
    /// That of a model of which nothing is known.
    fn default() -> Self {
        Self { device: None, prefers: DeviceClass::Gpu, model_bytes: 0, bytes_per_megapixel: 0, pixels: 0 }
    }
}

impl Demand {
    /// At least the demands of both, for bounds.
    #[must_use]
    pub(crate) fn at_least(self, other: &Self) -> Self {
        Self {
            device: other.device,
            prefers: other.prefers,
            model_bytes: self.model_bytes.max(other.model_bytes),
            bytes_per_megapixel: self.bytes_per_megapixel.max(other.bytes_per_megapixel),
            pixels: self.pixels.max(other.pixels),
        }
    }

    /// At most the demands of both, for bounds.
    #[must_use]
    pub(crate) fn at_most(self, other: &Self) -> Self {
        Self {
            device: other.device,
            prefers: other.prefers,
            model_bytes: self.model_bytes.min(other.model_bytes),
            bytes_per_megapixel: self.bytes_per_megapixel.min(other.bytes_per_megapixel),
            pixels: self.pixels.min(other.pixels),
        }
    }

    /// The demand of a task.
    pub(crate) fn of(spec: &TaskSpec, table: &NeedTable) -> Self {
        Self::of_model(&spec.model, &spec.params, picture(spec), table)
    }

    /// The demand of a task with these parameters.
    pub(crate) fn of_model(
        model: &ModelName,
        params: &Params,
        picture: Option<PictureSize>,
        table: &NeedTable,
    ) -> Self {
        let ModelNeed {
            device,
            prefers,
            mut model_bytes,
            mut bytes_per_megapixel,
            cpu_up_to_pixels,
            is_half,
        } = table.of(model);
        if is_half && (is_on(params, "no_half") || is_on(params, "realesrgan_no_half")) {
            model_bytes *= 2;
            bytes_per_megapixel *= 2;
        }
        if is_on(params, "cpu_offload") || is_on(params, "low_mem") {
            model_bytes /= 4; // the parts of the network are on the device one after the other
        }
        let is_small = picture.is_some_and(|size| size.pixels() <= cpu_up_to_pixels);
        Self {
            device,
            prefers: if is_small { device.unwrap_or(DeviceClass::Cpu) } else { prefers },
            model_bytes,
            bytes_per_megapixel,
            pixels: picture.map_or(0, |size| network_pixels(size, params)),
        }
    }

    /// Memory of model and pixels by the tables, in bytes.
    pub(crate) fn table_bytes(&self) -> u64 {
        self.model_bytes.saturating_add(self.bytes_of(self.pixels))
    }

    /// Memory that this many pixels take, in bytes.
    pub(crate) fn bytes_of(&self, pixels: u64) -> u64 {
        let bytes = u128::from(self.bytes_per_megapixel) * u128::from(pixels) / u128::from(MEGAPIXEL);
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

/// The need of a task, corrected by what nodes reported about its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    /// The only class of device that it runs on; `None` if each will do.
    pub(crate) device: Option<DeviceClass>,
    pub(crate) prefers: DeviceClass,
    /// Memory of the device, in bytes; 0 if nothing is known.
    pub(crate) memory_bytes: u64,
    /// A task of its size ran out of this much memory: it goes to a device with more, if there is one. 0 if none did.
    pub(crate) outgrown_bytes: u64,
}

/// The size of a task's picture: as its submitter read it, or that of its raw pixels.
fn picture(spec: &TaskSpec) -> Option<PictureSize> {
    spec.picture.or_else(|| {
        let image = spec.blobs.iter().find(|blob| blob.role == Role::Image)?;
        match image.form {
            BlobForm::Raw { height, width, .. } => Some(PictureSize { height, width }),
            BlobForm::Encoded => None,
        }
    })
}

fn is_on(params: &Params, key: &str) -> bool {
    params.get(key) == Some(&Scalar::Bool(true))
}

/// Pixels that reach the network at once. Under Crop the holes are not known: the trigger stands for a crop.
fn network_pixels(size: PictureSize, params: &Params) -> u64 {
    let side = |key, default: i64| {
        let given = params.int(key).unwrap_or(default);
        u64::try_from(given).unwrap_or(0)
    };
    let (long, short) = (size.height.max(size.width), size.height.min(size.width));
    let (long, short) = (u64::from(long), u64::from(short));
    match params.text("hd_strategy") {
        Some("Resize") => {
            let limit = side("hd_strategy_resize_limit", DEFAULT_RESIZE_LIMIT_PX);
            if long <= limit { size.pixels() } else { limit * (short * limit).div_ceil(long) }
        }
        None | Some("Crop") => {
            let trigger = side("hd_strategy_crop_trigger_size", DEFAULT_CROP_TRIGGER_PX);
            size.pixels().min(trigger.saturating_mul(trigger))
        }
        Some(_) => size.pixels(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::spec;

    fn params(pairs: &[(&str, Scalar)]) -> Params {
        let owned = pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        Params::try_from(owned.collect::<BTreeMap<_, _>>()).unwrap()
    }

    fn strategy(name: &str, side: i64) -> Params {
        params(&[
            ("hd_strategy", Scalar::Text(name.to_owned())),
            ("hd_strategy_resize_limit", Scalar::Int(side)),
            ("hd_strategy_crop_trigger_size", Scalar::Int(side)),
        ])
    }

    fn demand(model: &str, params: &Params, picture: Option<(u32, u32)>) -> Demand {
        let picture = picture.map(|(height, width)| PictureSize { height, width });
        Demand::of_model(&model.parse().unwrap(), params, picture, &NeedTable::default())
    }

    /// Seeded numbers below 2^31.
    fn numbers() -> impl FnMut() -> u64 {
        let mut state = 7_u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        }
    }

    #[test]
    fn a_larger_picture_of_the_same_shape_never_needs_less_and_never_more_than_the_strategy_lets_through() {
        let mut next = numbers();
        for _ in 0..20_000 {
            let (height, width) = (1 + next() as u32 % 5_000, 1 + next() as u32 % 5_000);
            let factor = 1 + next() as u32 % 4;
            let side = next() as i64 % 4_000;
            let name = ["Original", "Resize", "Crop", "anything else"][next() as usize % 4];
            let model = ["lama", "mat", "sd1.5", "cv2", "mine"][next() as usize % 5];
            let params = strategy(name, side);
            let small = demand(model, &params, Some((height, width)));
            let large = demand(model, &params, Some((height * factor, width * factor)));
            assert!(small.table_bytes() <= large.table_bytes(), "{name} {side}: {small:?} {large:?}");
            let all = u64::from(height) * u64::from(width);
            let side = side as u64;
            let through = match name {
                "Resize" | "Crop" => all.min(side * side),
                _ => all,
            };
            assert!(small.pixels <= through.max(side), "{name} {side} of {height} x {width}: {small:?}");
            assert!(name.starts_with(['R', 'C']) || small.pixels == all);
        }
    }

    #[test]
    fn a_resized_picture_counts_with_its_longer_side_at_the_limit() {
        let resized =
            |height, width| demand("lama", &strategy("Resize", 1_000), Some((height, width))).pixels;
        assert_eq!(resized(4_000, 2_000), 500_000);
        assert_eq!(resized(500, 1_000), 500_000);
        let cropped = |height, width| demand("lama", &strategy("Crop", 1_000), Some((height, width))).pixels;
        assert_eq!((cropped(4_000, 2_000), cropped(999, 999)), (1_000_000, 998_001));
    }

    #[test]
    fn options_change_the_memory_and_a_picture_of_unknown_size_needs_the_model_alone() {
        let on = |key: &str| demand("sd1.5", &params(&[(key, Scalar::Bool(true))]), None);
        let plain = demand("sd1.5", &Params::default(), None);
        assert_eq!((plain.pixels, plain.table_bytes()), (0, 2_000 * MIB));
        assert_eq!(on("no_half").table_bytes(), 4_000 * MIB);
        assert_eq!(on("cpu_offload").table_bytes(), 500 * MIB);
        assert_eq!(on("low_mem").table_bytes(), 500 * MIB);
        let more_steps = demand("sd1.5", &params(&[("sd_steps", Scalar::Int(500))]), None);
        assert_eq!(more_steps, plain, "steps take time");
        assert_eq!(demand("mine", &Params::default(), Some((9_000, 9_000))).table_bytes(), 0);
    }

    #[test]
    fn the_configuration_replaces_single_figures_and_small_pictures_may_prefer_a_cpu() {
        let lama: ModelName = "lama".parse().unwrap();
        let mut table = NeedTable::default();
        table.set(&lama, NeedConfig { memory_mib: 300, cpu_up_to_megapixels: 1, ..NeedConfig::default() });
        let of = |pixels| {
            let picture = Some(PictureSize { height: 1_000, width: pixels });
            Demand::of_model(&lama, &Params::default(), picture, &table)
        };
        assert_eq!((of(1_000).prefers, of(1_001).prefers), (DeviceClass::Cpu, DeviceClass::Gpu));
        assert_eq!(of(0).table_bytes(), 300 * MIB);
        assert_eq!(of(1).bytes_per_megapixel, 700 * MIB);
        let only = NeedConfig { device: NeededDevice::Gpu, cpu_up_to_megapixels: 9, ..NeedConfig::default() };
        table.set(&lama, only);
        let demand = Demand::of_model(&lama, &Params::default(), None, &table);
        assert_eq!((demand.device, demand.prefers), (Some(DeviceClass::Gpu), DeviceClass::Gpu));
    }

    #[test]
    fn raw_pixels_tell_their_size_without_a_header() {
        let mut raw = spec(1);
        raw.blobs[0].form = BlobForm::Raw { height: 20, width: 30, channels: 3 };
        assert_eq!(Demand::of(&raw, &NeedTable::default()).pixels, 600);
        raw.picture = Some(PictureSize { height: 10, width: 10 });
        assert_eq!(Demand::of(&raw, &NeedTable::default()).pixels, 100);
    }
}
