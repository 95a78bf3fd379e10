//! What may come in: bounds on tasks and bytes, in total, per owner and per client, free space on the disk, and what
//! makes room for more important work.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use lamagrid_domain::{
    BlobForm, ClientName, Event, Failure, FailureKind, Owner, QueueName, Role, TaskId, TaskSpec,
};
use lamagrid_protocol::PeerId;
use lamagrid_protocol::frame::MAX_INLINE_BYTES;

use crate::core::effect::Authority;
use crate::core::{Core, Effect, FinishedTask};

/// Room beside the pixels in an encoded file: metadata, colour profiles.
const FILE_SLACK_BYTES: u64 = 1 << 20;
/// Tasks that one submission may evict; more would hold up everybody.
const MAX_EVICTED: usize = 256;
/// Full, and nearly so, in percent: there an alarm is raised.
const ALARMS: [u8; 2] = [100, 80];
/// An alarm ends below this, so that it does not come and go at its border.
const CALM: u8 = 70;

/// An owner from another host may have this many waiting tasks for each free place of their queue. Alone it gets nine
/// tenths of the queue, and a new owner finds a place however many others fill it.
const OWNER_SHARE: u64 = 9;

/// What a task would add.
pub(crate) struct AdmissionRequest<'a> {
    pub(crate) queue: &'a QueueName,
    pub(crate) owner: &'a Owner,
    pub(crate) client: Option<&'a ClientName>,
    pub(crate) bytes: u64,
    pub(crate) priority: i8,
    pub(crate) authority: Authority,
}

impl<'a> AdmissionRequest<'a> {
    pub(crate) fn of(spec: &'a TaskSpec, authority: Authority) -> Self {
        Self {
            queue: &spec.queue,
            owner: &spec.owner,
            client: spec.client.as_ref(),
            bytes: spec.input_bytes(),
            priority: spec.priority,
            authority,
        }
    }
}

/// Unfinished tasks and uploads, and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) tasks: u64,
    pub(crate) bytes: u64,
}

impl Held {
    fn add(&mut self, bytes: u64) {
        self.tasks += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn sub(&mut self, bytes: u64) {
        self.tasks -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// What one owner uses.
#[derive(Debug, Default)]
struct OwnerUsage {
    held: Held,
    clients: HashMap<Option<ClientName>, Held>,
    /// Results and dead letters.
    kept_bytes: u64,
    /// Waiting tasks by queue.
    queued: BTreeMap<QueueName, u64>,
}

/// What is used of the bounds.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// Inputs of live tasks and dead letters, results, and what is reserved for uploads.
    spool_bytes: u64,
    /// Of that, what is reserved.
    reserved_bytes: u64,
    owners: HashMap<Owner, OwnerUsage>,
    /// Ended tasks that can be replayed.
    dead: u64,
    /// Free space on the file system, as it was last looked at.
    free_bytes: Option<u64>,
    /// The last alarm of each queue, of the spool, and of the file system; none is 0.
    queue_alarms: BTreeMap<QueueName, u8>,
    spool_alarm: u8,
    disk_alarm: u8,
}

impl Usage {
    pub(crate) fn spool_bytes(&self) -> u64 {
        self.spool_bytes
    }

    pub(crate) fn reserved_bytes(&self) -> u64 {
        self.reserved_bytes
    }

    pub(crate) fn free_bytes(&self) -> Option<u64> {
        self.free_bytes
    }

    pub(crate) fn look(&mut self, free_bytes: u64) {
        self.free_bytes = Some(free_bytes);
    }

    pub(crate) fn dead_letters(&self) -> u64 {
        self.dead
    }

    fn owner(&mut self, owner: &Owner) -> &mut OwnerUsage {
        if !self.owners.contains_key(owner) {
            self.owners.insert(owner.clone(), OwnerUsage::default());
        }
        self.owners.get_mut(owner).expect("inserted above")
    }

    /// Changes what an owner uses, and forgets an owner that uses nothing.
    fn change(&mut self, owner: &Owner, change: impl FnOnce(&mut OwnerUsage)) {
        let usage = self.owner(owner);
        change(usage);
        if usage.held.tasks == 0 && usage.kept_bytes == 0 && usage.queued.is_empty() {
            self.owners.remove(owner);
        }
    }

    fn hold(&mut self, owner: &Owner, client: Option<&ClientName>, bytes: u64) {
        let usage = self.owner(owner);
        usage.held.add(bytes);
        usage.clients.entry(client.cloned()).or_default().add(bytes);
        self.spool_bytes = self.spool_bytes.saturating_add(bytes);
    }

    fn give_back(&mut self, owner: &Owner, client: Option<&ClientName>, bytes: u64) {
        self.change(owner, |usage| {
            usage.held.sub(bytes);
            let client = client.cloned();
            if let Some(held) = usage.clients.get_mut(&client) {
                held.sub(bytes);
                if held.tasks == 0 {
                    usage.clients.remove(&client);
                }
            }
        });
        self.spool_bytes = self.spool_bytes.saturating_sub(bytes);
    }

    /// A task comes in.
    pub(crate) fn enter(&mut self, spec: &TaskSpec) {
        self.hold(&spec.owner, spec.client.as_ref(), spec.input_bytes());
    }

    /// It ends.
    pub(crate) fn leave(&mut self, spec: &TaskSpec) {
        self.give_back(&spec.owner, spec.client.as_ref(), spec.input_bytes());
    }

    /// Room is reserved for an upload.
    pub(crate) fn reserve(&mut self, owner: &Owner, client: Option<&ClientName>, bytes: u64) {
        self.hold(owner, client, bytes);
        self.reserved_bytes = self.reserved_bytes.saturating_add(bytes);
    }

    /// The upload has become a task, or is given up.
    pub(crate) fn unreserve(&mut self, owner: &Owner, client: Option<&ClientName>, bytes: u64) {
        self.give_back(owner, client, bytes);
        self.reserved_bytes = self.reserved_bytes.saturating_sub(bytes);
    }

    /// A task waits in its queue.
    pub(crate) fn queued(&mut self, spec: &TaskSpec) {
        *self.owner(&spec.owner).queued.entry(spec.queue.clone()).or_default() += 1;
    }

    /// It does not any more.
    pub(crate) fn unqueued(&mut self, spec: &TaskSpec) {
        self.change(&spec.owner, |usage| {
            if let Some(waiting) = usage.queued.get_mut(&spec.queue) {
                *waiting -= 1;
                if *waiting == 0 {
                    usage.queued.remove(&spec.queue);
                }
            }
        });
    }

    /// A task has ended and leaves this much behind.
    pub(crate) fn keep(&mut self, ended: &FinishedTask) {
        self.dead += u64::from(ended.dead.is_some());
        let bytes = ended.kept_bytes();
        self.spool_bytes = self.spool_bytes.saturating_add(bytes);
        if bytes > 0 {
            self.owner(&ended.owner).kept_bytes += bytes;
        }
    }

    /// It is removed, or a dead letter's inputs go over to another task.
    pub(crate) fn give_up(&mut self, ended: &FinishedTask) {
        self.dead -= u64::from(ended.dead.is_some());
        self.released(&ended.owner, ended.kept_bytes());
    }

    /// So much of what an ended task left behind is gone.
    pub(crate) fn released(&mut self, owner: &Owner, bytes: u64) {
        self.spool_bytes = self.spool_bytes.saturating_sub(bytes);
        if bytes > 0 {
            self.change(owner, |usage| usage.kept_bytes = usage.kept_bytes.saturating_sub(bytes));
        }
    }

    /// What an owner has unfinished, of that one of its clients, and the bytes of both with what is kept.
    fn held_by(&self, owner: &Owner, client: Option<&ClientName>) -> (Held, Held) {
        let Some(usage) = self.owners.get(owner) else { return Default::default() };
        let bytes = usage.held.bytes.saturating_add(usage.kept_bytes);
        let of_client = usage.clients.get(&client.cloned()).copied().unwrap_or_default();
        (Held { bytes, ..usage.held }, of_client)
    }

    fn queued_by(&self, owner: &Owner, queue: &QueueName) -> u64 {
        self.owners.get(owner).and_then(|usage| usage.queued.get(queue)).copied().unwrap_or(0)
    }

    /// Unfinished tasks and uploads of all owners, for the check of the structure.
    #[cfg(test)]
    pub(crate) fn held(&self) -> u64 {
        self.owners.values().map(|usage| usage.held.tasks).sum()
    }
}

/// What has a bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Bounded {
    /// Waiting tasks.
    Queue(QueueName),
    /// The bytes of the spool.
    Spool,
    /// Free space on the file system of the data directory: `used` is what is free, `limit` what is kept.
    Disk,
}

impl std::fmt::Display for Bounded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Queue(queue) => write!(f, "queue/{queue}"),
            Self::Spool => f.write_str("spool"),
            Self::Disk => f.write_str("disk"),
        }
    }
}

/// A bound that is nearly or fully reached, or is not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Level {
    /// What it is a bound of.
    pub(crate) of: Bounded,
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

/// What an owner or a client may hold; `key` names its settings.
struct HolderBound {
    key: &'static str,
    max_tasks: u64,
    max_bytes: u64,
}

impl HolderBound {
    fn check(&self, held: Held, more_bytes: u64, name: impl FnOnce() -> String) -> Result<(), Failure> {
        let Held { tasks, bytes } = held;
        let Self { key, max_tasks, max_bytes } = self;
        let text = if tasks >= *max_tasks {
            format!(
                "{} has {tasks} unfinished tasks and uploads, at most {max_tasks} are allowed \
                 (limits.max_{key}_tasks); wait for some of them to end",
                name()
            )
        } else if bytes.saturating_add(more_bytes) > *max_bytes {
            format!(
                "the tasks and uploads of {} have {bytes} bytes; with {more_bytes} more they would pass the {max_bytes} \
                 that are allowed (limits.max_{key}_bytes); wait for some of them to end",
                name()
            )
        } else {
            return Ok(());
        };
        Err(Failure::new(FailureKind::Overloaded, text))
    }
}

impl Core {
    /// Whether a task may come in, and which ones must go for it: each of a lower priority than it, and none of them if
    /// they are not enough.
    pub(crate) fn admit(&self, peer: &PeerId, wanted: &AdmissionRequest<'_>) -> Result<Vec<TaskId>, Failure> {
        let overloaded = |text| Err(Failure::new(FailureKind::Overloaded, text));
        let queue = wanted.queue;
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
        self.check_priority(wanted)?;
        self.check_client(wanted)?;
        self.check_owner(wanted)?;
        self.check_disk(wanted)?;
        let limits = &self.settings.limits;
        let too_many = (self.queue_len[queue] + 1).saturating_sub(max_tasks);
        let too_much =
            self.usage.spool_bytes.saturating_add(wanted.bytes).saturating_sub(limits.max_spool_bytes);
        let free_places = max_tasks.saturating_sub(self.queue_len[queue]);
        let waiting = self.usage.queued_by(wanted.owner, queue);
        if wanted.authority == Authority::Client
            && too_many == 0
            && waiting >= free_places.saturating_mul(OWNER_SHARE)
        {
            return overloaded(format!(
                "{waiting} tasks of {} wait in queue {queue}, which has {free_places} of its {max_tasks} places left \
                 for others; wait for some of them to end",
                wanted.owner
            ));
        }
        if too_many == 0 && too_much == 0 {
            return Ok(Vec::new());
        }
        if let Some(victims) = self.victims(wanted, too_many, too_much) {
            return Ok(victims);
        }
        overloaded(if too_many > 0 {
            let then = self.pause_text(queue).unwrap_or_else(|| "try again later".to_owned());
            format!("queue {queue} is full: {max_tasks} tasks wait already; {then}")
        } else {
            format!(
                "the spool is full: inputs, uploads and results have {} of {} bytes (limits.max_spool_bytes); try again \
                 later",
                self.usage.spool_bytes, limits.max_spool_bytes
            )
        })
    }

    fn check_priority(&self, wanted: &AdmissionRequest<'_>) -> Result<(), Failure> {
        let highest = self.settings.limits.max_remote_priority;
        if wanted.authority == Authority::Administrator || wanted.priority <= highest {
            return Ok(());
        }
        let text = format!(
            "priority {} is above {highest}, the highest one for certificates of the role client \
             (limits.max_remote_priority of the scheduler); submit with a lower one",
            wanted.priority
        );
        Err(Failure::new(FailureKind::InvalidInput, text))
    }

    /// The bounds of a client. They divide those of its owner.
    fn check_client(&self, wanted: &AdmissionRequest<'_>) -> Result<(), Failure> {
        let limits = &self.settings.limits;
        let (max_tasks, max_bytes) = (limits.max_client_tasks, limits.max_client_bytes);
        let bound = HolderBound { key: "client", max_tasks, max_bytes };
        let (_, held) = self.usage.held_by(wanted.owner, wanted.client);
        bound.check(held, wanted.bytes, || match wanted.client {
            Some(client) => format!("client {client} of {}", wanted.owner),
            None => format!("client {}", wanted.owner),
        })
    }

    fn check_owner(&self, wanted: &AdmissionRequest<'_>) -> Result<(), Failure> {
        fault!(self, OwnerUnbounded => return Ok(()));
        let limits = &self.settings.limits;
        let (max_tasks, max_bytes) = (limits.max_owner_tasks, limits.max_owner_bytes);
        let bound = HolderBound { key: "owner", max_tasks, max_bytes };
        let (held, _) = self.usage.held_by(wanted.owner, wanted.client);
        bound.check(held, wanted.bytes, || format!("owner {}", wanted.owner))
    }

    /// Whether the file system keeps its free space with everything that is reserved, and this.
    fn check_disk(&self, wanted: &AdmissionRequest<'_>) -> Result<(), Failure> {
        let (floor, free) = (self.settings.limits.min_free_bytes, self.usage.free_bytes);
        let needed = floor.saturating_add(self.usage.reserved_bytes).saturating_add(wanted.bytes);
        match free.filter(|free| floor > 0 && *free < needed) {
            None => Ok(()),
            Some(free) => {
                let text = format!(
                    "the scheduler's disk has {free} bytes free, of which {floor} are kept (limits.min_free_bytes) and {} \
                     reserved for uploads: it takes no new work of {} bytes; what was accepted goes on, try again later",
                    self.usage.reserved_bytes, wanted.bytes
                );
                Err(Failure::new(FailureKind::DiskFull, text))
            }
        }
    }

    /// Waiting tasks whose end frees these places and bytes: lowest priority first, then those that came last. Only an
    /// administrator's task ends other owners'.
    fn victims(&self, wanted: &AdmissionRequest<'_>, places: u64, bytes: u64) -> Option<Vec<TaskId>> {
        let owner = Some(wanted.owner).filter(|_| wanted.authority == Authority::Client);
        let queues = self.waiting.iter().filter(|((queue, _), _)| places == 0 || queue == wanted.queue);
        let mut lower: Vec<_> =
            queues.flat_map(|(_, waiting)| waiting.below(wanted.priority, owner).take(MAX_EVICTED)).collect();
        lower.sort_unstable_by_key(|(priority, seq, _)| (*priority, std::cmp::Reverse(*seq)));
        let (mut victims, mut freed) = (Vec::new(), 0_u64);
        for (_, _, id) in lower.into_iter().take(MAX_EVICTED) {
            if victims.len() as u64 >= places && freed >= bytes {
                break;
            }
            freed = freed.saturating_add(self.tasks[&id].spec.input_bytes());
            victims.push(id);
        }
        (victims.len() as u64 >= places && freed >= bytes).then_some(victims)
    }

    /// Ends `evicted` and does `enter`, in one transaction.
    pub(crate) fn make_room(&mut self, evicted: Vec<TaskId>, enter: impl FnOnce(&mut Self)) {
        self.together(|core| {
            for id in evicted {
                let text = "the task was given up unbegun: the grid is full, and more important work came";
                let failure = Failure::new(FailureKind::Overloaded, text);
                core.end(id, Event::Fail(failure), None);
            }
            enter(core);
        });
    }

    /// Does `act`; what it writes becomes durable together, before any message of it leaves.
    pub(crate) fn together(&mut self, act: impl FnOnce(&mut Self)) {
        let mark = self.effects.mark();
        act(self);
        self.effects.join_writes_since(mark);
    }

    /// Raises and ends alarms. Looked at after every input, so nothing is copied while nothing changes.
    pub(crate) fn watch_levels(&mut self) {
        let mut changed = Vec::new();
        let usage = &self.usage;
        for (queue, limit) in &self.settings.queues {
            let last = usage.queue_alarms.get(queue).copied().unwrap_or(0);
            let used = self.queue_len[queue];
            let percent = next_alarm(last, used, *limit);
            changed.extend(percent.map(|percent| Level {
                of: Bounded::Queue(queue.clone()),
                percent,
                used,
                limit: *limit,
            }));
        }
        let (used, limit) = (usage.spool_bytes, self.settings.limits.max_spool_bytes);
        let percent = next_alarm(usage.spool_alarm, used, limit);
        changed.extend(percent.map(|percent| Level { of: Bounded::Spool, percent, used, limit }));
        let floor = self.settings.limits.min_free_bytes;
        if let Some(free) = usage.free_bytes {
            // Calm again with a tenth more than what is kept.
            let percent = match usage.disk_alarm {
                0 => {
                    if free < floor {
                        100
                    } else {
                        0
                    }
                }
                _ => {
                    if free < floor.saturating_add(floor / 10) {
                        100
                    } else {
                        0
                    }
                }
            };
            if percent != usage.disk_alarm {
                changed.push(Level { of: Bounded::Disk, percent, used: free, limit: floor });
            }
        }
        for level in changed {
            match &level.of {
                Bounded::Queue(queue) => _ = self.usage.queue_alarms.insert(queue.clone(), level.percent),
                Bounded::Spool => self.usage.spool_alarm = level.percent,
                Bounded::Disk => self.usage.disk_alarm = level.percent,
            }
            self.emit(Effect::Level(level));
        }
    }

    /// The largest input: raw RGB of `max_pixels`, or a file of that many uncompressed pixels.
    pub(crate) fn max_blob_bytes(&self) -> u64 {
        self.settings.limits.max_pixels.saturating_mul(4).saturating_add(FILE_SLACK_BYTES)
    }

    pub(crate) fn check_blobs(
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
