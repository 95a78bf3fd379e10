//! Tests changes of a node's settings while it runs, and drains that are taken back.

use std::sync::Arc;

use lamagrid_node::backend::{OfferTable, serve};
use lamagrid_protocol::message::{Action, ActionKind, NodeChange, RefusedCommand};
use lamagrid_session::{Adjust, Adjustment, ChangeRefused, Pipeline};

use crate::fake::{self, Fake, short_dir};
use crate::{done, echo, serving, start, start_with};

/// Allows up to four slots.
#[derive(Debug)]
pub(crate) struct Adjusting;

impl Adjust for Adjusting {
    fn adjust(&self, adjustment: Adjustment) -> Result<(), ChangeRefused> {
        let is_possible = adjustment.slots.is_none_or(|slots| slots <= 4);
        is_possible.then_some(()).ok_or_else(|| ChangeRefused("at most 4 slots".to_owned()))
    }
}

/// The refused command of a poll.
fn refusal(received: fake::Received) -> Option<RefusedCommand> {
    if let fake::Received::Poll(poll) = received { poll.refused.into_iter().next() } else { None }
}

/// R4.4: a drained node takes tasks again in a new session with its whole credit; what it works on continues.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_taken_back_while_a_task_runs() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start_with(&fake, 1, 1);
    let _served = serving(&session, echo());
    fake.welcome(vec![]).await;
    let (spec, token) = fake.task(10, 10, &[("echo_ms", 800)]);
    fake.assign(&spec, token).await;
    fake.begun(token).await;
    fake.command(1, Action::Drain);
    fake.command(2, Action::Undrain);
    let (_, hello, ready) = fake.welcome(vec![]).await;
    assert_eq!((hello.running, ready.credit), (vec![token], 1), "one of slot and overlap is used");
    let (delivery, _) = fake.delivery().await;
    assert_eq!((delivery.token, delivery.credit), (token, 2));
    done(&delivery);
    // A drain by the process itself is not taken back.
    session.drain();
    fake.commands.clear();
    fake.command(1, Action::Undrain);
    let refused = fake.until(refusal).await;
    assert!(refused.reason.contains("told to end on its own host"), "{}", refused.reason);
}

/// R4.4: models and slots change in a new session of the same process, which keeps its running task.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_settings_registers_the_node_again_and_keeps_its_work() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start_with(&fake, 1, 1);
    let _served = serving(&session, echo());
    let (_, hello, _) = fake.welcome(vec![]).await;
    assert_eq!(hello.actions[3..], [ActionKind::Undrain, ActionKind::Set]);
    let (spec, token) = fake.task(10, 10, &[("echo_ms", 600)]);
    fake.assign(&spec, token).await;
    fake.begun(token).await;
    let labels = Some(vec!["a100".into()]);
    fake.command(1, Action::Set { change: NodeChange { slots: Some(3), labels, ..NodeChange::default() } });
    let (_, hello, ready) = fake.welcome(vec![]).await;
    assert_eq!((hello.slots, hello.overlap, hello.running), (3, 3, vec![token]));
    assert_eq!((hello.info.labels, ready.credit), (vec!["a100".into()], 5));
    let (delivery, _) = fake.delivery().await;
    assert_eq!((delivery.token, delivery.credit), (token, 6));
    // Threads are for the backend, and labels for the scheduler's plan: neither needs a new session.
    fake.commands.clear();
    let labels = Some(Vec::new());
    let change = NodeChange { threads: Some(2), labels, ..NodeChange::default() };
    fake.command(1, Action::Set { change });
    fake.until(|received| {
        matches!(received, fake::Received::Poll(poll) if poll.acknowledged == 1).then_some(())
    })
    .await;
    assert_eq!((session.take_threads(), session.take_threads()), (Some(2), None));
}

/// R4.4: a change is refused as a whole, with the reason, and the session goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_impossible_is_refused_with_the_reason() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start(&fake, 1);
    let _served = serving(&session, echo());
    fake.welcome(vec![]).await;
    let change = |models: &[&str], slots| NodeChange {
        models: Some(models.iter().map(|model| model.parse().unwrap()).collect()),
        slots: Some(slots),
        ..NodeChange::default()
    };
    for (seq, change, reason) in [
        (1, change(&["lama", "manga"], 2), "it was started without the model manga; it has lama"),
        (2, change(&["lama"], 9), "at most 4 slots"),
        (3, change(&["lama"], 0), "a node has 1 to 64 slots, not 0"),
    ] {
        fake.command(seq, Action::Set { change });
        let refused = fake.until(refusal).await;
        assert_eq!((refused.seq, refused.reason.as_str()), (seq, reason));
    }
    let poll = fake.poll().await;
    assert!(poll.refused.is_empty() && poll.acknowledged == 3, "{poll:?}");
    let (spec, token) = fake.task(10, 10, &[]);
    fake.assign(&spec, token).await;
    assert_eq!(fake.delivery().await.0.credit, 2, "it has one slot still");
}

/// Fewer slots than backends: assigned tasks wait for a slot.
#[tokio::test(flavor = "multi_thread")]
async fn fewer_slots_run_fewer_tasks_at_once() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start_with(&fake, 2, 2);
    let pipeline = Arc::new(Pipeline::start(&session, 2, 1_000_000).unwrap());
    for _ in 0..2 {
        let (session, pipeline, mut backend) = (Arc::clone(&session), Arc::clone(&pipeline), echo());
        std::thread::spawn(move || serve(&session, &pipeline, &mut backend, OfferTable::default()));
    }
    fake.welcome(vec![]).await;
    fake.command(1, Action::Set { change: NodeChange { slots: Some(1), ..NodeChange::default() } });
    let (_, hello, ready) = fake.welcome(vec![]).await;
    assert_eq!((hello.slots, hello.overlap, ready.credit), (1, 1, 2));
    let (first, first_token) = fake.task(10, 10, &[("echo_ms", 500)]);
    let (second, second_token) = fake.task(10, 10, &[("echo_ms", 10)]);
    fake.assign(&first, first_token).await;
    fake.begun(first_token).await;
    fake.assign(&second, second_token).await;
    assert_eq!(fake.delivery().await.0.token, first_token);
    assert_eq!(fake.delivery().await.0.token, second_token);
}
