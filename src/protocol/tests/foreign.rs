//! Tests that texts and numbers from other processes are bounded when they are read (R7.1).

#![expect(clippy::unwrap_used, reason = "a failed test panics at the line that failed")]

use lamagrid_domain::{
    BlobForm, BlobMeta, Failure, FailureKind, Hash, LeaseToken, MAX_MESSAGE_CHARS, ModelOffer, NodeInfo,
    NodeKind, Role, SessionId, Stages,
};
use lamagrid_protocol::message::{
    Action, AttemptOutcome, ControlRequest, Delivery, Hello, Message, ResultRequest,
};

fn delivered(outcome: AttemptOutcome) -> AttemptOutcome {
    let (session, token) = (SessionId::from_bytes([1; 16]), LeaseToken::from_bytes([2; 16]));
    let delivery = Delivery { session, token, outcome, credit: 1, loaded: Vec::new(), memory: None };
    let frame = ResultRequest::from(delivery).to_frame(Vec::new()).unwrap();
    let ResultRequest::Delivery(read) = ResultRequest::from_frame(&frame).unwrap() else {
        panic!("no delivery")
    };
    read.outcome
}

#[test]
fn a_failure_is_truncated_and_free_of_control_characters() {
    let message = format!("first\nsecond\x1b]0;owned\x07{}", "x".repeat(10_000));
    let sent = Failure { kind: FailureKind::Inference, message };
    let AttemptOutcome::Failed { failure } = delivered(AttemptOutcome::Failed { failure: sent.clone() })
    else {
        panic!("no failure")
    };
    assert!(failure.message.starts_with("first\nsecond\u{fffd}]0;owned\u{fffd}xxx"), "{}", failure.message);
    assert_eq!(failure.message.chars().count(), MAX_MESSAGE_CHARS);
    assert_eq!(sent.bounded(), failure);
}

#[test]
fn times_become_finite_and_bounded() {
    for (sent, kept) in [
        (1.5, 1.5),
        (f64::NAN, 0.0),
        (f64::INFINITY, 366.0 * 86_400_000.0),
        (f64::NEG_INFINITY, 0.0),
        (-1.0, 0.0),
        (1e300, 366.0 * 86_400_000.0),
    ] {
        let stages = Stages { infer_ms: sent, decode_ms: sent, total_ms: sent, ..Stages::default() };
        let result =
            BlobMeta { role: Role::Result, len: 0, hash: Hash::new([0; 32]), form: BlobForm::Encoded };
        let AttemptOutcome::Done { stages, .. } =
            delivered(AttemptOutcome::Done { result, inline: false, stages })
        else {
            panic!("no result")
        };
        let kept = Stages { infer_ms: kept, decode_ms: kept, total_ms: kept, ..Stages::default() };
        assert_eq!(stages, kept, "{sent}");
    }
}

/// A node of an earlier version, or a hostile one, may write anything.
#[test]
fn a_node_description_is_truncated() {
    let device = format!("cuda:0\x1b[2J{}", "d".repeat(50_000));
    let models = vec![ModelOffer {
        model: "lama".parse().unwrap(),
        queue: "gpu".parse().unwrap(),
        loaded: false,
        present: true,
        routed: false,
        memory_bytes: 0,
        pinned: false,
    }];
    let info = NodeInfo {
        name: "n".parse().unwrap(),
        kind: NodeKind::Echo,
        version: "0".into(),
        device: "DEVICE".into(),
        gpu: None,
        memory_bytes: u64::MAX,
        cores: u32::MAX,
        models,
        pid: 1,
        withheld: Vec::new(),
        labels: Vec::new(),
        device_id: None,
        host_memory_bytes: 0,
        cpu_features: Vec::new(),
    };
    let hello = Hello {
        info,
        slots: 1,
        overlap: 0,
        running: Vec::new(),
        held: Vec::new(),
        boot: None,
        actions: Action::BASIC.to_vec(),
    };
    let mut frame = ControlRequest::from(hello).to_frame(Vec::new()).unwrap();
    // The types here cannot write this.
    let short = b"\xa6DEVICE";
    let at = frame.header.windows(short.len()).position(|part| part == short).unwrap();
    let mut header = frame.header[..at].to_vec();
    header.push(0xda);
    header.extend(u16::try_from(device.len()).unwrap().to_be_bytes());
    header.extend(device.as_bytes());
    header.extend(&frame.header[at + short.len()..]);
    frame.header = header.into();
    let ControlRequest::Hello(read) = ControlRequest::from_frame(&frame).unwrap() else { panic!("no hello") };
    assert_eq!(read.info.device.as_str().chars().count(), 96);
    assert!(read.info.device.as_str().starts_with("cuda:0\u{fffd}[2Jddd"));
}
