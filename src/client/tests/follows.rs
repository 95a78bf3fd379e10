//! Tests a client against a scheduler that dies, goes silent, forgets tasks or refuses them.

mod fake;

use std::time::Duration;

use bytes::Bytes;
use fake::{Fake, PATIENCE, info, meta, task};

use lamagrid_blobs::{BlobName, Spool};
use lamagrid_client::{ClientError, Content, Staging, TaskEvent};
use lamagrid_domain::{Activity, Advance, Failure, FailureKind, Role, Status, TaskId};
use lamagrid_protocol::message::{
    ClientRequest, Outcome, Progress, ProtocolFault, Refused, TaskStatus, Unknown, UploadGranted,
};

/// More bytes than travel inline.
const LARGE: usize = 300 * 1024;

#[tokio::test]
async fn small_inputs_travel_inline_and_the_result_comes_back() {
    let mut fake = Fake::start().await;
    let client = fake.client();
    let submit = tokio::spawn({
        let client = client.clone();
        async move { client.submit(task(1, 10), PATIENCE).await }
    });
    let (id, blobs) = fake.accept().await;
    assert_eq!(blobs, [Bytes::from(vec![1; 10]), Bytes::from(vec![2; 10])]);
    assert_eq!(submit.await.unwrap().unwrap(), 3, "tasks before it");
    fake.complete(id, b"made").await;
    let outcome = client.wait(id, PATIENCE).await;
    assert_eq!(outcome.unwrap().into_result().unwrap().read().unwrap(), "made");
    fake.receives_nothing_more().await;
    // The outcome is kept until it is released.
    assert!(client.wait(id, PATIENCE).await.is_ok());
    let (released, (request, _)) = tokio::join!(client.release(id, PATIENCE), async {
        let received = fake.receive().await;
        let _ = tokio::time::timeout(Duration::from_millis(200), fake.receive()).await; // answers the ping
        received
    });
    released.unwrap();
    assert!(matches!(request, ClientRequest::Release(r) if r.id == id));
}

#[tokio::test]
async fn large_inputs_and_results_go_through_the_spool() {
    let mut fake = Fake::start().await;
    let client = fake.client();
    let (submitted, _) = tokio::join!(client.submit(task(1, LARGE), PATIENCE), async {
        let (request, blobs) = fake.receive().await;
        let ClientRequest::Offer(offer) = request else { panic!("{request:?}") };
        assert_eq!((offer.bytes, blobs.len()), (2 * LARGE as u64, 0));
        fake.say(UploadGranted { seq: offer.seq }).await;
        let (request, blobs) = fake.receive().await;
        let ClientRequest::Submit(submit) = request else { panic!("{request:?}") };
        assert!(submit.inline.is_empty() && blobs.is_empty() && submit.follow);
        assert_eq!(lamagrid_protocol::payload_digest(&submit.spec), offer.digest);
        let spool = Spool::new(fake.spool());
        for blob in &submit.spec.blobs {
            spool.get(submit.spec.id, BlobName::Role(blob.role), blob).unwrap();
        }
        let accepted =
            lamagrid_protocol::message::Accepted { seq: submit.seq, id: submit.spec.id, position: 0 };
        fake.say(accepted).await;
    });
    submitted.unwrap();
    let id = TaskId::from_bytes([1; 16]);
    let made = vec![9; LARGE];
    Spool::new(fake.spool()).put(id, BlobName::Role(Role::Result), &made).unwrap();
    let outcome = |result| Outcome { task: info(id, Status::Completed), result: Some(result) };
    fake.say(outcome(meta(Role::Result, &made))).await;
    assert_eq!(client.wait(id, PATIENCE).await.unwrap().result.unwrap().read().unwrap(), made);
}

#[tokio::test]
async fn a_result_that_differs_from_its_description_is_rejected() {
    let mut fake = Fake::start().await;
    let client = fake.client();
    let (submitted, (id, _)) = tokio::join!(client.submit(task(1, 10), PATIENCE), fake.accept());
    submitted.unwrap();
    let outcome = Outcome { task: info(id, Status::Completed), result: Some(meta(Role::Result, b"made")) };
    fake.say_with(outcome, vec![Bytes::from_static(b"fake")]).await;
    let error = client.wait(id, PATIENCE).await.unwrap().into_result().unwrap().read().unwrap_err();
    assert!(error.to_string().contains("its hash differs"), "{error}");
}

#[tokio::test]
async fn after_a_scheduler_restart_the_client_attaches_without_sending_blobs_again() {
    let mut fake = Fake::start().await;
    let client = fake.client();
    let (submitted, (id, _)) = tokio::join!(client.submit(task(1, 10), PATIENCE), fake.accept());
    submitted.unwrap();
    let before = fake.peer.clone();
    fake.kill().await;
    fake.bind().await;
    let (outcome, ()) = tokio::join!(client.wait(id, PATIENCE), async {
        let (request, blobs) = fake.receive().await;
        let ClientRequest::Attach(attach) = request else { panic!("{request:?}") };
        assert!(attach.id == id && attach.digest.is_some() && blobs.is_empty());
        assert_ne!(fake.peer, before, "a fresh identity");
        fake.say(TaskStatus { seq: attach.seq, task: info(id, Status::Processing) }).await;
        fake.complete(id, b"made").await;
    });
    assert_eq!(outcome.unwrap().into_result().unwrap().read().unwrap(), "made");
    fake.receives_nothing_more().await;
}

#[tokio::test]
async fn a_client_reconnects_to_a_silent_scheduler() {
    let mut fake = Fake::start().await;
    let client = fake.client();
    let (submitted, (id, _)) = tokio::join!(client.submit(task(1, 10), PATIENCE), fake.accept());
    submitted.unwrap();
    let before = fake.peer.clone();
    fake.alive = false;
    let (request, _) = fake.receive().await;
    assert!(matches!(request, ClientRequest::Attach(attach) if attach.id == id));
    assert_ne!(fake.peer, before);
}

#[tokio::test]
async fn a_task_unknown_to_the_scheduler_is_submitted_again_with_its_blobs() {
    for size in [10, LARGE] {
        let mut fake = Fake::start().await;
        let client = fake.client();
        let submit = async |fake: &mut Fake| {
            if size == LARGE {
                let (request, _) = fake.receive().await;
                let ClientRequest::Offer(offer) = request else { panic!("{request:?}") };
                fake.say(UploadGranted { seq: offer.seq }).await;
            }
            fake.accept().await
        };
        let (submitted, (id, first)) =
            tokio::join!(client.submit(task(1, size), PATIENCE), submit(&mut fake));
        submitted.unwrap();
        fake.kill().await;
        std::fs::remove_dir_all(fake.spool()).unwrap();
        std::fs::create_dir(fake.spool()).unwrap();
        fake.bind().await;
        let (request, _) = fake.receive().await;
        let ClientRequest::Attach(attach) = request else { panic!("{request:?}") };
        fake.say(Unknown { seq: attach.seq, id, expired: false }).await;
        let (_, second) = submit(&mut fake).await;
        assert_eq!(first, second);
        if size == LARGE {
            let image = meta(Role::Image, &vec![1; LARGE]);
            Spool::new(fake.spool()).get(id, BlobName::Role(Role::Image), &image).unwrap();
        }
        fake.complete(id, b"made").await;
        assert!(client.wait(id, PATIENCE).await.is_ok());
    }
}

#[tokio::test]
async fn blobs_not_accepted_before_a_disconnect_are_written_again() {
    let mut fake = Fake::start().await;
    let client = fake.client();
    let submit = tokio::spawn({
        let client = client.clone();
        async move { client.submit(task(1, LARGE), PATIENCE).await }
    });
    for round in 0..2 {
        let (request, _) = fake.receive().await;
        let ClientRequest::Offer(offer) = request else { panic!("{request:?}") };
        fake.say(UploadGranted { seq: offer.seq }).await;
        if round == 1 {
            fake.accept().await;
            continue;
        }
        let (request, _) = fake.receive().await;
        assert!(matches!(request, ClientRequest::Submit(_)));
        fake.kill().await;
        Spool::new(fake.spool()).remove_task(TaskId::from_bytes([1; 16])).unwrap(); // as the sweep at start does
        fake.bind().await;
    }
    submit.await.unwrap().unwrap();
    let image = meta(Role::Image, &vec![1; LARGE]);
    let id = TaskId::from_bytes([1; 16]);
    Spool::new(fake.spool()).get(id, BlobName::Role(Role::Image), &image).unwrap();
}

#[tokio::test]
async fn a_refusal_carries_the_queue_and_the_wait() {
    let mut fake = Fake::start().await;
    let client = fake.client();
    let (submitted, ()) = tokio::join!(client.submit(task(1, 10), PATIENCE), async {
        let (request, _) = fake.receive().await;
        let ClientRequest::Submit(submit) = request else { panic!("{request:?}") };
        let failure = Failure::new(FailureKind::Overloaded, "queue gpu is full");
        fake.say(Refused { seq: submit.seq, failure, queue_len: 7, wait_ms: Some(2_500) }).await;
    });
    let error = submitted.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Overloaded);
    assert_eq!(error.to_string(), "queue gpu is full (7 tasks wait; expected wait 3 s)");
    fake.receives_nothing_more().await;
}

#[tokio::test]
async fn an_expired_or_unknown_id_is_an_error() {
    let mut fake = Fake::start().await;
    let client = fake.client();
    let id = TaskId::from_bytes([5; 16]);
    for expired in [true, false] {
        let (outcome, ()) = tokio::join!(client.wait(id, PATIENCE), async {
            let (request, _) = fake.receive().await;
            let ClientRequest::Attach(attach) = request else { panic!("{request:?}") };
            fake.say(Unknown { seq: attach.seq, id, expired }).await;
        });
        assert!(matches!(outcome.unwrap_err(), ClientError::Unknown { expired: e, .. } if e == expired));
    }
}

#[tokio::test]
async fn without_a_scheduler_the_error_names_address_and_remedy_and_a_late_one_is_found() {
    let mut fake = Fake::absent();
    let client = fake.client();
    let error = client.survey(Duration::from_millis(300)).await.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), FailureKind::Disconnected);
    assert!(
        text.contains("client.sock") && text.contains("lamagrid scheduler --data-dir /srv/grid"),
        "{text}"
    );
    let submit = tokio::spawn({
        let client = client.clone();
        async move { client.submit(task(1, 10), PATIENCE).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    fake.bind().await;
    let (id, _) = fake.accept().await;
    submit.await.unwrap().unwrap();
    fake.complete(id, b"made").await;
    client.wait(id, PATIENCE).await.unwrap();
    // The survey's caller has stopped waiting, so no request is sent for it.
    fake.receives_nothing_more().await;
}

#[tokio::test]
async fn an_unanswered_request_is_sent_again_on_the_next_connection() {
    let mut fake = Fake::start().await;
    let client = fake.client();
    let id = TaskId::from_bytes([5; 16]);
    let (status, ()) = tokio::join!(client.query(id, PATIENCE), async {
        assert!(matches!(fake.receive().await.0, ClientRequest::Query(_)));
        fake.kill().await;
        fake.bind().await;
        let (request, _) = fake.receive().await;
        let ClientRequest::Query(query) = request else { panic!("{request:?}") };
        fake.say(TaskStatus { seq: query.seq, task: info(id, Status::Queued) }).await;
    });
    assert_eq!(status.unwrap().status, Status::Queued);
}

#[tokio::test]
async fn an_abandoned_submit_is_cancelled() {
    let mut fake = Fake::start().await;
    let client = fake.client();
    let error =
        tokio::join!(client.submit(task(1, 10), Duration::from_millis(300)), fake.receive()).0.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    let (request, _) = fake.receive().await;
    assert!(matches!(request, ClientRequest::Cancel(cancel) if cancel.id == TaskId::from_bytes([1; 16])));
}

#[tokio::test]
async fn progress_is_followed_to_the_end() {
    let mut fake = Fake::start().await;
    let client = fake.client();
    let (submitted, (id, _)) = tokio::join!(client.submit(task(1, 10), PATIENCE), fake.accept());
    submitted.unwrap();
    let mut follow = client.follow(id).await.unwrap();
    for (activity, step, of) in
        [(Activity::Loading, 40, 100), (Activity::Running, 1, 2), (Activity::Running, 2, 2)]
    {
        fake.say(Progress { id, status: Status::Processing, step, of, activity }).await;
    }
    fake.complete(id, b"made").await;
    let mut seen = Vec::new();
    while let Some(event) = follow.next().await.unwrap() {
        seen.push(event);
    }
    let event = |status, activity, step, of| TaskEvent { status, advance: Advance { activity, step, of } };
    assert_eq!(
        seen,
        [
            event(Status::Processing, Activity::Loading, 40, 100),
            event(Status::Processing, Activity::Running, 1, 2),
            event(Status::Processing, Activity::Running, 2, 2),
            event(Status::Completed, Activity::Running, 0, 0)
        ]
    );
    assert_eq!(follow.next().await.unwrap(), None);
}

#[tokio::test]
async fn an_incompatible_protocol_fails_pending_calls() {
    let mut fake = Fake::start().await;
    let client = fake.client();
    let (submitted, (id, _)) = tokio::join!(client.submit(task(1, 10), PATIENCE), fake.accept());
    submitted.unwrap();
    let failure = Failure::new(FailureKind::Incompatible, "the peer speaks protocol 2.0");
    fake.say(ProtocolFault { failure }).await;
    let error = client.wait(id, PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::Incompatible);
}

#[tokio::test]
async fn invalid_inputs_are_rejected_by_the_client() {
    let mut fake = Fake::start().await;
    let client = fake.client();
    let mut twice = task(1, 10);
    twice.inputs[1].role = Role::Image;
    let mut short = task(2, 10);
    short.inputs[0].form = lamagrid_domain::BlobForm::Raw { height: 2, width: 2, channels: 3 };
    for (wrong, word) in [(twice, "two inputs"), (short, "make 12")] {
        let error = client.submit(wrong, PATIENCE).await.unwrap_err();
        assert_eq!(error.kind(), FailureKind::InvalidInput);
        assert!(error.to_string().contains(word), "{error}");
    }
    fake.receives_nothing_more().await;
}

#[tokio::test]
async fn a_hundred_concurrent_tasks_pass_through_the_window() {
    let mut fake = Fake::start().await;
    let client = fake.client();
    let waits: Vec<_> = (0..100)
        .map(|id| {
            let client = client.clone();
            tokio::spawn(async move {
                let new = task(id, 10);
                let id = new.id;
                client.submit(new, PATIENCE).await.unwrap();
                client.wait(id, PATIENCE).await.unwrap().into_result().unwrap()
            })
        })
        .collect();
    for _ in 0..100 {
        let (id, _) = fake.accept().await;
        fake.complete(id, b"made").await;
    }
    for wait in waits {
        assert_eq!(wait.await.unwrap().read().unwrap(), "made");
    }
}

#[tokio::test]
async fn the_ping_is_the_first_message_even_with_tasks_pending() {
    for round in 0..40 {
        let mut fake = Fake::start().await;
        let client = fake.client();
        for id in 0..8 {
            let client = client.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_micros(u64::from(id) * round * 20)).await;
                client.submit(task(id, LARGE), PATIENCE).await
            });
        }
        fake.receive().await; // and checks the messages before it
    }
}

#[tokio::test]
async fn one_connection_speaks_for_many_owners() {
    let mut fake = Fake::start().await;
    let client = fake.client();
    let other = client.on_behalf_of("key:1".parse().unwrap());
    let (submitted, id) = tokio::join!(other.submit_unfollowed(task(1, 10), PATIENCE), async {
        let (request, _) = fake.receive().await;
        let ClientRequest::Submit(submit) = request else { panic!("{request:?}") };
        assert_eq!((submit.spec.owner.as_str(), submit.follow), ("key:1", false));
        let (seq, id) = (submit.seq, submit.spec.id);
        fake.say(lamagrid_protocol::message::Accepted { seq, id, position: 0 }).await;
        id
    });
    submitted.unwrap();
    let connection = fake.peer.clone();
    let (watch, ()) = tokio::join!(other.follow(id), async {
        let (request, _) = fake.receive().await;
        let ClientRequest::Attach(attach) = request else { panic!("it was forgotten, not {request:?}") };
        assert_eq!(attach.owner.as_str(), "key:1");
        fake.say(TaskStatus { seq: attach.seq, task: info(id, Status::Processing) }).await;
    });
    let _watch = watch.unwrap();
    assert!(matches!(client.follow(id).await, Err(ClientError::Unknown { .. })), "not even to this client");
    let (queried, ()) = tokio::join!(client.query(id, PATIENCE), async {
        let (request, _) = fake.receive().await;
        let ClientRequest::Query(query) = request else { panic!("{request:?}") };
        assert_eq!(query.owner.as_str(), "local");
        fake.say(Unknown { seq: query.seq, id, expired: false }).await;
    });
    assert!(matches!(queried, Err(ClientError::Unknown { .. })));
    assert_eq!(fake.peer, connection);
}

#[tokio::test]
async fn inputs_in_files_become_blobs_by_links() {
    use std::os::unix::fs::MetadataExt;
    let mut fake = Fake::start().await;
    let client = fake.client();
    let staging = Staging::create(fake.spool().parent().unwrap()).unwrap();
    let mut writer = staging.begin().unwrap();
    writer.write(&[7; LARGE]).unwrap();
    let file = std::sync::Arc::new(writer.finish());
    let mut new = task(1, 10);
    new.inputs[0].content = Content::File(std::sync::Arc::clone(&file));
    let (submitted, ()) = tokio::join!(client.submit(new, PATIENCE), async {
        let (request, _) = fake.receive().await;
        let ClientRequest::Offer(offer) = request else { panic!("{request:?}") };
        assert_eq!(offer.bytes, LARGE as u64 + 10);
        fake.say(UploadGranted { seq: offer.seq }).await;
        let (request, _) = fake.receive().await;
        let ClientRequest::Submit(submit) = request else { panic!("{request:?}") };
        let spool = Spool::new(fake.spool());
        for blob in &submit.spec.blobs {
            spool.get(submit.spec.id, BlobName::Role(blob.role), blob).unwrap();
        }
        let (linked, _) = spool.reader(submit.spec.id, BlobName::Role(Role::Image)).unwrap();
        let staged = std::fs::metadata(file.path()).unwrap();
        assert_eq!(linked.metadata().unwrap().ino(), staged.ino(), "no copy");
        let (seq, id) = (submit.seq, submit.spec.id);
        fake.say(lamagrid_protocol::message::Accepted { seq, id, position: 0 }).await;
    });
    submitted.unwrap();
}
