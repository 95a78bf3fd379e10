//! A mistake is refused with its key, its layer and what to do.
#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

use std::path::PathBuf;

use lamagrid_config::{Config, ConfigError};

/// Loads with this file text, variables and flags, and gives the error with `FILE` for the file's path.
fn refusal(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, file).unwrap();
    let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    };
    let error = Config::load(Some(&path), owned(env).into_iter(), &owned(flags)).unwrap_err();
    error.to_string().replace(path.to_str().unwrap(), "FILE")
}

fn in_file(text: &str) -> String {
    refusal(text, &[], &[])
}

fn in_env(variable: &str, value: &str) -> String {
    refusal("", &[(variable, value)], &[])
}

fn in_flag(key: &str, value: &str) -> String {
    refusal("", &[], &[(key, value)])
}

#[test]
fn an_unknown_key_is_named_with_its_layer_and_the_nearest_known_one() {
    assert_eq!(
        in_file("[scheduler]\nlease_sm = 1"),
        "unknown key `scheduler.lease_sm` in file FILE; did you mean `scheduler.lease_ms`?"
    );
    assert_eq!(
        in_env("LAMAGRID__SCHEDULER__LEASE_SM", "1"),
        "unknown key `scheduler.lease_sm` in environment variable LAMAGRID__SCHEDULER__LEASE_SM; \
         did you mean `scheduler.lease_ms` (LAMAGRID__SCHEDULER__LEASE_MS)?"
    );
    assert_eq!(in_flag("slots", "1"), "unknown key `slots` in flag; did you mean `node.slots`?");
    assert_eq!(
        in_file("[nodes]\nslots = 1"),
        "unknown key `nodes` in file FILE; did you mean `node`?",
        "a section, too"
    );
    assert_eq!(
        in_file("[node]\nhf_access_token = \"x\""),
        "unknown key `node.hf_access_token` in file FILE; `lamagrid config show` lists the known ones"
    );
    assert_eq!(
        in_file("[models.lama]\npath = \"/x\"\nque = \"gpu\""),
        "unknown key `models.lama.que` in file FILE; did you mean `models.lama.queue`?"
    );
    assert!(in_env("LAMAGRID__NODE", "1").starts_with("unknown key `node` in environment variable"));
    assert!(in_env("LAMAGRID__", "1").starts_with("unknown key"));
}

#[test]
fn a_wrong_type_is_named_with_what_was_found_and_an_example() {
    assert_eq!(
        in_file("[scheduler]\nlease_ms = \"20s\""),
        "`scheduler.lease_ms` in file FILE is the string \"20s\", but must be an integer; \
         for example: scheduler.lease_ms = 20000"
    );
    assert_eq!(
        in_env("LAMAGRID__SCHEDULER__LEASE_MS", "20s"),
        "`scheduler.lease_ms` in environment variable LAMAGRID__SCHEDULER__LEASE_MS is the text \"20s\", \
         but must be an integer; for example: LAMAGRID__SCHEDULER__LEASE_MS=20000"
    );
    assert_eq!(
        in_flag("node.models", "[lama"),
        "`node.models` in flag is the text \"[lama\", but must be a list of strings; \
         for example: node.models=lama"
    );
    assert_eq!(
        in_file("log.level = 3"),
        "`log.level` in file FILE is the integer 3, but must be a string; for example: log.level = \"info\""
    );
    assert_eq!(
        in_file("node.models = [\"lama\", 5]"),
        "`node.models` in file FILE is a list that holds the integer 5, but must be a list of strings; \
         for example: node.models = [\"lama\"]"
    );
    assert_eq!(
        in_file("node = 5"),
        "`node` in file FILE is the integer 5, but must be a table; for example: [node]"
    );
    assert!(in_file("node.slots = 1.5").contains("is the float 1.5, but must be an integer"));
    assert!(in_file("node.slots = true").contains("is the boolean true"));
    assert!(in_file("[node.slots]").contains("is a table, but must be an integer"));
    let long = in_flag("node.slots", &"9".repeat(10_000));
    assert!(long.len() < 300, "foreign text is shortened: {long}");
}

#[test]
fn a_value_out_of_its_range_is_named_with_the_range() {
    assert_eq!(in_file("node.slots = 0"), "`node.slots` in file FILE is 0, but must be between 1 and 64");
    assert_eq!(
        in_flag("store.group_commit_max", "10001"),
        "`store.group_commit_max` in flag is 10001, but must be between 1 and 10000"
    );
    assert_eq!(
        in_flag("log.level", "loud"),
        "`log.level` in flag is \"loud\", but must be one of error, warn, info, debug, trace"
    );
    assert_eq!(
        in_flag("node.device", "gpu"),
        "`node.device` in flag is \"gpu\", but must be auto, cpu, cuda or cuda:N"
    );
    assert!(in_flag("node.slots", "-1").contains("is -1, but must be between 1 and 64"));
    assert!(in_flag("node.models", "").contains("a list of at least one name"));
    assert!(in_flag("node.models", "a/b").contains("is \"a/b\", but must be a list of names"));
    assert!(in_flag("node.name", "a b").contains("but must be \"\" or a name"));
    assert!(in_file("[queues.\"a b\"]").contains("`queues.\"a b\"` in file FILE is named \"a b\""));
    let hidden = refusal("node.slots = 0", &[], &[("node.slots", "1")]);
    assert!(hidden.contains("file FILE"), "a mistake counts where a stronger layer hides it: {hidden}");
}

#[test]
fn http_listens_beyond_loopback_only_with_a_certificate_and_its_key() {
    let open = in_file("http.listen = \"0.0.0.0:8871\"");
    assert!(open.contains("`http.listen`") && open.contains("http.certificate"), "{open}");
    assert!(in_file("http.certificate = \"/c.pem\"").contains("`http.key` in default is"));
    assert!(in_file("http.key = \"/k.pem\"").contains("`http.certificate` in default is"));
    assert!(in_flag("http.listen", "localhost:8871").contains("an address with its port"));
}

#[test]
fn the_lists_of_the_web_server_hold_hosts_origins_and_networks() {
    let bad = [
        ("web.allowed_hosts", "http://mybox", "a list of host names without port"),
        ("web.allowed_hosts", "mybox:8080", "a list of host names without port"),
        ("web.allowed_hosts", "a..b", "a list of host names without port"),
        ("web.allowed_origins", "app.example.com", "a list of origins without path"),
        ("web.allowed_origins", "https://app.example.com/", "a list of origins without path"),
        ("web.allowed_origins", "https://*.example.com", "a list of origins without path"),
        ("web.allowed_origins", "ftp://app.example.com", "a list of origins without path"),
        ("web.allowed_origins", "https://app.example.com:99999", "a list of origins without path"),
        ("web.trusted_proxies", "proxy.example.com", "a list of addresses and networks"),
        ("web.trusted_proxies", "10.0.0.0/33", "a list of addresses and networks"),
    ];
    for (key, value, allowed) in bad {
        let error = in_flag(key, value);
        assert!(error.contains(value) && error.contains(allowed), "{error}");
    }
    assert!(in_file("web.trusted_proxies = [7]").contains("a list that holds the integer 7"));
    let flags = [
        ("web.allowed_hosts", "pictures.example.com,*.example.org"),
        ("web.allowed_origins", "https://app.example.com:8443,http://[::1]:3000,http://localhost"),
        ("web.trusted_proxies", "[\"127.0.0.1\", \"fd00::/8\"]"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let web = Config::load(None, std::iter::empty(), &flags).unwrap().config.web;
    assert_eq!(web.allowed_hosts, ["pictures.example.com", "*.example.org"]);
    assert_eq!(web.allowed_origins.len(), 3);
    assert_eq!(web.trusted_proxies, ["127.0.0.1", "fd00::/8"]);
}

#[test]
fn values_that_do_not_fit_together_are_both_named() {
    assert_eq!(
        refusal("scheduler.suspect_after_ms = 20000", &[], &[("scheduler.lease_ms", "20000")]),
        "`scheduler.suspect_after_ms` = 20000 (file FILE) must be less than `scheduler.lease_ms` = 20000 \
         (flag); change one of the two"
    );
    assert_eq!(
        in_flag("retry.network.base_ms", "10001"),
        "`retry.network.base_ms` = 10001 (flag) must be at most `retry.network.cap_ms` = 10000 \
         (default); change one of the two"
    );
    for (key, value) in [
        ("scheduler.accept_timeout_ms", "20000"),
        ("scheduler.closed_grace_ms", "20000"),
        ("scheduler.poll_ms", "3000"),
        ("client.ping_ms", "3000"),
    ] {
        assert!(in_flag(key, value).contains("must be less than"), "{key}");
    }
    assert_eq!(
        in_file("[models.m]\npath = \"/m\"\nqueue = \"big\""),
        "`models.m.queue` in file FILE is \"big\", but must be one of the queues cpu, gpu; or add its [queues.NAME]"
    );
}

#[test]
fn a_model_without_a_path_is_refused() {
    assert_eq!(
        in_file("[models.m]"),
        "`models.m.path` is missing, though file FILE begins its section; \
         add for example: models.m.path = \"/srv/models/my-lama.pt\""
    );
    assert!(
        in_env("LAMAGRID__MODELS__M__PAD_MODULO", "4")
            .ends_with("add for example: LAMAGRID__MODELS__M__PATH=/srv/models/my-lama.pt")
    );
    let kept = [("models.lama.pin".to_owned(), "true".to_owned())];
    assert!(Config::load(None, std::iter::empty(), &kept).unwrap().config.models["lama"].pin);
}

#[test]
fn the_keys_of_a_model_that_do_not_fit_together_are_refused() {
    let sum = "0".repeat(64);
    let file = |keys: &str| in_file(&format!("[models.m]\npath = \"/m.pt\"\n{keys}"));
    for (key, keys, allowed) in [
        ("inputs", "inputs = [\"image\"]", "must be a list of arguments that holds mask once"),
        ("inputs", "inputs = [\"mask\"]", "must be a list of arguments that holds mask once"),
        ("inputs", "inputs = [\"image\", \"mask\", \"image\"]", "image or erased or both once"),
        ("inputs", "inputs = [\"image+\"]", "each image, erased, mask or several joined by +"),
        ("inputs", "inputs = \"image\"", "must be a list of strings"),
        ("image_range", "image_range = \"-1..0\"", "one of 0..1, -1..1, 0..255"),
        ("mask_range", "mask_range = \"1..1\"", "two different numbers, outside the hole and in it"),
        ("mask_range", "mask_range = \"0..inf\"", "two different numbers"),
        ("mask_range", "mask_range = \"0.5..-0.5\"", "two whole numbers, because mask_type is int64"),
        (
            "mask_range",
            "mask_range = \"0..255\"\nmask_type = \"bool\"",
            "0..1 or 1..0, because mask_type is bool",
        ),
        ("mask_type", "inputs = [\"mask+erased\"]\nmask_type = \"bool\"", "left out or float"),
        ("mask_type", "mask_type = \"int8\"", "one of int64, float, bool"),
        ("colour", "colour = \"rbg\"", "one of rgb, bgr"),
        ("pin", "pin = 1", "must be true or false; for example: models.m.pin = false"),
        ("fixed_size", "fixed_size = 9000", "between 0 and 8192"),
        ("pad_modulo", "fixed_size = 512\npad_modulo = 8", "left out, because fixed_size fits every picture"),
        ("blend", "blend = \"mask\"", "one of hole, all"),
        ("sha256", "sha256 = \"12\"", "64 hexadecimal digits"),
        ("url", "url = \"ftp://h/m.pt\"", "the URL of a file"),
        ("sha256", "url = \"https://h/m.pt\"", "must be the SHA-256 sum of the file, because url is set"),
    ] {
        let told = file(keys);
        assert!(told.contains(&format!("`models.m.{key}` in ")) && told.contains(allowed), "{keys}: {told}");
    }
    for (name, keys, allowed) in [
        (
            "lama",
            "colour = \"bgr\"".to_owned(),
            "`models.lama.colour` in file FILE is \"bgr\", but must be left out",
        ),
        ("lama", format!("sha256 = \"{sum}\""), "`models.lama.sha256`"),
        ("manga", "path = \"/m.pt\"".to_owned(), "MANGA_LINE_MODEL_URL"),
        ("manga", format!("url = \"https://h/m.pt\"\nsha256 = \"{sum}\""), "`models.manga.url`"),
    ] {
        let told = in_file(&format!("[models.{name}]\n{keys}"));
        assert!(told.contains(allowed), "{told}");
    }
    assert!(
        in_env("LAMAGRID__MODELS__M__PIN", "yes").contains("is the text \"yes\", but must be true or false")
    );
}

#[test]
fn a_requirement_that_no_node_can_meet_and_a_spill_in_a_circle_are_refused() {
    assert_eq!(
        in_file("[queues.gpu]\nrequires = { memory_gib = 20000 }"),
        "`queues.gpu.requires.memory_gib` in file FILE is 20000, but must be between 0 and 10240"
    );
    assert_eq!(
        in_file("[queues.gpu.requires]\ndevice = \"tpu\""),
        "`queues.gpu.requires.device` in file FILE is \"tpu\", but must be one of \"\", any, gpu, cpu"
    );
    assert!(in_file("[queues.gpu.requires]\nlabels = [\"a b\"]").contains("`queues.gpu.requires.labels`"));
    assert_eq!(
        in_file("[queues.gpu]\nrequires = \"gpu\""),
        "`queues.gpu.requires` in file FILE is the string \"gpu\", but must be a table; \
         for example: [queues.gpu.requires]"
    );
    assert_eq!(
        in_file("[queues.gpu]\nrequire = { device = \"gpu\" }"),
        "unknown key `queues.gpu.require` in file FILE; did you mean `queues.gpu.requires`?"
    );
    assert_eq!(
        in_file("[queues.gpu]\nspill_to = \"big\""),
        "`queues.gpu.spill_to` in file FILE is \"big\", but must be one of the queues cpu, gpu; \
         or add its [queues.NAME]"
    );
    assert_eq!(
        in_file(
            "[queues.gpu]\nspill_to = \"cpu\"\n[queues.cpu]\nspill_to = \"big\"\n[queues.big]\nspill_to = \"gpu\""
        ),
        "`queues.big.spill_to` in file FILE is \"gpu\", but must be a queue whose spill does not go round in a \
         circle (big -> gpu -> cpu -> big)"
    );
    assert!(in_file("[queues.gpu]\nspill_to = \"gpu\"").contains("(gpu -> gpu)"));
    assert!(in_file("[models.lama.need]\ndevice = \"tpu\"").contains("one of auto, any, gpu, cpu"));
}

#[test]
fn a_file_that_is_missing_or_not_toml_is_refused() {
    let missing = PathBuf::from("/nowhere/c.toml");
    let error = Config::load(Some(&missing), std::iter::empty(), &[]).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }));
    assert!(error.to_string().contains("`/nowhere/c.toml` (from the command line)"), "{error}");
    let env = [("LAMAGRID_CONFIG".to_owned(), "/nowhere/d.toml".to_owned())];
    let error = Config::load(None, env.into_iter(), &[]).unwrap_err();
    assert!(error.to_string().contains("`/nowhere/d.toml` (from LAMAGRID_CONFIG)"), "{error}");
    let text = in_file("[node]\nslots = 1\nslots = 2");
    assert!(text.contains("`FILE` is not valid TOML: line 3: ") && !text.contains('\n'), "{text}");
}
