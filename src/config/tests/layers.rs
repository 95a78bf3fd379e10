//! Each layer wins over the one before it, and `rows` says so.
#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

use std::path::{Path, PathBuf};

use lamagrid_config::{
    Argument, Blend, Colour, Config, ConfigError, Device, Loaded, LogFormat, LogLevel, MaskRange, MaskType,
    NeededDevice, Origin, Part, RequiredDevice, RequiresConfig, ValueRange,
};

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn owned(pairs: Pairs) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn load(file: Option<&Path>, env: Pairs, flags: Pairs) -> Result<Loaded, ConfigError> {
    Config::load(file, owned(env).into_iter(), &owned(flags))
}

fn write(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn the_default_holds_the_documented_values() {
    let config = Config::default();
    let scheduler = &config.scheduler;
    assert_eq!((scheduler.lease_ms, scheduler.suspect_after_ms), (20_000, 3000));
    assert_eq!((scheduler.accept_timeout_ms, scheduler.closed_grace_ms), (1000, 1500));
    assert_eq!((scheduler.no_node_wait_ms, scheduler.crash_limit), (30_000, 3));
    let network = config.retry.of(lamagrid_domain::FailureFamily::Network);
    assert_eq!((network.failure_limit, network.base_ms, network.cap_ms), (3, 500, 10_000));
    assert_eq!((scheduler.result_retention_s, scheduler.tombstone_retention_s), (3600, 604_800));
    assert_eq!(scheduler.max_outstanding_per_peer, 1024);
    let queues: Vec<_> = config.queues.iter().map(|(name, queue)| (name.as_str(), queue.max_tasks)).collect();
    assert_eq!(queues, [("cpu", 1000), ("gpu", 1000)]);
    let store = &config.store;
    assert_eq!((store.group_commit_max, store.give_up_after_ms), (256, 10_000));
    let node = &config.node;
    assert_eq!((node.name.as_str(), node.slots, node.threads, scheduler.poll_ms), ("", 1, 0, 1000));
    assert_eq!((node.device, node.models.as_slice()), (Device::Auto, ["lama".to_owned()].as_slice()));
    assert!(!node.display_name().is_empty());
    assert!(config.models.is_empty());
    let client = &config.client;
    assert_eq!((client.timeout_ms, client.ping_ms, client.silence_ms), (600_000, 1000, 3000));
    assert_eq!(config.limits.max_pixels, 100_000_000);
    assert_eq!((config.log.level, config.log.format), (LogLevel::Info, LogFormat::Text));
    assert_eq!((config.log.dir.as_path(), config.log.keep_files), (Path::new(""), 7));
    assert_eq!(load(None, &[], &[]).unwrap().config, config);
}

#[test]
fn each_layer_wins_over_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(
        &dir,
        "c.toml",
        "[node]\nslots = 2\ncancel_grace_ms = 200\nthreads = 2\n[log]\nformat = \"json\"\n[queues.gpu]\nmax_tasks = 5",
    );
    let env =
        [("LAMAGRID__NODE__CANCEL_GRACE_MS", "300"), ("LAMAGRID__NODE__THREADS", "3"), ("PATH", "/bin")];
    let flags = [("node.threads", "4"), ("limits.max_pixels", "1"), ("limits.max_pixels", "5_000")];
    let loaded = load(Some(&file), &env, &flags).unwrap();
    let node = &loaded.config.node;
    assert_eq!((node.slots, node.cancel_grace_ms, node.threads), (2, 300, 4));
    assert_eq!(loaded.config.log.format, LogFormat::Json);
    assert_eq!((loaded.config.queues["gpu"].max_tasks, loaded.config.queues["cpu"].max_tasks), (5, 1000));
    assert_eq!(loaded.config.limits.max_pixels, 5000, "the last flag of a key counts");
    assert_eq!(loaded.origins["node.device"], Origin::Default);
    assert_eq!(loaded.origins["node.slots"], Origin::File(file));
    assert_eq!(
        loaded.origins["node.cancel_grace_ms"],
        Origin::Env("LAMAGRID__NODE__CANCEL_GRACE_MS".to_owned())
    );
    assert_eq!(loaded.origins["node.threads"], Origin::Flag);
}

#[test]
fn keys_of_earlier_versions_are_accepted_with_a_remark() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(&dir, "c.toml", "[node]\npoll_ms = 200\n[store]\ninline_limit_bytes = 5");
    let loaded = load(Some(&file), &[("LAMAGRID__STORE__INLINE_LIMIT_BYTES", "7")], &[]).unwrap();
    assert_eq!(loaded.config.scheduler.poll_ms, 200);
    assert_eq!(loaded.origins["scheduler.poll_ms"], Origin::File(file.clone()));
    let file = file.display();
    assert_eq!(
        loaded.remarks,
        [
            format!("`node.poll_ms` in file {file} is called `scheduler.poll_ms` now: it counts as that; rename it"),
            format!("`store.inline_limit_bytes` in file {file} has no effect any more: remove it"),
            "`store.inline_limit_bytes` in environment variable LAMAGRID__STORE__INLINE_LIMIT_BYTES has no effect any \
             more: remove it"
                .to_owned(),
        ]
    );
    assert!(load(None, &[], &[("node.poll_ms", "3000")]).is_err(), "the rules of the new name hold");
    assert!(load(None, &[], &[]).unwrap().remarks.is_empty());
}

#[test]
fn the_file_is_the_flags_then_the_variables_then_the_default_place() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_str().unwrap();
    let slots = |file: Option<&Path>, env: Pairs| load(file, env, &[]).unwrap().config.node.slots;
    assert_eq!(slots(None, &[("HOME", home)]), 1, "a missing file at the default place is no error");
    write(&dir, ".config/lamagrid/config.toml", "node.slots = 2");
    assert_eq!(slots(None, &[("HOME", home)]), 2);
    let xdg = write(&dir, "xdg/lamagrid/config.toml", "node.slots = 3");
    let xdg = xdg.ancestors().nth(2).unwrap().to_str().unwrap();
    assert_eq!(slots(None, &[("HOME", home), ("XDG_CONFIG_HOME", xdg)]), 3);
    let named = write(&dir, "named.toml", "node.slots = 4");
    let env = [("HOME", home), ("LAMAGRID_CONFIG", named.to_str().unwrap())];
    assert_eq!(slots(None, &env), 4);
    let flag = write(&dir, "flag.toml", "node.slots = 5");
    assert_eq!(slots(Some(&flag), &env), 5);
    assert_eq!(slots(None, &[("LAMAGRID_CONFIG", "")]), 1, "an empty variable names nothing");
}

#[test]
fn text_becomes_the_type_of_its_key() {
    let env = [
        ("LAMAGRID__NODE__MODELS", "lama, manga,"),
        ("LAMAGRID__NODE__NAME", "gpu-1"),
        ("LAMAGRID__NODE__DEVICE", "cuda:1"),
        ("LAMAGRID__LOG__LEVEL", "trace"),
        ("LAMAGRID_LOG", "not a key"),
        ("HOME", "/home/a"),
    ];
    let config = load(None, &env, &[("data_dir", "~/grid")]).unwrap().config;
    assert_eq!(config.node.models, ["lama", "manga"]);
    assert_eq!((config.node.name.as_str(), config.node.device), ("gpu-1", Device::Cuda(1)));
    assert_eq!(config.node.display_name(), "gpu-1");
    assert_eq!(config.log.level, LogLevel::Trace);
    assert_eq!(config.data_dir().unwrap(), Path::new("/home/a/grid"));
    assert_eq!(config.log_dir().unwrap(), Path::new("/home/a/grid/logs"));
    let config = load(None, &[], &[("node.models", "[\"a\", \"b.1\"]"), ("log.dir", "/l")]).unwrap().config;
    assert_eq!(config.node.models, ["a", "b.1"]);
    assert_eq!(config.log_dir().unwrap(), Path::new("/l"));
}

#[test]
fn the_data_directory_follows_the_given_environment() {
    let of = |env: Pairs| load(None, env, &[]).unwrap().config.data_dir().unwrap();
    assert_eq!(of(&[("HOME", "/nowhere/a")]), Path::new("/nowhere/a/.local/share/lamagrid"));
    assert_eq!(of(&[("HOME", "/nowhere/a"), ("XDG_DATA_HOME", "/d")]), Path::new("/d/lamagrid"));
}

#[test]
fn queues_and_models_are_added_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(
        &dir,
        "c.toml",
        "[queues.big]\n[models.lama]\npath = \"own.pt\"\n[models.\"sd1.5-own\"]\npath = \"/m/s.pt\"\nqueue = \"big\"",
    );
    let env = [("LAMAGRID__MODELS__SD1_5_OWN__PAD_MODULO", "64"), ("LAMAGRID__QUEUES__TINY__MAX_TASKS", "1")];
    let loaded = load(Some(&file), &env, &[("models.new.path", "/m/n.pt")]).unwrap();
    let (queues, models) = (&loaded.config.queues, &loaded.config.models);
    assert_eq!((queues["big"].max_tasks, queues["tiny"].max_tasks), (1000, 1));
    assert_eq!(models["lama"].path, dir.path().join("own.pt"), "a relative path begins at its file");
    assert_eq!((models["lama"].queue.as_str(), models["lama"].pad_modulo), ("", 8));
    let own = &models["sd1.5-own"];
    assert_eq!((own.path.as_path(), own.queue.as_str(), own.pad_modulo), (Path::new("/m/s.pt"), "big", 64));
    assert_eq!(models["new"].path, Path::new("/m/n.pt"));
    assert_eq!(loaded.origins["queues.big.max_tasks"], Origin::Default);
}

#[test]
fn a_model_describes_its_network() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(
        &dir,
        "c.toml",
        "[models.migan]\npath = \"migan.pt\"\ninputs = [\"mask+erased\"]\nimage_range = \"-1..1\"\n\
         mask_range = \"0.5..-0.5\"\noutput_range = \"-1..1\"\nfixed_size = 512\nblend = \"all\"\ncolour = \"bgr\"",
    );
    let env = [("LAMAGRID__MODELS__MIGAN__PIN", "true"), ("LAMAGRID__MODELS__O__INPUTS", "mask, image")];
    let flags = [("models.o.url", "https://h/o.pt"), ("models.o.sha256", &"a".repeat(64))];
    let models = load(Some(&file), &env, &flags).unwrap().config.models;
    let migan = &models["migan"];
    assert_eq!(migan.inputs, [Argument(vec![Part::Mask, Part::Erased])]);
    assert_eq!((migan.image_range, migan.output_range), (ValueRange::Signed, ValueRange::Signed));
    assert_eq!(migan.mask_range, MaskRange { keep: 0.5, hole: -0.5 });
    assert_eq!(
        (migan.fixed_size, migan.blend, migan.colour, migan.pin),
        (512, Blend::All, Colour::Bgr, true)
    );
    let other = &models["o"];
    assert_eq!(other.inputs, [Argument(vec![Part::Mask]), Argument(vec![Part::Image])]);
    assert_eq!((other.mask_type, other.pad_modulo, other.pin), (MaskType::Int64, 8, false));
    assert!(other.has_file() && other.path.as_os_str().is_empty());
}

#[test]
fn rows_show_every_key_with_value_and_origin() {
    let env = [("LAMAGRID__NODE__MODELS", "lama,manga")];
    let flags = [("models.sd1.5.path", "/m/s.pt"), ("node.slots", "2")];
    let rows: Vec<String> =
        load(None, &env, &flags).unwrap().rows().iter().map(ToString::to_string).collect();
    let golden = include_str!("rows.txt");
    assert_eq!(rows.join("\n"), golden.trim_end());
}

#[test]
fn a_queue_may_require_a_kind_of_node_and_a_model_say_its_need() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(
        &dir,
        "c.toml",
        "[queues.big]\nspill_to = \"cpu\"\nrequires = { device = \"gpu\", memory_gib = 16, labels = [\"a100\"] }\n\
         [models.lama.need]\nmemory_mib = 300",
    );
    let env = [
        ("LAMAGRID__QUEUES__ANY__REQUIRES__DEVICE", "any"),
        ("LAMAGRID__MODELS__LAMA__NEED__CPU_UP_TO_MEGAPIXELS", "1"),
    ];
    let config = load(Some(&file), &env, &[("queues.big.requires.labels", "a100,fast")]).unwrap().config;
    let big = &config.queues["big"];
    let labels = vec!["a100".to_owned(), "fast".to_owned()];
    assert_eq!(big.requires, RequiresConfig { device: RequiredDevice::Gpu, memory_gib: 16, labels });
    assert_eq!((big.spill_to.as_str(), big.spill_after_s), ("cpu", 60));
    assert!(config.queues["any"].requires.is_set() && !config.queues["gpu"].requires.is_set());
    let need = config.models["lama"].need;
    assert_eq!((need.memory_mib, need.cpu_up_to_megapixels), (300, 1));
    assert_eq!((need.device, need.mib_per_megapixel), (NeededDevice::Auto, 0));
}
