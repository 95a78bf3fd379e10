//! The cost of routing one task, for `bench/tasks.py`: its need and its queue, then the node that gets it.
//!
//! usage: routing QUEUES NODES
//!
//! The core is compiled into this program as the scheduler has it. The tasks wait in paused queues, and each decision is
//! made again and again as if the queues were open, so that nothing changes between two of them. Prints nanoseconds:
//!
//! | key | what |
//! | --- | --- |
//! | `queue_ns` | the need of a new task, and its queue |
//! | `busy_ns` | no node for it, since all are busy |
//! | `idle_ns` | the best node for it, of idle ones |
//! | `next_ns` | the next task for that node, of those that wait |

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed measurement panics at the line that failed"
)]

#[path = "../src/core/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the service uses the rest")]
mod core;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Duration, Instant};

use lamagrid_config::Config;
use lamagrid_domain::{
    BlobForm, BlobMeta, Durability, Hash, ModelName, ModelOffer, NodeInfo, NodeKind, OutputForm, Params,
    PictureSize, QueueName, Role, Scalar, SessionId, TaskId, TaskSpec,
};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::message::{Action, ControlReply, Hello, PauseQueue, Ready, Submit};
use lamagrid_transport::Endpoints;

use crate::core::{Authority, Core, Effect, Input, Now, Recovered, RouteTable, Settings};

const NOW: Now = Now { mono_ms: 1_000_000, wall_ms: 1_800_000_000_000 };
const MODELS: [&str; 4] = ["lama", "manga", "sd1.5", "cv2"];
const GIB: u64 = 1 << 30;
const TASKS: u8 = 64;
/// The best of several rounds counts: other programs of the host disturb the rest.
const ROUNDS: usize = 20;
const ROUND: Duration = Duration::from_millis(20);

/// Queues as an operator writes them: one for GPUs, one for CPUs, the others for GPUs with more and more memory, half of
/// them with a label. With one queue it requires nothing.
fn configuration(queues: usize) -> Config {
    let mut text = String::new();
    for number in 0..queues.saturating_sub(2) {
        let memory_gib = 2 + 2 * number;
        let labels = if number % 2 == 0 { "[]" } else { "[\"lab\"]" };
        let requires = format!("{{ device = \"gpu\", memory_gib = {memory_gib}, labels = {labels} }}");
        writeln!(text, "[queues.q{number}]\nrequires = {requires}").unwrap();
    }
    if queues > 1 {
        text.push_str("[queues.gpu]\nrequires = { device = \"gpu\" }\nspill_to = \"cpu\"\n");
        text.push_str("[queues.cpu]\nrequires = { device = \"cpu\" }\n");
    }
    let path = std::env::temp_dir().join(format!("lamagrid-routing-{}.toml", std::process::id()));
    std::fs::write(&path, text).unwrap();
    let config = Config::load(Some(&path), std::iter::empty(), &[]).unwrap().config;
    std::fs::remove_file(&path).unwrap();
    config
}

fn scheduler(config: &Config) -> Core {
    let queues = config.queues.keys().map(|name| (name.parse().unwrap(), 1_000_000)).collect();
    let settings = Settings {
        scheduler: config.scheduler.clone(),
        queues,
        routes: RouteTable::of(config),
        retry: config.retry.clone(),
        limits: config.limits.clone(),
        max_tombstones: core::MAX_TOMBSTONES,
        max_ended: core::MAX_ENDED,
        clock_grace_ms: core::CLOCK_GRACE_MS,
        endpoints: Endpoints::new("/grid"),
        spool: "/spool".into(),
    };
    let mut drawn = 0_u128;
    let entropy = move || {
        drawn += 1;
        drawn.to_be_bytes()
    };
    Core::new(settings, Box::new(entropy), NOW, Recovered::default())
}

/// A node with a model in memory. Every eighth has no GPU, the others have one of 8 to 56 GiB; every third has the label.
fn info(number: usize) -> NodeInfo {
    let offer = |name: &&str| {
        let model: ModelName = name.parse().unwrap();
        let (queue, loaded) = (model.default_queue(), *name == MODELS[number % MODELS.len()]);
        ModelOffer { model, queue, loaded, present: true, routed: true, memory_bytes: GIB, pinned: false }
    };
    NodeInfo {
        name: format!("node-{number}").parse().unwrap(),
        kind: NodeKind::Echo,
        version: env!("CARGO_PKG_VERSION").into(),
        device: if number % 8 == 7 { "cpu" } else { "cuda:0" }.into(),
        gpu: None,
        memory_bytes: (1 + number as u64 % 7) * 8 * GIB,
        cores: 1,
        models: MODELS.iter().map(offer).collect(),
        pid: 1,
        withheld: Vec::new(),
        labels: if number.is_multiple_of(3) { vec!["lab".into()] } else { Vec::new() },
        device_id: None,
        host_memory_bytes: 0,
        cpu_features: Vec::new(),
    }
}

/// Registers a node. It is busy until the returned input has been handled.
fn join(core: &mut Core, number: usize) -> Input {
    let info = info(number);
    let peer = PeerId::from_text(info.name.as_str());
    let loaded = info.models.iter().filter(|offer| offer.loaded).map(|offer| offer.model.clone()).collect();
    let (running, held, actions) = (Vec::new(), Vec::new(), Action::BASIC.to_vec());
    let hello = Hello { info, slots: 1, overlap: 0, running, held, boot: None, actions };
    let hello = Input::Control { peer: peer.clone(), request: hello.into(), queues: Vec::new() };
    let welcome = core.handle(NOW, hello).into_iter().find_map(|effect| match effect {
        Effect::Control { reply: ControlReply::Welcome(welcome), .. } => Some(welcome),
        _ => None,
    });
    let welcome = welcome.unwrap();
    let session = welcome.session;
    for index in 0..welcome.lanes.len() {
        core.handle(NOW, Input::LaneConnected { session, index });
    }
    Input::Result { peer, request: Ready { session, credit: 1, loaded }.into(), inline: None }
}

/// A task whose queue the scheduler chooses, with a picture of one to eight megapixels.
fn task(number: u8) -> TaskSpec {
    let model: ModelName = MODELS[usize::from(number) % MODELS.len()].parse().unwrap();
    let original = BTreeMap::from([("hd_strategy".to_owned(), Scalar::Text("Original".to_owned()))]);
    let (role, form) = (Role::Image, BlobForm::Encoded);
    TaskSpec {
        id: TaskId::drawn_at(NOW.wall_ms, [number; 16]),
        owner: "alice".parse().unwrap(),
        client: None,
        queue: model.default_queue(),
        model,
        params: Params::try_from(original).unwrap(),
        priority: 0,
        durability: Durability::Process,
        deadline_wall_ms: None,
        wait_limit_ms: None,
        run_limit_ms: None,
        replay_of: None,
        output: OutputForm::Raw,
        blobs: vec![BlobMeta { role, len: 9, hash: Hash::new([number; 32]), form }],
        routed: true,
        picture: Some(PictureSize { height: 1_000, width: 1_000 * (1 + u32::from(number) % 8) }),
        no_node_wait_ms: None,
    }
}

/// The nanoseconds that one call takes, over all tasks.
fn time(mut call: impl FnMut(usize)) -> f64 {
    let mut round = || {
        let (began, mut calls) = (Instant::now(), 0_usize);
        while began.elapsed() < ROUND {
            (0..usize::from(TASKS)).for_each(&mut call);
            calls += usize::from(TASKS);
        }
        began.elapsed().as_nanos() as f64 / calls as f64
    };
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}

fn main() {
    let words: Vec<usize> = std::env::args().skip(1).map(|word| word.parse().unwrap()).collect();
    let [queues, nodes] = words[..] else { panic!("usage: routing QUEUES NODES") };
    let config = configuration(queues);
    let (mut core, open) = (scheduler(&config), scheduler(&config));
    let client = PeerId::from_text("client");
    for queue in config.queues.keys() {
        let queue: QueueName = queue.parse().unwrap();
        let request = PauseQueue { queue, paused: true, by: None }.into();
        core.handle(NOW, Input::Admin { peer: client.clone(), request });
    }
    let ready: Vec<Input> = (0..nodes).map(|number| join(&mut core, number)).collect();
    let mut specs: Vec<TaskSpec> = (0..TASKS).map(task).collect();
    for spec in &specs {
        let request = Submit { seq: 1, spec: spec.clone(), inline: Vec::new(), follow: false }.into();
        let (peer, inline, authority) = (client.clone(), Vec::new(), Authority::Administrator);
        core.handle(NOW, Input::Client { peer, request, inline, authority });
    }
    assert_eq!(core.unfinished(), specs.len());
    let queue_ns = time(|n| core.route(black_box(&mut specs[n])).unwrap());
    let as_open = |core: &Core| {
        let mut placement = core.placement();
        placement.paused = open.placement().paused;
        let chosen: Vec<Option<SessionId>> = specs.iter().map(|spec| placement.best_for(spec.id)).collect();
        let node_ns = time(|n| {
            black_box(placement.best_for(black_box(specs[n].id)));
        });
        let next_ns = time(|n| {
            black_box(chosen[n].and_then(|session| placement.next_for(session)));
        });
        (chosen.iter().flatten().count(), node_ns, next_ns)
    };
    let (placed, busy_ns, _) = as_open(&core);
    assert_eq!(placed, 0, "a busy node was chosen");
    ready.into_iter().for_each(|input| drop(core.handle(NOW, input)));
    let (placed, idle_ns, next_ns) = as_open(&core);
    assert!(placed > 0, "no node can do any of the tasks");
    println!(
        "{{\"queue_ns\":{queue_ns:.0},\"busy_ns\":{busy_ns:.0},\"idle_ns\":{idle_ns:.0},\"next_ns\":{next_ns:.0}}}"
    );
}
