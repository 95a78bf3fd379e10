//! Tests the node's side of the protocol against a scheduler that misbehaves on demand.

#![expect(clippy::unwrap_used, reason = "a helper of tests fails with its test")]

mod fake;
#[path = "session/settings.rs"]
mod settings;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use fake::{Fake, Polls, info, pattern, rgb_to_bgr, short_dir};

use lamagrid_blobs::BlobName;
use lamagrid_domain::{
    BlobForm, BlobMeta, Failure, FailureKind, LeaseToken, ModelName, ModelOffer, OutputForm, PictureFormat,
    Role,
};
use lamagrid_imaging::codec::{self, Metadata};
use lamagrid_imaging::{Image, Rgb};
use lamagrid_node::backend::{Answer, Backend, Echo, FileState, OfferTable, Progress, Work, serve};
use lamagrid_process::random_id;
use lamagrid_protocol::frame::MAX_INLINE_BYTES;
use lamagrid_protocol::message::{
    Abandon, Action, Assign, AttemptOutcome, Command, Delivery, Hello, Hint, Proceed, Stored,
};
use lamagrid_session::{NextJob, Pipeline, Session, SessionOptions};

type Served = JoinHandle<Option<Failure>>;

fn start(fake: &Fake, slots: u16) -> Arc<Session> {
    start_with(fake, slots, 0)
}

fn start_with(fake: &Fake, slots: u16, overlap: u16) -> Arc<Session> {
    let options = SessionOptions {
        endpoints: fake.endpoints.clone(),
        bundle: None,
        info: info("node-1"),
        slots,
        overlap,
        sampler: None,
        adjust: Some(Arc::new(settings::Adjusting)),
    };
    Arc::new(Session::start(options).unwrap())
}

fn serving(session: &Arc<Session>, mut backend: impl Backend + Send + 'static) -> Served {
    let session = Arc::clone(session);
    let pipeline = Pipeline::start(&session, 1, 1_000_000).unwrap();
    std::thread::spawn(move || serve(&session, &pipeline, &mut backend, OfferTable::default()))
}

fn echo() -> Echo {
    Echo::new(info("node-1").models)
}

fn done(delivery: &Delivery) -> (&lamagrid_domain::BlobMeta, bool) {
    match &delivery.outcome {
        AttemptOutcome::Done { result, inline, .. } => (result, *inline),
        other => panic!("not done: {other:?}"),
    }
}

fn failure(delivery: &Delivery) -> &Failure {
    match &delivery.outcome {
        AttemptOutcome::Failed { failure } => failure,
        other => panic!("not failed: {other:?}"),
    }
}

/// R2.1, P4.2, X5: a node registers its models and slots, and gets tasks according to its credit.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_accepted_worked_on_and_delivered() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start(&fake, 2);
    let served = serving(&session, echo());
    let (_, hello, ready) = fake.welcome(vec![]).await;
    assert_eq!((hello.info.name.as_str(), hello.slots, hello.running.len()), ("node-1", 2, 0));
    assert_eq!(ready.credit, 2);

    // A small result travels inline.
    let (spec, token) = fake.task(20, 30, &[]);
    fake.assign(&spec, token).await;
    let (delivery, blobs) = fake.delivery().await;
    assert_eq!((delivery.token, delivery.credit), (token, 3));
    let (result, inline) = done(&delivery);
    assert!(inline && result.role == Role::Result);
    assert_eq!(blobs[0], rgb_to_bgr(&pattern(20, 30)));
    assert_eq!(result.hash, lamagrid_protocol::hash(&blobs[0]));
    fake.reply(Stored { token, accepted: true }.into()).await;

    // A large one is stored in the spool, under the attempt's name.
    let (spec, token) = fake.task(400, 300, &[]);
    fake.assign(&spec, token).await;
    let (delivery, blobs) = fake.delivery().await;
    let (result, inline) = done(&delivery);
    assert!(!inline && blobs.is_empty() && result.len as usize > MAX_INLINE_BYTES);
    assert_eq!(delivery.credit, 4);
    let bytes = fake.spool.get(spec.id, BlobName::Attempt(token), result).unwrap();
    assert_eq!(bytes, rgb_to_bgr(&pattern(400, 300)));
    // The node holds the result until the scheduler replies, and removes it if it is not accepted.
    assert_eq!(fake.poll().await.running, [token]);
    fake.reply(Stored { token, accepted: false }.into()).await;
    while !fake.poll().await.running.is_empty() {}
    assert!(fake.spool.get(spec.id, BlobName::Attempt(token), result).is_err());

    session.drain();
    fake.until(|received| matches!(received, fake::Received::Goodbye).then_some(())).await;
    assert_eq!(served.join().unwrap(), None);
}

/// X5: a recall returns a task that still waits for its slot, but not a task that has begun.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_task_is_given_back_and_a_running_one_is_not() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start_with(&fake, 1, 1);
    let _served = serving(&session, echo());
    let (_, hello, ready) = fake.welcome(vec![]).await;
    assert_eq!((hello.slots, hello.overlap, ready.credit), (1, 1, 2));
    let (running, first) = fake.task(10, 10, &[("echo_ms", 1_500)]);
    let (prepared, second) = fake.task(10, 10, &[]);
    fake.assign(&running, first).await;
    fake.begun(first).await;
    fake.assign(&prepared, second).await;
    fake.commands = vec![
        Command { seq: 1, action: Action::Recall { token: first } },
        Command { seq: 2, action: Action::Recall { token: second } },
    ];
    fake.push(Hint {}.into(), Vec::new());
    let (delivery, _) = fake.delivery().await;
    assert_eq!((delivery.token, delivery.credit), (second, 3), "given back at once, with its credit");
    assert_eq!(delivery.outcome, AttemptOutcome::Cancelled);
    fake.reply(Stored { token: second, accepted: true }.into()).await;
    let (delivery, _) = fake.delivery().await;
    assert_eq!((delivery.token, delivery.credit), (first, 4));
    done(&delivery);
}

/// X5: credit returns before the result is delivered, so that the slot gets its next task meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn credit_comes_back_when_the_slot_is_free() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start_with(&fake, 1, 1);
    let _served = serving(&session, echo());
    fake.welcome(vec![]).await;
    let (spec, token) = fake.task(10, 10, &[]);
    fake.assign(&spec, token).await;
    // The credit must come before the delivery: this loop would skip a delivery.
    while fake.ready().await.credit != 3 {}
    let (delivery, _) = fake.delivery().await;
    assert_eq!((delivery.token, delivery.credit), (token, 3), "not a second time with the delivery");
}

/// P7.1: a task of files returns a file, with the alpha channel and metadata that the model does not see.
#[tokio::test(flavor = "multi_thread")]
async fn files_are_decoded_and_the_result_is_a_file() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start(&fake, 1);
    let _served = serving(&session, echo());
    fake.welcome(vec![]).await;
    let pixels = Image::<Rgb>::new(20, 30, pattern(20, 30)).unwrap();
    let alpha = Image::new(20, 30, (0..600).map(|i| (i % 256) as u8).collect()).unwrap();
    let metadata = Metadata { parameters: Some("a photo".into()), ..Metadata::default() };
    let photo = codec::encode(&pixels, Some(&alpha), PictureFormat::Png, 95, &metadata).unwrap();
    let black = Image::black(20, 30).unwrap();
    let mask = codec::encode(&black, None, PictureFormat::Bmp, 95, &Metadata::default()).unwrap();
    let (mut spec, token) = fake.task(20, 30, &[]);
    spec.output = OutputForm::Encoded { format: PictureFormat::Png, quality: 95 };
    let file = |role, bytes: &[u8]| BlobMeta {
        role,
        len: bytes.len() as u64,
        hash: lamagrid_protocol::hash(bytes),
        form: BlobForm::Encoded,
    };
    spec.blobs = vec![file(Role::Image, &photo), file(Role::Mask, &mask)];
    let assign = Assign { token, attempt: 1, spec: spec.clone(), inline: vec![Role::Image, Role::Mask] };
    fake.give(assign, vec![photo.into(), mask.into()]).await;
    let (delivery, blobs) = fake.delivery().await;
    assert_eq!(done(&delivery).0.form, BlobForm::Encoded);
    let answer = codec::decode(&blobs[0], 1_000).unwrap();
    assert_eq!((answer.pixels, answer.alpha, answer.metadata), (pixels, Some(alpha), metadata));
    fake.reply(Stored { token, accepted: true }.into()).await;

    for (output, blob, text) in [
        (PictureFormat::Gif, None, "no gif files are written here: ask for another format"),
        (
            PictureFormat::Jpeg,
            None,
            "the image has an alpha channel, and jpeg has no room for that: ask for png",
        ),
        (PictureFormat::Png, Some(&b"no picture"[..]), "the image: it is no picture file of a known format"),
    ] {
        let token = LeaseToken::from_bytes(random_id());
        let mut spec = spec.clone();
        spec.output = OutputForm::Encoded { format: output, quality: 95 };
        let photo = codec::encode(
            &black,
            Some(&Image::black(20, 30).unwrap()),
            PictureFormat::Png,
            95,
            &Metadata::default(),
        );
        let image = blob.map_or_else(|| photo.unwrap(), <[u8]>::to_vec);
        let mask = codec::encode(&black, None, PictureFormat::Bmp, 95, &Metadata::default()).unwrap();
        spec.blobs = vec![file(Role::Image, &image), file(Role::Mask, &mask)];
        let assign = Assign { token, attempt: 1, spec, inline: vec![Role::Image, Role::Mask] };
        fake.give(assign, vec![image.into(), mask.into()]).await;
        let (delivery, _) = fake.delivery().await;
        assert_eq!(failure(&delivery).message, text);
        fake.reply(Stored { token, accepted: true }.into()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mismatched_inputs_are_refused_with_upstreams_text() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start(&fake, 1);
    let _served = serving(&session, echo());
    fake.welcome(vec![]).await;
    let (mut spec, token) = fake.task(300, 400, &[]);
    let (other, _) = fake.task(200, 400, &[]);
    spec.blobs[1] = other.blobs[1].clone();
    fake.assign(&spec, token).await;
    let (delivery, _) = fake.delivery().await;
    assert_eq!(failure(&delivery).kind, FailureKind::InvalidInput);
    assert_eq!(failure(&delivery).message, "Mask shape(200, 400) not queal to Image shape(300, 400)");

    // Inline blobs are also checked against their announced hashes.
    let (spec, token) = fake.task(2, 2, &[]);
    let wrong = vec![Bytes::from(vec![9; 12]), Bytes::from(vec![255; 4])];
    let assign = Assign { token, attempt: 1, spec, inline: vec![Role::Image, Role::Mask] };
    fake.give(assign, wrong).await;
    let (delivery, _) = fake.delivery().await;
    assert_eq!(failure(&delivery).kind, FailureKind::Internal);

    let (mut spec, token) = fake.task(2, 2, &[]);
    spec.model = "other".parse().unwrap();
    fake.assign(&spec, token).await;
    let (delivery, _) = fake.delivery().await;
    assert_eq!(failure(&delivery).kind, FailureKind::UnknownModel);
}

/// R7.5: the scheduler knows which node has a task before the task can crash that node.
#[tokio::test(flavor = "multi_thread")]
async fn no_task_begins_before_the_scheduler_knows_that_it_arrived() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start(&fake, 2);
    fake.welcome(vec![]).await;
    let begins = |wait_ms| match session.next_job(Duration::from_millis(wait_ms)) {
        NextJob::Job(job) => Some(job.token()),
        NextJob::Idle | NextJob::Closed(_) => None,
    };
    let (spec, token) = fake.task(10, 10, &[]);
    let assign = Assign { token, attempt: 1, spec: spec.clone(), inline: vec![] };
    fake.push(assign.clone().into(), vec![]);
    fake.accept(token).await;
    assert_eq!(begins(100), None);
    // A repeated assignment is accepted again, and does not begin the task.
    fake.push(assign.into(), vec![]);
    fake.accept(token).await;
    assert_eq!(begins(100), None);
    fake.reply(Proceed { token }.into()).await;
    assert_eq!(begins(5_000), Some(token));

    // A welcome that does not abandon the task lets it begin, too.
    let (spec, token) = fake.task(10, 10, &[]);
    fake.push(Assign { token, attempt: 1, spec, inline: vec![] }.into(), vec![]);
    fake.accept(token).await;
    fake.polls = Polls::SessionGone;
    let (_, hello, _) = fake.welcome(vec![]).await;
    fake.polls = Polls::Commands;
    assert!(hello.running.contains(&token));
    assert_eq!(begins(5_000), Some(token));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_stops_the_work_and_a_late_assignment_is_refused() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start(&fake, 1);
    let _served = serving(&session, echo());
    fake.welcome(vec![]).await;
    let (spec, token) = fake.task(10, 10, &[("echo_ms", 60_000)]);
    fake.assign(&spec, token).await;
    fake.begun(token).await;
    let late = LeaseToken::from_bytes(random_id());
    fake.commands = vec![
        Command { seq: 1, action: Action::Cancel { token } },
        Command { seq: 2, action: Action::Cancel { token: late } },
    ];
    fake.push(Hint {}.into(), vec![]);
    let (delivery, _) = fake.delivery().await;
    assert_eq!((delivery.outcome, delivery.credit), (AttemptOutcome::Cancelled, 2));
    fake.reply(Stored { token, accepted: true }.into()).await;
    while !fake.commands.is_empty() {
        fake.poll().await;
    }
    let assign = Assign { token: late, attempt: 1, spec, inline: vec![] };
    fake.push(assign.into(), vec![]);
    let (delivery, _) = fake.delivery().await;
    assert_eq!((delivery.token, delivery.outcome, delivery.credit), (late, AttemptOutcome::Cancelled, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_held_across_a_restart_of_the_scheduler() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start(&fake, 1);
    let _served = serving(&session, echo());
    fake.welcome(vec![]).await;
    let (spec, token) = fake.task(10, 10, &[]);
    fake.assign(&spec, token).await;
    let (first, _) = fake.delivery().await;
    // The scheduler ends before it replies.
    drop(fake);
    let mut fake = Fake::start(dir.path()).await;
    let (_, hello, ready) = fake.welcome(vec![]).await;
    assert_eq!((hello.held, hello.running.len(), ready.credit), (vec![token], 0, 1), "its slot is free");
    let (again, blobs) = fake.delivery().await;
    assert_eq!((again.token, again.credit), (token, 1));
    assert_eq!(again.outcome, first.outcome);
    assert_eq!(blobs[0], rgb_to_bgr(&pattern(10, 10)));
    fake.reply(Stored { token, accepted: true }.into()).await;
    while !fake.poll().await.running.is_empty() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_session_is_followed_by_a_hello_with_the_running_tasks() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start(&fake, 2);
    let _served = serving(&session, echo());
    fake.welcome(vec![]).await;
    let (spec, token) = fake.task(10, 10, &[("echo_ms", 1_500)]);
    fake.assign(&spec, token).await;
    fake.polls = Polls::SessionGone;
    let (_, hello, ready) = fake.welcome(vec![]).await;
    assert_eq!((hello.running, hello.held.len(), ready.credit), (vec![token], 0, 1));
    fake.polls = Polls::Commands;
    let (delivery, _) = fake.delivery().await;
    assert_eq!((delivery.token, delivery.credit), (token, 2));
    assert!(done(&delivery).1);
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_work_stops_and_delivers_nothing() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start(&fake, 1);
    let _served = serving(&session, echo());
    fake.welcome(vec![]).await;
    // Abandoned by the reply to an accept.
    let (spec, token) = fake.task(10, 10, &[("echo_ms", 60_000)]);
    fake.push(Assign { token, attempt: 1, spec, inline: vec![] }.into(), vec![]);
    fake.accept(token).await;
    fake.reply(Abandon { token }.into()).await;
    // Wait until its slot is free again.
    while fake.ready().await.credit != 2 {}
    // Abandoned by the welcome of a new session.
    let (spec, token) = fake.task(10, 10, &[("echo_ms", 60_000)]);
    fake.assign(&spec, token).await;
    fake.polls = Polls::SessionGone;
    let (_, hello, mut ready) = fake.welcome(vec![token]).await;
    fake.polls = Polls::Commands;
    assert_eq!(hello.running, [token]);
    while ready.credit == 0 {
        ready = fake.ready().await;
    }
    assert_eq!(ready.credit, 1);
    // The next delivery is that of the next task.
    let (spec, token) = fake.task(10, 10, &[]);
    fake.assign(&spec, token).await;
    let (delivery, _) = fake.delivery().await;
    assert_eq!((delivery.token, delivery.credit), (token, 2));
}

struct Panics;

impl Backend for Panics {
    fn models(&self) -> Vec<ModelOffer> {
        vec![ModelOffer { loaded: true, ..fake::offer("lama") }]
    }

    fn load(&mut self, _: &ModelName, _: &dyn Progress) -> Result<Duration, Failure> {
        Ok(Duration::ZERO)
    }

    fn run(&mut self, work: Work<'_>, progress: &dyn Progress) -> Result<Answer, Failure> {
        assert!(work.params.int("panic").is_none(), "on demand");
        echo().run(work, progress)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_becomes_a_failure_and_the_next_task_works() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start(&fake, 1);
    let _served = serving(&session, Panics);
    fake.welcome(vec![]).await;
    let (spec, token) = fake.task(10, 10, &[("panic", 1)]);
    fake.assign(&spec, token).await;
    let (delivery, _) = fake.delivery().await;
    assert_eq!(failure(&delivery).kind, FailureKind::Internal);
    assert!(failure(&delivery).message.contains("on demand"));
    assert_eq!(delivery.loaded, ["lama".parse::<ModelName>().unwrap()]);
    let (spec, token) = fake.task(10, 10, &[]);
    fake.assign(&spec, token).await;
    done(&fake.delivery().await.0);
}

/// Serves `lama` at once, and verifies `good` and `bad` between tasks.
struct Verifies;

impl Backend for Verifies {
    fn models(&self) -> Vec<ModelOffer> {
        ["lama", "good", "bad", "gone"].map(fake::offer).into()
    }

    fn file_state(&self, model: &ModelName) -> FileState {
        match model.as_str() {
            "lama" => FileState::Verified,
            "gone" => FileState::Unusable("there is no file".into()),
            _ => FileState::Unverified,
        }
    }

    fn verify(&mut self, model: &ModelName) -> Result<(), Failure> {
        if model.as_str() == "bad" { Err(Failure::new(FailureKind::ModelLoad, "cut off")) } else { Ok(()) }
    }

    fn load(&mut self, _: &ModelName, _: &dyn Progress) -> Result<Duration, Failure> {
        Err(Failure::new(FailureKind::ModelLoad, "nothing loads"))
    }

    fn run(&mut self, _: Work<'_>, _: &dyn Progress) -> Result<Answer, Failure> {
        unreachable!("nothing is loaded")
    }
}

/// A model is offered once it is verified, and withheld with the reason if it cannot be used.
#[tokio::test(flavor = "multi_thread")]
async fn models_are_offered_when_they_are_verified() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start(&fake, 1);
    let offers = OfferTable::of(&Verifies);
    session.set_offers(offers.offers(&Verifies));
    let pipeline = Pipeline::start(&session, 1, 1_000_000).unwrap();
    let theirs = Arc::clone(&session);
    let _served = std::thread::spawn(move || serve(&theirs, &pipeline, &mut Verifies, offers));
    let seen = |hello: &Hello| {
        let models: Vec<_> = hello.info.models.iter().map(|offer| offer.model.to_string()).collect();
        let withheld = hello.info.withheld.iter();
        (models, withheld.map(|w| format!("{}: {}", w.model, w.reason)).collect::<Vec<_>>())
    };
    let verified = vec!["lama".to_owned(), "good".into()];
    let withheld = vec!["bad: cut off".to_owned(), "gone: there is no file".into()];
    loop {
        // Not answered, so that the node says hello again; what it verified meanwhile is in the next one.
        let (_, hello) = fake.hello().await;
        assert!(!hello.info.models.iter().any(|offer| ["bad", "gone"].contains(&offer.model.as_str())));
        if seen(&hello) == (verified.clone(), withheld.clone()) {
            break;
        }
    }
    fake.welcome(vec![]).await;
    // A file that cannot be loaded is not offered any more, and the task's failure says so.
    let (spec, token) = fake.task(10, 10, &[]);
    fake.assign(&spec, token).await;
    let (_, hello, _) = fake.welcome(vec![]).await;
    assert_eq!(seen(&hello).0, ["good"]);
    assert_eq!(failure(&fake.delivery().await.0).message, "nothing loads", "held, and sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_job_counts_as_failed() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start(&fake, 1);
    fake.welcome(vec![]).await;
    let (spec, token) = fake.task(10, 10, &[]);
    fake.assign(&spec, token).await;
    assert!(matches!(session.next_job(Duration::from_secs(5)), NextJob::Job(_)));
    assert_eq!(failure(&fake.delivery().await.0).kind, FailureKind::Internal);
    assert!(matches!(session.next_job(Duration::from_millis(10)), NextJob::Idle));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_refusal_is_reported_and_a_temporary_one_is_retried() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start(&fake, 1);
    fake.reject(Failure::new(FailureKind::Overloaded, "later")).await;
    fake.reject(Failure::new(FailureKind::InvalidInput, "the name node-1 is taken")).await;
    match session.next_job(Duration::from_secs(10)) {
        NextJob::Closed(Some(failure)) => assert_eq!(failure.message, "the name node-1 is taken"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_command_finishes_the_running_task() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start_with(&fake, 1, 1);
    let served = serving(&session, echo());
    fake.welcome(vec![]).await;
    let (spec, token) = fake.task(10, 10, &[("echo_ms", 600)]);
    fake.assign(&spec, token).await;
    fake.begun(token).await;
    let (spec, prepared) = fake.task(10, 10, &[]);
    fake.assign(&spec, prepared).await;
    fake.commands = vec![Command { seq: 1, action: Action::Drain }];
    fake.push(Hint {}.into(), vec![]);
    let (delivery, _) = fake.delivery().await;
    assert_eq!(
        (delivery.token, delivery.outcome),
        (prepared, AttemptOutcome::Cancelled),
        "given back at once"
    );
    fake.reply(Stored { token: prepared, accepted: true }.into()).await;
    let (delivery, _) = fake.delivery().await;
    assert_eq!(delivery.credit, 2, "a draining node takes nothing more");
    done(&delivery);
    fake.reply(Stored { token, accepted: true }.into()).await;
    fake.until(|received| matches!(received, fake::Received::Goodbye).then_some(())).await;
    assert_eq!(served.join().unwrap(), None);
}

/// R4.4: a removed node ends, although it was registered before, and stops what it works on.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_stops_its_task_and_ends_with_the_refusal() {
    let dir = short_dir();
    let mut fake = Fake::start(dir.path()).await;
    let session = start(&fake, 1);
    let served = serving(&session, echo());
    fake.welcome(vec![]).await;
    let (spec, token) = fake.task(10, 10, &[("echo_ms", 600_000)]);
    fake.assign(&spec, token).await;
    fake.begun(token).await;
    fake.polls = Polls::SessionGone;
    fake.reject_removed(Failure::new(FailureKind::InvalidInput, "ann removed it")).await;
    let ended = tokio::task::spawn_blocking(move || served.join().unwrap()).await.unwrap();
    assert_eq!(ended.map(|failure| failure.message), Some("ann removed it".to_owned()));
}

#[test]
fn a_session_without_a_scheduler_closes_at_once() {
    let dir = short_dir();
    let endpoints = lamagrid_transport::Endpoints::new(dir.path());
    let session = Session::start(SessionOptions {
        endpoints,
        bundle: None,
        info: info("node-1"),
        slots: 1,
        overlap: 0,
        sampler: None,
        adjust: None,
    })
    .unwrap();
    let began = std::time::Instant::now();
    session.close();
    assert!(began.elapsed() < Duration::from_millis(900));
    assert!(matches!(session.next_job(Duration::ZERO), NextJob::Closed(None)));
}

#[test]
fn sessions_and_jobs_may_be_used_from_any_thread() {
    fn any_thread<T: Send + Sync>() {}
    any_thread::<Session>();
    any_thread::<lamagrid_session::Job>();
}
