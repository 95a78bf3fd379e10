//! What may come in: bounds on tasks and bytes, in total and per client, and what makes room for more important work.
//!
//! Does not: reserve anything for an offer; what was allowed can be refused when it comes.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use lamagrid_domain::{BlobForm, Event, Failure, FailureKind, QueueName, Role, TaskId, TaskSpec};
use lamagrid_wire::frame::MAX_INLINE_BYTES;
use lamagrid_wire::router::PeerId;

use super::{Core, Effect, Ended, Now, StoreOp, shares};

/// Room beside the pixels in an encoded file: metadata, colour profiles.
const FILE_SLACK_BYTES: u64 = 1 << 20;
/// Tasks that one submission may evict; more would hold up everybody.
const MAX_EVICTED: usize = 256;
/// Full, and nearly so, in percent: there an alarm is raised.
const ALARMS: [u8; 2] = [100, 80];
/// An alarm ends below this, so that it does not come and go at its border.
const CALM: u8 = 70;

/// What a task would add.
pub(super) struct Wish<'a> {
    pub(super) queue: &'a QueueName,
    /// See [`shares::holder`].
    pub(super) holder: Box<str>,
    pub(super) bytes: u64,
    pub(super) priority: i8,
}

impl<'a> Wish<'a> {
    pub(super) fn of(spec: &'a TaskSpec) -> Self {
        Self {
            queue: &spec.queue,
            holder: shares::holder(&spec.owner, spec.client.as_ref()),
            bytes: spec.input_bytes(),
            priority: spec.priority,
        }
    }
}

/// What is used of the bounds.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// Inputs of live tasks and dead letters, and results.
    spool_bytes: u64,
    /// Unfinished tasks and their bytes, by holder.
    held: HashMap<Box<str>, (u64, u64)>,
    /// Ended tasks that can be replayed.
    dead: u64,
    /// The last alarm of each queue, and of the spool; none is 0.
    queue_alarms: BTreeMap<QueueName, u8>,
    spool_alarm: u8,
}

impl Usage {
    pub(super) fn spool_bytes(&self) -> u64 {
        self.spool_bytes
    }

    pub(super) fn dead_letters(&self) -> u64 {
        self.dead
    }

    pub(super) fn enter(&mut self, spec: &TaskSpec) {
        let held = self.held.entry(shares::holder(&spec.owner, spec.client.as_ref())).or_default();
        held.0 += 1;
        held.1 = held.1.saturating_add(spec.input_bytes());
        self.spool_bytes = self.spool_bytes.saturating_add(spec.input_bytes());
    }

    pub(super) fn leave(&mut self, spec: &TaskSpec) {
        let holder = shares::holder(&spec.owner, spec.client.as_ref());
        if let Some(held) = self.held.get_mut(&holder) {
            held.0 -= 1;
            held.1 = held.1.saturating_sub(spec.input_bytes());
            if held.0 == 0 {
                self.held.remove(&holder);
            }
        }
        self.released(spec.input_bytes());
    }

    /// A task has ended and leaves this much behind.
    pub(super) fn keep(&mut self, ended: &Ended) {
        self.dead += u64::from(ended.dead.is_some());
        self.spool_bytes = self.spool_bytes.saturating_add(ended.kept_bytes());
    }

    /// It is removed, or a dead letter's inputs go over to another task.
    pub(super) fn give_up(&mut self, ended: &Ended) {
        self.dead -= u64::from(ended.dead.is_some());
        self.released(ended.kept_bytes());
    }

    pub(super) fn released(&mut self, bytes: u64) {
        self.spool_bytes = self.spool_bytes.saturating_sub(bytes);
    }
}

/// A bound that is nearly or fully reached, or is not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Level {
    /// Waiting tasks of this queue, or the bytes of the spool.
    pub(crate) queue: Option<QueueName>,
    /// 100, 80, or 0 once it is calm again.
    pub(crate) percent: u8,
    pub(crate) used: u64,
    pub(crate) limit: u64,
}

/// The alarm that a bound changes to, if it changes.
fn next_alarm(last: u8, used: u64, limit: u64) -> Option<u8> {
    let percent = u128::from(used) * 100 / u128::from(limit.max(1));
    let reached = ALARMS.into_iter().find(|alarm| percent >= u128::from(*alarm)).unwrap_or(0);
    let calms = last > 0 && percent < u128::from(CALM);
    (reached > last || calms).then_some(reached)
}

impl Core {
    /// Whether a task may come in, and which ones must go for it: each of a lower priority than it, and none of them if
    /// they are not enough.
    pub(super) fn admit(&self, peer: &PeerId, wish: &Wish<'_>) -> Result<Vec<TaskId>, Failure> {
        let overloaded = |text| Err(Failure::new(FailureKind::Overloaded, text));
        let queue = wish.queue;
        let Some(&max_tasks) = self.settings.queues.get(queue) else {
            let known: Vec<_> = self.settings.queues.keys().map(QueueName::as_str).collect();
            let text = format!("there is no queue {queue}; the configuration has {}", known.join(", "));
            return Err(Failure::new(FailureKind::InvalidInput, text));
        };
        let outstanding = self.followed.get(peer).map_or(0, std::collections::BTreeSet::len);
        let limit = self.settings.scheduler.max_outstanding_per_peer;
        if outstanding >= limit as usize {
            return overloaded(format!(
                "{outstanding} tasks of this connection are unfinished, at most {limit} are allowed"
            ));
        }
        let limits = &self.settings.limits;
        let (tasks, bytes) = self.usage.held.get(&wish.holder).copied().unwrap_or_default();
        if tasks >= limits.max_client_tasks {
            return overloaded(format!(
                "client {} has {tasks} unfinished tasks, at most {} are allowed (limits.max_client_tasks); wait \
                 for some of them to end",
                wish.holder, limits.max_client_tasks
            ));
        }
        if bytes.saturating_add(wish.bytes) > limits.max_client_bytes {
            return overloaded(format!(
                "the unfinished tasks of client {} have {bytes} bytes; with {} more they would pass the {} that are \
                 allowed (limits.max_client_bytes); wait for some of them to end",
                wish.holder, wish.bytes, limits.max_client_bytes
            ));
        }
        let too_many = (self.queue_len[queue] + 1).saturating_sub(max_tasks);
        let too_much =
            self.usage.spool_bytes.saturating_add(wish.bytes).saturating_sub(limits.max_spool_bytes);
        if too_many == 0 && too_much == 0 {
            return Ok(Vec::new());
        }
        if let Some(victims) = self.victims(wish, too_many, too_much) {
            return Ok(victims);
        }
        overloaded(if too_many > 0 {
            format!("queue {queue} is full: {max_tasks} tasks wait already; try again later")
        } else {
            format!(
                "the spool is full: inputs and results have {} of {} bytes (limits.max_spool_bytes); try again later",
                self.usage.spool_bytes, limits.max_spool_bytes
            )
        })
    }

    /// Waiting tasks whose end frees so many places and bytes: lowest priority first, then those that came last.
    fn victims(&self, wish: &Wish<'_>, places: u64, bytes: u64) -> Option<Vec<TaskId>> {
        let queues = self.waiting.iter().filter(|((queue, _), _)| places == 0 || queue == wish.queue);
        let mut lower: Vec<_> =
            queues.flat_map(|(_, waiting)| waiting.below(wish.priority).take(MAX_EVICTED)).collect();
        lower.sort_unstable();
        let (mut victims, mut freed) = (Vec::new(), 0_u64);
        for rank in lower.into_iter().rev().take(MAX_EVICTED) {
            if victims.len() as u64 >= places && freed >= bytes {
                break;
            }
            freed = freed.saturating_add(self.tasks[&rank.task()].spec.input_bytes());
            victims.push(rank.task());
        }
        (victims.len() as u64 >= places && freed >= bytes).then_some(victims)
    }

    /// Ends `evicted` and does `enter`, in one transaction.
    pub(super) fn make_room(&mut self, now: Now, evicted: Vec<TaskId>, enter: impl FnOnce(&mut Self)) {
        self.together(|core| {
            for id in evicted {
                let text = "the task was given up unbegun: the grid is full, and more important work came";
                let failure = Failure::new(FailureKind::Overloaded, text);
                core.end(now, id, Event::Fail(failure), None);
            }
            enter(core);
        });
    }

    /// Does `act`; what it writes becomes durable together, before any message of it leaves.
    pub(super) fn together(&mut self, act: impl FnOnce(&mut Self)) {
        let before = self.effects.len();
        act(self);
        let (mut ops, mut others) = (Vec::new(), Vec::new());
        for effect in self.effects.split_off(before) {
            match effect {
                Effect::Store(StoreOp::Together(inner)) => ops.extend(inner),
                Effect::Store(op) => ops.push(op),
                other => others.push(other),
            }
        }
        match ops.len() {
            0 => {}
            1 => self.effects.extend(ops.into_iter().map(Effect::Store)),
            _ => self.emit(Effect::Store(StoreOp::Together(ops))),
        }
        self.effects.extend(others);
    }

    /// Raises and ends alarms. Looked at after every input, so nothing is copied while nothing changes.
    pub(super) fn watch_levels(&mut self) {
        let mut changed = Vec::new();
        let usage = &self.usage;
        for (queue, limit) in &self.settings.queues {
            let last = usage.queue_alarms.get(queue).copied().unwrap_or(0);
            let used = self.queue_len[queue];
            let percent = next_alarm(last, used, *limit);
            changed.extend(percent.map(|percent| Level {
                queue: Some(queue.clone()),
                percent,
                used,
                limit: *limit,
            }));
        }
        let (used, limit) = (usage.spool_bytes, self.settings.limits.max_spool_bytes);
        let percent = next_alarm(usage.spool_alarm, used, limit);
        changed.extend(percent.map(|percent| Level { queue: None, percent, used, limit }));
        for level in changed {
            match &level.queue {
                Some(queue) => _ = self.usage.queue_alarms.insert(queue.clone(), level.percent),
                None => self.usage.spool_alarm = level.percent,
            }
            self.emit(Effect::Level(level));
        }
    }

    /// The largest input: raw RGB of `max_pixels`, or a file of that many uncompressed pixels.
    pub(super) fn max_blob_bytes(&self) -> u64 {
        self.settings.limits.max_pixels.saturating_mul(4).saturating_add(FILE_SLACK_BYTES)
    }

    pub(super) fn check_blobs(
        &self,
        spec: &TaskSpec,
        inline_roles: &[Role],
        inline: &[Bytes],
    ) -> Result<(), String> {
        let mut roles: Vec<Role> = spec.blobs.iter().map(|b| b.role).collect();
        roles.sort_unstable();
        let count = roles.len();
        roles.dedup();
        if roles.len() != count || roles.contains(&Role::Result) {
            return Err("a task has each of image, mask and example at most once".to_owned());
        }
        if !roles.contains(&Role::Image) {
            return Err("the image is missing".to_owned());
        }
        for blob in &spec.blobs {
            if blob.len > self.max_blob_bytes() {
                let max = self.settings.limits.max_pixels;
                return Err(format!("{} has {} bytes, more than {max} pixels have", blob.role, blob.len));
            }
            if let BlobForm::Raw { height, width, channels } = blob.form {
                let pixels = u64::from(height) * u64::from(width);
                if blob.form.raw_len() != Some(blob.len) || pixels == 0 || !matches!(channels, 1 | 3) {
                    return Err(format!(
                        "{} has {} bytes, which is not {height} x {width} x {channels}",
                        blob.role, blob.len
                    ));
                }
                if pixels > self.settings.limits.max_pixels {
                    return Err(format!(
                        "{} has {pixels} pixels, at most {} are allowed (limits.max_pixels)",
                        blob.role, self.settings.limits.max_pixels
                    ));
                }
            }
        }
        if inline_roles.len() != inline.len() {
            return Err("the inline frames do not match their roles".to_owned());
        }
        for (role, bytes) in inline_roles.iter().zip(inline) {
            let announced = spec.blobs.iter().find(|b| b.role == *role).map(|b| b.len);
            if announced != Some(bytes.len() as u64) || bytes.len() > MAX_INLINE_BYTES {
                return Err(format!("the inline {role} is not what was announced"));
            }
        }
        Ok(())
    }
}
