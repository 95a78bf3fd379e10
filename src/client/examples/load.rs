//! Generates load on a scheduler for `bench/tasks.py` and `bench/scale.py`, which start it, its nodes and this program.
//!
//! usage: load DATA_DIR run TASKS IN_FLIGHT BYTES full|process ECHO_MS
//!        load DATA_DIR queue TASKS BYTES full|process [CLIENTS]
//!        load DATA_DIR cancel TASKS
//!        load DATA_DIR overload PER_SECOND SECONDS ECHO_MS
//!
//! Each mode prints one line of JSON; times are in milliseconds.
//!
//! `run` keeps IN_FLIGHT tasks in flight. `queue` submits tasks and exits. `cancel` cancels a task that
//! occupies the only slot while another task waits, and measures the time from the cancel to the end of the
//! other task: that shows that the node has stopped. `overload` submits at a fixed rate regardless of the
//! answers, and waits for all accepted tasks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;

use lamagrid_client::{Client, ClientError, ClientOptions, Endpoints, Input, NewTask, new_task_id};
use lamagrid_domain::{BlobForm, Durability, Role, Scalar, Status, TaskId};
use lamagrid_process::random_id;

/// Tasks that one client of `queue` follows before a new client replaces it.
const FOLLOWED: u64 = 500;
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone)]
struct Load {
    endpoints: Endpoints,
    client: Client,
    bytes: usize,
    durability: Durability,
    echo_ms: i64,
}

impl Load {
    fn task(&self) -> Result<NewTask> {
        let pixels = self.bytes.max(4) / 4;
        // Random, because a store that shares equal blobs would look better than it is.
        let blob = |role, channels: u8| {
            let form = BlobForm::Raw { height: 1, width: pixels as u32, channels };
            let mut bytes = vec![0; pixels * usize::from(channels)];
            bytes.iter_mut().zip(random_id()).for_each(|(byte, random)| *byte = random);
            Input { role, form, content: Bytes::from(bytes).into() }
        };
        let inputs = vec![blob(Role::Image, 3), blob(Role::Mask, 1)];
        let mut task = NewTask::new(new_task_id(), "lama".parse()?, inputs);
        task.durability = self.durability;
        let params = BTreeMap::from([("echo_ms".to_owned(), Scalar::Int(self.echo_ms))]);
        Ok(if self.echo_ms > 0 { task.with_params(params)? } else { task })
    }

    async fn submit(&self) -> Result<TaskId> {
        let task = self.task()?;
        let id = task.id;
        self.client.submit(task, PATIENCE).await?;
        Ok(id)
    }

    async fn finish(&self, id: TaskId) -> Result<()> {
        let outcome = self.client.wait(id, PATIENCE).await?;
        ensure!(outcome.task.status == Status::Completed, "task {id} ended as {:?}", outcome.task);
        Ok(())
    }

    async fn run(self, tasks: u64, in_flight: u64) -> Result<String> {
        let left = Arc::new(AtomicU64::new(tasks));
        let began = Instant::now();
        let workers: Vec<_> = (0..in_flight)
            .map(|_| {
                let (load, left) = (self.clone(), left.clone());
                tokio::spawn(async move {
                    let mut times = Vec::new();
                    while left
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                        .is_ok()
                    {
                        let began = Instant::now();
                        let id = load.submit().await?;
                        load.finish(id).await?;
                        times.push(ms(began.elapsed()));
                        // As a caller does that has read its picture, so that kept results do not add load.
                        load.client.release(id, PATIENCE).await?;
                    }
                    anyhow::Ok(times)
                })
            })
            .collect();
        let mut times = Vec::new();
        for worker in workers {
            times.extend(worker.await??);
        }
        let seconds = began.elapsed().as_secs_f64();
        let rate = times.len() as f64 / seconds;
        Ok(format!("{{\"tasks\": {}, \"per_second\": {rate:.1}, {}}}", times.len(), quantiles(times)))
    }

    async fn queue(self, tasks: u64, clients: u64) -> Result<String> {
        let began = Instant::now();
        let left = Arc::new(AtomicU64::new(tasks));
        let workers: Vec<_> = (0..clients)
            .map(|_| {
                let (mut load, left) = (self.clone(), left.clone());
                tokio::spawn(async move {
                    let mut submitted = 0;
                    while left
                        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                        .is_ok()
                    {
                        // A client's own work grows with its tasks; a new client keeps it out of the measurement.
                        if submitted % FOLLOWED == 0 {
                            load.client = Client::new(&load.endpoints, load.client.options().clone());
                        }
                        submitted += 1;
                        load.submit().await?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for worker in workers {
            worker.await??;
        }
        Ok(format!(
            "{{\"tasks\": {tasks}, \"per_second\": {:.1}}}",
            tasks as f64 / began.elapsed().as_secs_f64()
        ))
    }

    async fn cancel(self, tasks: u64) -> Result<String> {
        let (long, short) = (Self { echo_ms: 60_000, ..self.clone() }, Self { echo_ms: 0, ..self });
        let mut times = Vec::new();
        for _ in 0..tasks {
            let task = long.task()?;
            let id = task.id;
            long.client.submit(task, PATIENCE).await?;
            let mut events = long.client.follow(id).await?;
            loop {
                let event = tokio::time::timeout(PATIENCE, events.next()).await??;
                let event = event.context("the task ended by itself")?;
                ensure!(!event.status.is_terminal(), "the task ended by itself: {}", event.status);
                if event.advance.step > 0 {
                    break;
                }
            }
            let next = short.submit().await?;
            let began = Instant::now();
            let outcome = long.client.cancel(id, PATIENCE).await?;
            ensure!(outcome.status == Status::Cancelled, "the cancelled task is {}", outcome.status);
            short.finish(next).await?;
            times.push(ms(began.elapsed()));
        }
        Ok(format!("{{\"tasks\": {tasks}, {}}}", quantiles(times)))
    }

    async fn overload(self, per_second: f64, seconds: f64) -> Result<String> {
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / per_second));
        let began = Instant::now();
        let mut waits = tokio::task::JoinSet::new();
        while began.elapsed().as_secs_f64() < seconds {
            ticks.tick().await;
            let load = self.clone();
            waits.spawn(async move {
                let began = Instant::now();
                let task = load.task()?;
                let id = task.id;
                match load.client.submit(task, PATIENCE).await {
                    Ok(_) => {}
                    Err(ClientError::Refused { .. }) => return anyhow::Ok(Some(ms(began.elapsed()))),
                    Err(error) => return Err(error.into()),
                }
                load.finish(id).await?;
                load.client.release(id, PATIENCE).await?;
                Ok(None)
            });
        }
        let (mut refused, mut accepted) = (Vec::new(), 0);
        while let Some(outcome) = waits.join_next().await {
            match outcome?? {
                Some(ms) => refused.push(ms),
                None => accepted += 1,
            }
        }
        Ok(format!("{{\"accepted\": {accepted}, \"refused\": {}, {}}}", refused.len(), quantiles(refused)))
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn quantiles(mut values: Vec<f64>) -> String {
    values.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| {
        let last = values.len().saturating_sub(1);
        values.get((share * last as f64).round() as usize).map_or("null".to_owned(), |ms| format!("{ms:.3}"))
    };
    format!("\"p50\": {}, \"p99\": {}, \"max\": {}", at(0.5), at(0.99), at(1.0))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let text =
        |n: usize| args.get(n).map(String::as_str).context("an argument is missing; see the source's head");
    let number = |n: usize| -> Result<u64> { Ok(text(n)?.parse()?) };
    let durability = |n: usize| {
        Ok::<_, anyhow::Error>(match text(n)? {
            "full" => Durability::Full,
            "process" => Durability::Process,
            other => bail!("durability is full or process, not {other}"),
        })
    };
    let data_dir = Path::new(text(0)?);
    let endpoints = Endpoints::found_by(lamagrid_config::socket_finder(data_dir)?);
    let options = ClientOptions {
        data_dir: Some(data_dir.to_path_buf()),
        max_tasks: 1_000_000,
        ..ClientOptions::default()
    };
    let client = Client::new(&endpoints, options);
    let load = Load { endpoints, client, bytes: 200, durability: Durability::Process, echo_ms: 0 };
    let line = match text(1)? {
        "run" => {
            let load = Load {
                bytes: number(4)? as usize,
                durability: durability(5)?,
                echo_ms: number(6)? as i64,
                ..load
            };
            load.run(number(2)?, number(3)?).await?
        }
        "queue" => {
            let load = Load { bytes: number(3)? as usize, durability: durability(4)?, ..load };
            load.queue(number(2)?, if args.len() > 5 { number(5)? } else { 64 }).await?
        }
        "cancel" => load.cancel(number(2)?).await?,
        "overload" => {
            let load = Load { echo_ms: number(4)? as i64, ..load };
            load.overload(number(2)? as f64, number(3)? as f64).await?
        }
        other => bail!("{other} is no load; see the source's head"),
    };
    #[expect(clippy::print_stdout, reason = "the caller reads it")]
    {
        println!("{line}");
    }
    Ok(())
}
