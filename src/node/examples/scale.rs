//! Runs many nodes in one process, for `bench/scale.py`: real sessions without a model. Ends when its stdin closes.
//!
//! usage: scale DATA_DIR NODES MODEL

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed measurement panics at the line that failed"
)]

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use lamagrid_domain::{BlobForm, ModelName, ModelOffer, NodeInfo, NodeKind, Stages};
use lamagrid_session::{NextJob, Output, Session, SessionOptions};
use lamagrid_transport::Endpoints;

/// Stack size of a node's thread; small, because there are many threads and they mostly wait.
const STACK_BYTES: usize = 128 * 1024;

fn info(number: usize, model: &ModelName) -> NodeInfo {
    NodeInfo {
        name: format!("scale-{number}").parse().unwrap(),
        kind: NodeKind::Echo,
        version: env!("CARGO_PKG_VERSION").into(),
        device: "cpu".into(),
        gpu: None,
        memory_bytes: 1 << 30,
        cores: 1,
        models: vec![ModelOffer {
            model: model.clone(),
            queue: model.default_queue(),
            loaded: true,
            present: true,
            routed: false,
            memory_bytes: 0,
            pinned: false,
        }],
        pid: std::process::id(),
        withheld: Vec::new(),
        labels: Vec::new(),
        device_id: None,
        host_memory_bytes: 0,
        cpu_features: Vec::new(),
    }
}

/// Answers each task with four bytes.
fn work(session: &Session) {
    loop {
        match session.next_job(Duration::from_secs(60)) {
            NextJob::Job(job) => {
                let _ = job.enter_slot();
                let form = BlobForm::Raw { height: 1, width: 1, channels: 4 };
                let output = Output { bytes: Bytes::from_static(b"done"), form, stages: Stages::default() };
                job.finish(Ok(output));
            }
            NextJob::Idle => {}
            NextJob::Closed(failure) => {
                if let Some(failure) = failure {
                    println!("a node was refused: {failure}");
                }
                return;
            }
        }
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [data_dir, nodes, model] = &words[..] else { panic!("usage: scale DATA_DIR NODES MODEL") };
    let (count, model): (usize, ModelName) = (nodes.parse().unwrap(), model.parse().unwrap());
    // Each node needs several file descriptors.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted).unwrap();
    let endpoints = Endpoints::found_by(lamagrid_config::socket_finder(Path::new(data_dir)).unwrap());
    for number in 0..count {
        let (endpoints, info) = (endpoints.clone(), info(number, &model));
        std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let options = SessionOptions {
                    endpoints,
                    bundle: None,
                    info,
                    slots: 1,
                    overlap: 0,
                    sampler: None,
                    adjust: None,
                };
                work(&Session::start(options).unwrap());
            })
            .unwrap();
        // Stagger the starts: real hosts do not start in the same millisecond.
        std::thread::sleep(Duration::from_millis(2));
    }
    println!("started {count}");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}
