//! Administration of nodes: details of one, removals, drains that are taken back, changes of settings; statistics.

use lamagrid_domain::{FailureKind, TaskSpec};
use lamagrid_protocol::message::{
    AdminReply, ControlReply, DrainNode, GetNode, GetStatistics, NodeChange, NodeDetail, RemoveNode, SetNode,
    UndrainNode,
};

use super::admin::admin;
use super::grid::*;
use super::lines::line;
use crate::core::{Effect, Input, OrderKind, Requirement, StoreOp};

fn by() -> Option<String> {
    Some("anna".into())
}

fn remove(name: &str) -> Input {
    admin(RemoveNode { node: name.parse().unwrap(), by: by() })
}

fn undrain(name: &str) -> Input {
    admin(UndrainNode { node: name.parse().unwrap(), by: by() })
}

fn drain(name: &str) -> Input {
    admin(DrainNode { node: name.parse().unwrap(), by: by() })
}

fn set(name: &str, change: NodeChange) -> Input {
    admin(SetNode { node: name.parse().unwrap(), change, by: by() })
}

fn slots(slots: u16) -> NodeChange {
    NodeChange { slots: Some(slots), ..NodeChange::default() }
}

fn detail(grid: &mut Grid, name: &str) -> NodeDetail {
    match grid.handle(admin(GetNode { node: name.parse().unwrap() })).remove(0) {
        Effect::Admin { reply: AdminReply::NodeDetail(detail), .. } => detail,
        other => panic!("{other:?}"),
    }
}

/// The text with which a request is refused.
#[track_caller]
fn refusal(grid: &mut Grid, input: Input) -> String {
    match grid.handle(input).remove(0) {
        Effect::Admin { reply: AdminReply::Refused(refused), .. } => refused.failure.message,
        other => panic!("{other:?}"),
    }
}

/// Registers a node that executes all commands.
fn join_with_all_actions(grid: &mut Grid, name: &str, pid: u32, session: u8) {
    let hello = with_all_actions(hello(name, pid, "lama", 1, &[], &[]));
    grid.check(hello, &[&format!("{name}: welcome #{session} lanes [gpu] abandoned []")]);
    grid.pass_in([lane_connected(session), ready(name, session, 1)]);
}

/// R4.4: a removed node loses its tasks, which count no crash, and is refused by every scheduler until undrain.
#[test]
fn a_removed_node_gives_its_tasks_back_and_is_refused_until_undrain() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.join("m", "lama", 2, 1);
    grid.pass_in([submit(1), accept("n", 1, 3)]);
    let mut order = None;
    for effect in grid.handle(remove("n")) {
        if let Effect::Store(StoreOp::NodeOrder { node, order: Some(given) }) = effect {
            order = Some((node, given));
        }
    }
    let order = order.unwrap();
    assert_eq!((order.1.kind, order.1.by.as_str()), (OrderKind::Removal, "anna"));
    grid.check(query(1), &["c: status T1 processing"]);
    let task = detail(&mut grid, "m").tasks.remove(0);
    assert_eq!((task.id, task.attempts), (id(1), 2));
    // Removed already.
    grid.check(remove("n"), &["a: node n away, order removed"]);
    let refused = |grid: &mut Grid, pid| {
        let effects = grid.handle(hello("n", pid, "lama", 1, &[], &[]));
        let [Effect::Control { reply: ControlReply::Rejected(rejected), .. }] = &effects[..] else {
            panic!("{effects:?}")
        };
        assert!(rejected.removed && rejected.failure.kind == FailureKind::InvalidInput);
        rejected.failure.message.clone()
    };
    grid.pass(7_000);
    assert_eq!(
        refused(&mut grid, 1),
        "node n was removed from the grid 7 s ago by anna; `lamagrid node undrain n` takes that back"
    );
    let mut grid = Grid::with_node_orders([order].into());
    grid.pass(60_000);
    refused(&mut grid, 2);
    grid.check(undrain("n"), &["drain n false", "a: node n away, order none"]);
    grid.check(hello("n", 2, "lama", 1, &[], &[]), &["n: welcome #1 lanes [gpu] abandoned []"]);
}

#[test]
fn a_node_that_is_away_is_removed_with_the_tasks_that_are_kept_for_it() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.pass_in([submit(1), accept("n", 1, 2), closed("n")]);
    grid.check(
        remove("n"),
        &[
            "remove n",
            "requeue T1, 0 crashes, 0 failures",
            "c: progress T1 queued 0/0",
            "a: node n away, order removed",
        ],
    );
}

#[test]
fn unknown_nodes_are_refused_with_the_most_similar_name() {
    let mut grid = Grid::new();
    grid.join("gpu-one", "lama", 1, 1);
    for input in [
        admin(GetNode { node: "gpu-noe".parse().unwrap() }),
        drain("gpu-noe"),
        remove("gpu-noe"),
        undrain("gpu-noe"),
        set("gpu-noe", slots(1)),
    ] {
        let text = refusal(&mut grid, input);
        let expected = "no node gpu-noe is connected; did you mean gpu-one? See: lamagrid node list";
        assert_eq!(text, expected);
    }
    assert_eq!(refusal(&mut grid, drain("x")), "no node x is connected; see: lamagrid node list");
}

/// The node takes work again in a new session, which begins with its whole credit.
#[test]
fn a_drain_is_taken_back_in_each_session_until_the_node_leaves() {
    let mut grid = Grid::new();
    join_with_all_actions(&mut grid, "n", 1, 1);
    grid.pass_in([submit(1), accept("n", 1, 2)]);
    grid.check(drain("n"), &["drain n true", "lane #1/0: hint", "a: draining n with 1"]);
    assert_eq!(
        detail(&mut grid, "n").order.map(|order| (order.removed, order.by)),
        Some((false, "anna".into()))
    );
    grid.check(undrain("n"), &["drain n false", "lane #1/0: hint", "a: node n draining, order none"]);
    grid.check(poll("n", 1, &[2], 0), &["n: commands [1 drain, 2 undrain]"]);
    // Its answer is lost with its connection: it may not have heard of it.
    grid.check(closed("n"), &["close #1"]);
    let again = with_all_actions(hello("n", 1, "lama", 1, &[2], &[]));
    grid.check(again, &["n: welcome #3 lanes [gpu] abandoned []"]);
    grid.check(poll("n", 3, &[2], 0), &["n: commands [1 undrain]"]);
    grid.check(undrain("n"), &["a: node n busy, order none"]);
    // Drained once more, and gone.
    grid.check(drain("n"), &["drain n true", "lane #3/0: hint", "a: draining n with 1"]);
    let effects = ["close #3", "requeue T1, 0 crashes, 0 failures", "c: progress T1 queued 0/0"];
    grid.check(goodbye("n", 3), &[&effects[..], &["drain n false", "n: farewell"]].concat());
}

#[test]
fn a_drain_of_an_older_node_is_not_taken_back() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.pass_in([drain("n")]);
    let text = refusal(&mut grid, undrain("n"));
    assert!(text.starts_with("node n runs lamagrid 0, which cannot take back a drain"), "{text}");
    grid.check(poll("n", 1, &[], 0), &["n: commands [1 drain]"]);
}

#[test]
fn a_change_of_settings_is_pending_until_the_node_answers() {
    let mut grid = Grid::new();
    join_with_all_actions(&mut grid, "n", 1, 1);
    grid.check(set("n", slots(4)), &["lane #1/0: hint", "a: node n ready, order none"]);
    let state = |grid: &mut Grid| detail(grid, "n").change.map(|change| (change.done, change.refusal));
    assert_eq!(state(&mut grid), Some((false, None)));
    assert!(refusal(&mut grid, set("n", slots(2))).contains("has not answered its last change yet"));
    // Sent again in the next session of the same process.
    grid.pass_in([closed("n")]);
    grid.pass_in([with_all_actions(hello("n", 1, "lama", 1, &[], &[]))]);
    assert_eq!(state(&mut grid), Some((false, None)));
    let commands = format!("{:?}", grid.handle(poll("n", 2, &[], 0)));
    assert!(commands.contains("seq: 1, action: Set") && commands.contains("slots: Some(4)"), "{commands}");
    grid.pass_in([poll("n", 2, &[], 1)]);
    assert_eq!(state(&mut grid), Some((true, None)));
    grid.pass_in([set("n", slots(5)), poll_refusing("n", 2, 2, "one slot only\u{1b}")]);
    assert_eq!(state(&mut grid), Some((true, Some("one slot only\u{fffd}".into()))));
    // Another process has the settings of its start.
    grid.pass_in([goodbye("n", 2), with_all_actions(hello("n", 2, "lama", 1, &[], &[]))]);
    assert_eq!(state(&mut grid), None);
}

/// A label is required by `big`: the node serves it as soon as it confirms the label, and its attempt goes on.
#[test]
fn other_labels_change_the_queues_of_a_node_without_a_new_session() {
    let mut grid = Grid::new();
    grid.core.settings.queues.insert("big".parse().unwrap(), 3);
    let labelled = Requirement { labels: vec!["a100".into()], ..Requirement::default() };
    grid.core.settings.routes.set_requirement("big".parse().unwrap(), labelled);
    let mut info = info("n", 1, &[("gpu", "lama"), ("big", "manga")]);
    info.models[0].routed = true;
    grid.pass_in([with_all_actions(hello_of(info, 2, &[], &[])), lane_connected(1), ready("n", 1, 2)]);
    let queues = |grid: &mut Grid| {
        let detail = detail(grid, "n");
        let queues = detail.session.map(|session| session.queues).unwrap_or_default();
        (queues.iter().map(ToString::to_string).collect::<Vec<_>>(), detail.refused.len())
    };
    assert_eq!(queues(&mut grid), (vec!["gpu".to_owned()], 1));
    let big = |n| TaskSpec { queue: "big".parse().unwrap(), ..with_model(n, "manga") };
    grid.pass_in([submit_spec(big(1)), submit(2), accept("n", 1, 2)]);
    let labels = |labels: &[&str]| NodeChange {
        labels: Some(labels.iter().map(|label| (*label).into()).collect()),
        ..NodeChange::default()
    };
    grid.pass_in([set("n", labels(&["a100"])), poll("n", 1, &[2], 0)]);
    let effects: Vec<_> = grid.handle(poll("n", 1, &[2], 1)).iter().map(line).collect();
    assert!(effects.contains(&"lane #1/0: assign T1 #3".to_owned()), "{effects:?}");
    assert_eq!(queues(&mut grid), (vec!["big".to_owned(), "gpu".to_owned()], 0));
    grid.check(accept("n", 1, 3), &["n: proceed #3"]);
    // Without the label the attempt goes on, and no other one follows.
    grid.pass_in([set("n", labels(&[])), poll("n", 1, &[2, 3], 2)]);
    assert_eq!(queues(&mut grid), (vec!["gpu".to_owned()], 1));
    grid.pass_in([done("n", 1, 3, 3), submit_spec(big(3))]);
    grid.check(query(3), &["c: status T3 queued"]);
    grid.check(query(1), &["c: status T1 completed"]);
}

#[test]
fn labels_that_leave_a_node_without_a_queue_are_refused_with_the_reason() {
    let mut grid = Grid::new();
    let labelled = Requirement { labels: vec!["a100".into()], ..Requirement::default() };
    grid.core.settings.routes.set_requirement("gpu".parse().unwrap(), labelled);
    let mut info = info("n", 1, &[("gpu", "lama")]);
    info.labels = vec!["a100".into()];
    grid.pass_in([with_all_actions(hello_of(info, 1, &[], &[]))]);
    let none = NodeChange { labels: Some(Vec::new()), ..NodeChange::default() };
    let text = refusal(&mut grid, set("n", none));
    assert!(text.contains("would serve no queue (gpu: it requires the label a100"), "{text}");
}

/// P5.3: older nodes are never sent commands that they do not know.
#[test]
fn changes_that_no_node_can_execute_are_refused() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    let text = refusal(&mut grid, set("n", slots(2)));
    assert!(text.starts_with("node n runs lamagrid 0, which cannot change its settings"), "{text}");
    assert!(refusal(&mut grid, set("n", slots(0))).contains("1 to 64 slots, not 0"));
    grid.check(poll("n", 1, &[], 0), &["n: commands []"]);
    // Two nodes of one name.
    grid.pass_in([from_certificate("gpu", hello("n", 2, "lama", 1, &[], &[]))]);
    assert!(refusal(&mut grid, set("n", slots(2))).contains("nodes of 2 certificates are named n"));
}

#[test]
fn statistics_count_each_end_once() {
    let mut grid = Grid::new();
    grid.join("n", "lama", 1, 1);
    grid.pass_in([submit(1), accept("n", 1, 2)]);
    grid.pass(300);
    grid.pass_in([done("n", 1, 2, 2), done("n", 1, 2, 2), submit(2), cancel(2)]);
    let effects = grid.handle(admin(GetStatistics { skip: 0 }));
    let [Effect::Admin { reply: AdminReply::Statistics(page), .. }] = &effects[..] else {
        panic!("{effects:?}")
    };
    let line = &page.lines[0];
    assert_eq!((line.queue.as_str(), line.model.as_str(), page.more), ("gpu", "lama", false));
    assert_eq!((line.completed, line.failed, line.cancelled, line.wait_ms, line.run_ms), (1, 0, 1, 0, 300));
    grid.check(admin(GetStatistics { skip: 1 }), &["a: statistics of 0 lines"]);
}
