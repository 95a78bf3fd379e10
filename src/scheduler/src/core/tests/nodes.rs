//! Registration, assignments, accepts and deliveries.

use lamagrid_domain::{FailureKind, WithheldModel};
use lamagrid_protocol::message::{ClientReply, ControlReply, GetGridStatus, Message};

use super::grid::*;
use crate::core::{Effect, Input, StoredTask};

#[test]
fn a_task_goes_its_whole_way() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    let table: [(Input, &[&str]); 4] = [
        (
            submit(1),
            &[
                "insert T1",
                "c: accepted T1 behind 0",
                "assign T1 #2 to n, attempt 1",
                "lane #1/0: assign T1 #2",
                "c: progress T1 processing 0/0",
            ],
        ),
        (accept("n", 1, 2), &["n: proceed #2"]),
        (
            done("n", 1, 2, 2),
            &["end T1 completed", "c: outcome T1 completed with bytes", "finished T1", "n: stored #2 true"],
        ),
        (query(1), &["c: status T1 completed"]),
    ];
    grid.check_all(table);
}

#[test]
fn an_accept_that_comes_after_the_result_is_answered_abandon() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.core.handle(crate::core::Now { mono_ms: 5_000, wall_ms: WALL_MS }, submit(1));
    let end = ["end T1 completed", "c: outcome T1 completed with bytes", "finished T1", "n: stored #2 true"];
    grid.check_all([
        (done("n", 1, 2, 2), end.as_slice()),
        (accept("n", 1, 2), &["n: abandon #2"]),
        (done("n", 1, 2, 2), &["n: stored #2 true"]), // on record already
        (accept("n", 9, 2), &["n: gone #9"]),
    ]);
}

#[test]
fn a_delivery_without_the_lease_changes_nothing() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.join("m", "manga", 2, 1);
    grid.core.handle(crate::core::Now { mono_ms: 5_000, wall_ms: WALL_MS }, submit(1));
    grid.check_all([
        (done("m", 2, 3, 1), ["m: stored #3 false"].as_slice()),
        (accept("m", 2, 3), &["m: abandon #3"]),
        (accept("n", 1, 3), &["n: proceed #3"]),
        (done("m", 2, 3, 1), &["m: stored #3 false"]),
        (query(1), &["c: status T1 processing"]),
    ]);
}

/// X5: no prefetch.
#[test]
fn nothing_is_assigned_before_lanes_and_credit() {
    let mut grid = Grid::new();
    let assigned =
        ["assign T1 #2 to n, attempt 1", "lane #1/0: assign T1 #2", "c: progress T1 processing 0/0"];
    grid.check_all([
        (submit(1), ["insert T1", "c: accepted T1 behind 0"].as_slice()),
        (hello("n", 1, "lama", 1, &[], &[]), &["n: welcome #1 lanes [gpu] abandoned []"]),
        (ready("n", 1, 1), &[]),
        (lane_connected(1), &assigned),
    ]);
    // No second task without a second credit; a repeated or older credit does not count.
    grid.check_all([
        (submit(2), ["insert T2", "c: accepted T2 behind 0"].as_slice()),
        (ready("n", 1, 1), &[]),
        (ready("n", 1, 0), &[]),
        (accept("n", 1, 2), &["n: proceed #2"]),
    ]);
}

/// R1.2: a task goes down the lane of its own queue.
#[test]
fn one_credit_serves_two_lanes_once() {
    let mut grid = Grid::new();
    let both = info("n", 1, &[("gpu", "lama"), ("cpu", "cv2")]);
    let second_lane =
        Input::LaneConnected { session: lamagrid_domain::SessionId::from_bytes([1; 16]), index: 1 };
    let mut on_cpu = with_model(2, "cv2");
    on_cpu.queue = "cpu".parse().unwrap();
    grid.check_all([
        (hello_of(both, 1, &[], &[]), ["n: welcome #1 lanes [cpu gpu] abandoned []"].as_slice()),
        (lane_connected(1), &[]),
        (second_lane, &[]),
        (ready("n", 1, 1), &[]),
        (
            submit_spec(on_cpu),
            &[
                "insert T2",
                "c: accepted T2 behind 0",
                "assign T2 #2 to n, attempt 1",
                "lane #1/0: assign T2 #2",
                "c: progress T2 processing 0/0",
            ],
        ),
        (submit(1), &["insert T1", "c: accepted T1 behind 0"]),
        (
            done("n", 1, 2, 2),
            &[
                "end T2 completed",
                "c: outcome T2 completed with bytes",
                "finished T2",
                "n: stored #2 true",
                "assign T1 #3 to n, attempt 1",
                "lane #1/1: assign T1 #3",
                "c: progress T1 processing 0/0",
            ],
        ),
    ]);
}

/// P2.1, P2.2.
#[test]
fn higher_priority_goes_first_then_older() {
    let mut grid = Grid::new();
    let with_priority = |n, priority| submit_spec(lamagrid_domain::TaskSpec { priority, ..spec(n) });
    grid.check_all([
        (with_priority(1, -1), ["insert T1", "c: accepted T1 behind 0"].as_slice()),
        (with_priority(2, 5), &["insert T2", "c: accepted T2 behind 0"]),
        (with_priority(3, 5), &["insert T3", "c: accepted T3 behind 1", "alarm gpu 100"]),
        (hello("n", 1, "lama", 2, &[], &[]), &["n: welcome #1 lanes [gpu] abandoned []"]),
        (lane_connected(1), &[]),
        (
            ready("n", 1, 2),
            &[
                "assign T2 #2 to n, attempt 1",
                "lane #1/0: assign T2 #2",
                "c: progress T2 processing 0/0",
                "assign T3 #3 to n, attempt 1",
                "lane #1/0: assign T3 #3",
                "c: progress T3 processing 0/0",
                "alarm gpu 0",
            ],
        ),
    ]);
}

#[test]
fn a_second_node_of_the_same_name_is_turned_away_while_the_first_lives() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.check(hello("n", 2, "lama", 1, &[], &[]), &["n: rejected disconnected"]);
    // The same process may come again at once, another one once the first is suspect.
    grid.check(hello("n", 1, "lama", 1, &[], &[]), &["close #1", "n: welcome #2 lanes [gpu] abandoned []"]);
    grid.pass(3_000);
    grid.check(hello("n", 2, "lama", 1, &[], &[]), &["close #2", "n: welcome #3 lanes [gpu] abandoned []"]);
}

/// R7.1: what another process took over says nothing about the tasks that the first one had.
#[test]
fn a_takeover_of_a_suspect_counts_no_crash() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.pass_in([submit(1), accept("n", 1, 2)]);
    grid.pass(3_000);
    grid.check(
        hello("n", 2, "lama", 1, &[], &[]),
        &[
            "close #1",
            "requeue T1, 0 crashes, 0 failures",
            "c: progress T1 queued 0/0",
            "n: welcome #3 lanes [gpu] abandoned []",
        ],
    );
}

#[test]
fn a_node_that_does_not_say_which_process_it_is_waits_for_its_predecessors_end() {
    let mut grid = Grid::new();
    let hello = || hello_without_boot(info("n", 1, &[("gpu", "lama")]));
    grid.check(hello(), &["n: welcome #1 lanes [gpu] abandoned []"]);
    grid.check(hello(), &["n: rejected disconnected"]);
    grid.pass(3_000);
    grid.check(hello(), &["close #1", "n: welcome #2 lanes [gpu] abandoned []"]);
}

/// R7.1: a refusal says nothing about the other node.
#[test]
fn a_refusal_does_not_tell_the_process_id_of_another_node() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    let effects = grid.handle(hello("n", 77_777, "lama", 1, &[], &[]));
    let Effect::Control { reply: ControlReply::Rejected(rejected), .. } = &effects[0] else {
        panic!("no refusal")
    };
    assert_eq!(
        rejected.failure.message,
        "a node named n is connected already: give this one another name with --name"
    );
}

/// R7.1: identity is certificate and name.
#[test]
fn a_node_of_another_certificate_is_another_node_whatever_it_calls_itself() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.pass_in([submit(1), accept("n", 1, 2)]);
    // It knows everything about the other one: its name, its session, its attempt.
    grid.check_all([
        (
            from_certificate("gpu", hello("n", 1, "lama", 1, &[2], &[])),
            ["gpu/: welcome #3 lanes [gpu] abandoned [#2]"].as_slice(),
        ),
        (from_certificate("gpu", poll("n", 1, &[], 0)), &["gpu/: gone #1"]),
        (from_certificate("gpu", done("n", 1, 2, 1)), &["gpu/: gone #1"]),
        (from_certificate("gpu", accept("n", 1, 2)), &["gpu/: gone #1"]),
        (from_certificate("gpu", ready("n", 1, 9)), &["gpu/: gone #1"]),
        (from_certificate("gpu", goodbye("n", 1)), &["gpu/: farewell"]),
        (query(1), &["c: status T1 processing"]),
    ]);
    // While the first one is away, its work is kept for it alone.
    grid.check(closed("n"), &["close #1"]);
    grid.check_all([
        (
            from_certificate("gpu", hello("n", 2, "lama", 1, &[2], &[])),
            ["gpu/: rejected disconnected"].as_slice(),
        ),
        (from_certificate("gpu", goodbye("n", 3)), &["close #3", "gpu/: farewell"]),
        (
            from_certificate("gpu", hello("n", 2, "lama", 1, &[2], &[])),
            &["gpu/: welcome #4 lanes [gpu] abandoned [#2]"],
        ),
        (hello("n", 1, "lama", 1, &[2], &[]), &["n: welcome #5 lanes [gpu] abandoned []"]),
        (
            done("n", 5, 2, 0),
            &["end T1 completed", "c: outcome T1 completed with bytes", "finished T1", "n: stored #2 true"],
        ),
    ]);
}

/// R7.1: also after a restart, and what one node fails is not held against the other.
#[test]
fn attempts_of_a_certificates_node_are_kept_for_it_over_a_restart() {
    let of = |n: u8, node: &str| {
        let mut task = super::lost::stored(n, Some(100 + n));
        let StoredTask::Live { assigned, .. } = &mut task else { panic!("it is live") };
        assigned.as_mut().unwrap().1 = node.parse().unwrap();
        task
    };
    let mut grid = Grid::recovered(vec![of(1, "n"), of(2, "gpu/n")]);
    grid.check_all([
        (
            from_certificate("gpu", hello("n", 1, "lama", 2, &[101, 102], &[])),
            ["gpu/: welcome #1 lanes [gpu] abandoned [#101]"].as_slice(),
        ),
        (hello("n", 1, "lama", 1, &[101], &[]), &["n: welcome #2 lanes [gpu] abandoned []"]),
    ]);
}

/// R2.2: a node gets lanes of the queues it may serve, and of no others.
#[test]
fn a_queue_that_is_not_configured_is_refused() {
    let mut grid = Grid::new();
    let strange = info("n", 1, &[("gpu", "lama"), ("tpu", "lama")]);
    grid.check(hello_of(strange, 1, &[], &[]), &["n: welcome #1 lanes [gpu] abandoned [] without tpu"]);
    let none = info("m", 1, &[]);
    grid.check(hello_of(none, 1, &[], &[]), &["m: rejected invalid_input"]);
    grid.check(hello("m", 1, "lama", 0, &[], &[]), &["m: rejected invalid_input"]);
    grid.check(hello("m", 1, "lama", 65, &[], &[]), &["m: rejected invalid_input"]);
}

/// R2.2: its reasons are seen, and it registers again when one of its models can be used.
#[test]
fn a_node_that_withholds_all_its_models_is_welcomed_without_lanes() {
    let mut grid = Grid::new();
    let mut info = info("n", 1, &[]);
    info.withheld = vec![WithheldModel { model: "lama".parse().unwrap(), reason: "it is cut off".into() }];
    grid.check(hello_of(info, 1, &[], &[]), &["n: welcome #1 lanes [] abandoned []"]);
    grid.check(hello("n", 1, "lama", 1, &[], &[]), &["close #1", "n: welcome #2 lanes [gpu] abandoned []"]);
}

#[test]
fn the_failure_of_a_task_without_a_node_names_the_reasons_of_three_nodes_that_withhold_its_model() {
    let mut grid = Grid::new();
    let reason =
        format!("{}; fetch it again with: lamagrid model pull lama", "its file is damaged ".repeat(10));
    assert!(reason.len() > 200);
    for n in 1..=5 {
        let mut info = info(&format!("n{n}"), 1, &[("gpu", "manga")]);
        info.withheld =
            vec![WithheldModel { model: "lama".parse().unwrap(), reason: reason.as_str().into() }];
        grid.handle(hello_of(info, 1, &[], &[]));
    }
    grid.pass_in([submit(1), Input::Tick]);
    for _ in 0..31 {
        grid.pass(1_000);
        grid.pass_in((1..=5).map(heartbeat));
        grid.handle(Input::Tick);
    }
    let failure = grid.core.retention.get(id(1)).unwrap().failure.clone().unwrap();
    assert_eq!(failure.kind, FailureKind::UnknownModel);
    assert_eq!(failure.message.matches(&reason).count(), 3, "{failure}");
    assert!(failure.message.ends_with("; 2 more nodes do not offer it"), "{failure}");
}

/// An overview of more nodes than a message holds comes in pages.
#[test]
fn every_node_is_in_an_overview_however_many_there_are() {
    let mut grid = Grid::new();
    for n in 1..=200 {
        grid.join(&format!("node-{n}"), "lama", n, 1);
    }
    let (mut names, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let mut effects = grid.handle(client("c", GetGridStatus { seq: 0, after }));
        let Effect::Client { reply: ClientReply::GridStatus(page), .. } = effects.remove(0) else {
            panic!("no overview")
        };
        assert!(ClientReply::from(page.clone()).to_frame(Vec::new()).is_ok());
        names.extend(page.nodes.into_iter().map(|node| node.info.name.to_string()));
        pages += 1;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!((names.len(), pages > 1), (200, true), "{pages} pages");
}

/// The largest nodes that are let in: every page fits into a message, and none is left out.
#[test]
fn pages_of_the_largest_nodes_fit_into_messages() {
    let mut grid = Grid::new();
    for n in 1..=5 {
        let models: Vec<_> = (0..256).map(|m| format!("{m:0>96}")).collect();
        let offers: Vec<_> = models.iter().map(|model| ("gpu", model.as_str())).collect();
        let mut info = info(&format!("{n:0>64}"), n, &offers);
        info.device = "d".repeat(100_000).into();
        info.gpu = Some("\u{1f5bc}".repeat(100_000).into());
        info.version = "v".repeat(100_000).into();
        grid.pass_in([hello_of(info, 1, &[], &[])]);
    }
    let (mut seen, mut after) = (0, None);
    for _ in 0..10 {
        let mut effects = grid.handle(client("c", GetGridStatus { seq: 0, after }));
        let Effect::Client { reply: ClientReply::GridStatus(page), .. } = effects.remove(0) else {
            panic!("no overview")
        };
        assert!(ClientReply::from(page.clone()).to_frame(Vec::new()).is_ok());
        assert!(!page.nodes.is_empty());
        seen += page.nodes.len();
        after = page.next;
        // A session's id is a secret: here they are sixteen times the same byte.
        assert!(after.is_none_or(|id| id.as_bytes()[0] == 0));
        if after.is_none() {
            break;
        }
    }
    assert_eq!((seen, after), (5, None));
}

#[test]
fn a_suspect_gets_no_work_until_it_speaks_and_then_the_oldest_first() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 2);
    grid.pass(3_000);
    grid.check(client("c", GetGridStatus { seq: 0, after: None }), &["c: overview n suspect"]);
    grid.check(submit(1), &["insert T1", "c: accepted T1 behind 0"]);
    let assigned =
        ["assign T1 #2 to n, attempt 1", "lane #1/0: assign T1 #2", "c: progress T1 processing 0/0"];
    grid.check(heartbeat(1), &assigned);
}

#[test]
fn a_poll_brings_commands_until_they_are_acknowledged_and_each_once() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.core.handle(crate::core::Now { mono_ms: 5_000, wall_ms: WALL_MS }, submit(1));
    let cancelled = [
        "lane #1/0: hint",
        "end T1 cancelled",
        "c: outcome T1 cancelled",
        "finished T1",
        "c: status T1 cancelled",
    ];
    grid.check_all([
        (accept("n", 1, 2), ["n: proceed #2"].as_slice()),
        (cancel(1), &cancelled),
        (poll("n", 1, &[2], 0), &["n: commands [1 cancel #2]"]),
        (poll("n", 1, &[2], 0), &["n: commands [1 cancel #2]"]),
        // The attempt still runs: the node was asked to stop it, and polls at its own pace.
        (poll("n", 1, &[2], 1), &["n: commands []"]),
        (poll("n", 1, &[2], 1), &["n: commands []"]),
        (stopped("n", 1, 2, 2), &["n: stored #2 false"]),
        (poll("n", 1, &[], 1), &["n: commands []"]),
        // An attempt with an unknown token is cancelled.
        (poll("n", 1, &[77], 1), &["n: commands [2 cancel #77]"]),
        (poll("n", 1, &[77], 2), &["n: commands []"]),
        (poll("n", 9, &[], 0), &["n: gone #9"]),
    ]);
}

#[test]
fn an_attempt_that_three_polls_do_not_list_waits_again() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.core.handle(crate::core::Now { mono_ms: 5_000, wall_ms: WALL_MS }, submit(1));
    grid.check_all([
        // Not accepted yet: it may be on its way.
        (poll("n", 1, &[], 0), ["n: commands []"].as_slice()),
        (poll("n", 1, &[], 0), &["n: commands []"]),
        (poll("n", 1, &[], 0), &["n: commands []"]),
        (poll("n", 1, &[], 0), &["n: commands []"]),
        (accept("n", 1, 2), &["n: proceed #2"]),
        (poll("n", 1, &[], 0), &["n: commands []"]),
        (poll("n", 1, &[], 0), &["n: commands []"]),
        (poll("n", 1, &[2], 0), &["n: commands []"]),
        (poll("n", 1, &[], 0), &["n: commands []"]),
        (poll("n", 1, &[], 0), &["n: commands []"]),
        (
            poll("n", 1, &[], 0),
            &["requeue T1, 0 crashes, 0 failures", "c: progress T1 queued 0/0", "n: commands []"],
        ),
    ]);
}

#[test]
fn a_result_that_is_not_what_it_announces_counts_as_a_failure() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.core.handle(crate::core::Now { mono_ms: 5_000, wall_ms: WALL_MS }, submit(1));
    let Input::Result { peer, request, .. } = done("n", 1, 2, 2) else { unreachable!() };
    let short = Input::Result { peer, request, inline: Some(bytes::Bytes::from_static(b"mad")) };
    grid.check(
        short,
        &["requeue T1, 0 crashes, 1 failures", "c: progress T1 queued 0/0", "n: stored #2 true"],
    );
    assert_eq!(FailureKind::Internal.retry(), lamagrid_domain::Retry::Later);
}

/// It would be welcomed, and never used.
#[test]
fn a_node_none_of_whose_queues_is_known_is_refused_by_name_and_harms_no_session_of_its_own() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    let strange = || hello_of(info("n", 1, &[("tpu", "lama"), ("npu", "manga")]), 1, &[], &[]);
    let answer = format!("{:?}", grid.handle(strange()));
    for words in ["no queue of node n is", "tpu", "npu", "configuration has cpu, gpu", "[queues.NAME]"] {
        assert!(answer.contains(words), "{words}: {answer}");
    }
    grid.check(strange(), &["n: rejected invalid_input"]);
    grid.check(poll("n", 1, &[], 0), &["n: commands []"]);
}
