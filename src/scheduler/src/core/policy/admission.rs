//! Admits tasks and uploads within the bounds, and chooses the tasks that are evicted for them.

use lamagrid_domain::{ClientName, Failure, FailureKind, Owner, QueueName, TaskId, TaskSpec};

use crate::core::effect::Authority;

#[cfg(any(test, feature = "sabotage"))]
use crate::core::fault::Faults;
use crate::core::settings::Settings;
use crate::core::state::admission::Admission;
use crate::core::state::admission::Usage;
use crate::core::state::model_queue::Evictable;
use crate::core::state::pauses::Pauses;
use crate::core::state::ready_queue::ReadyQueue;
use crate::core::state::task_table::TaskTable;

/// Tasks that one submission may evict: more would delay every other request.
const MAX_EVICTED: usize = 256;
/// A remote owner may have this many waiting tasks for each free place of their queue. Alone it gets nine tenths of the
/// queue, and a new owner finds a place even if others fill the rest.
const OWNER_SHARE: u64 = 9;

/// The resources that a task or an upload would use.
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

/// Limits on the tasks and bytes of an owner or a client, with the settings that define them.
struct HolderBound {
    max_tasks: u64,
    tasks_key: &'static str,
    max_bytes: u64,
    bytes_key: &'static str,
}

impl HolderBound {
    fn check(&self, used: Usage, more_bytes: u64, name: impl FnOnce() -> String) -> Result<(), Failure> {
        let Usage { tasks, bytes } = used;
        let Self { max_tasks, tasks_key, max_bytes, bytes_key } = self;
        let text = if tasks >= *max_tasks {
            format!(
                "{} has {tasks} unfinished tasks and uploads, at most {max_tasks} are allowed \
                 ({tasks_key}); wait for some of them to end",
                name()
            )
        } else if bytes.saturating_add(more_bytes) > *max_bytes {
            format!(
                "the tasks and uploads of {} have {bytes} bytes; with {more_bytes} more they would pass the {max_bytes} \
                 that are allowed ({bytes_key}); wait for some of them to end",
                name()
            )
        } else {
            return Ok(());
        };
        Err(Failure::new(FailureKind::Overloaded, text))
    }
}

/// The parts that admission reads, at one moment.
#[derive(Clone, Copy)]
pub(crate) struct AdmissionPolicy<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) now_wall_ms: u64,
    pub(crate) admission: &'a Admission,
    pub(crate) tasks: &'a TaskTable,
    pub(crate) ready: &'a ReadyQueue,
    pub(crate) paused: &'a Pauses,
    #[cfg(any(test, feature = "sabotage"))]
    pub(crate) faults: Faults,
}

impl AdmissionPolicy<'_> {
    /// Whether a task may come in, and which tasks are evicted for it: each has a lower priority, and none is evicted
    /// if they are not enough. `outstanding` tasks of its connection are unfinished.
    pub(crate) fn admit(
        self,
        outstanding: usize,
        wanted: &AdmissionRequest<'_>,
    ) -> Result<Vec<TaskId>, Failure> {
        let overloaded = |text| Err(Failure::new(FailureKind::Overloaded, text));
        let queue = wanted.queue;
        let Some(&max_tasks) = self.settings.queues.get(queue) else {
            let known: Vec<_> = self.settings.queues.keys().map(QueueName::as_str).collect();
            let text = format!("there is no queue {queue}; the configuration has {}", known.join(", "));
            return Err(Failure::new(FailureKind::InvalidInput, text));
        };
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
        let queued = self.ready.length(queue).unwrap_or(0);
        let too_many = (queued + 1).saturating_sub(max_tasks);
        let too_much =
            self.admission.spool_bytes().saturating_add(wanted.bytes).saturating_sub(limits.max_spool_bytes);
        let free_places = max_tasks.saturating_sub(queued);
        let waiting = self.admission.queued_by(wanted.owner, queue);
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
            let then =
                self.paused.text(queue, self.now_wall_ms).unwrap_or_else(|| "try again later".to_owned());
            format!("queue {queue} is full: {max_tasks} tasks wait already; {then}")
        } else {
            format!(
                "the spool is full: inputs, uploads and results have {} of {} bytes (limits.max_spool_bytes); try again \
                 later",
                self.admission.spool_bytes(),
                limits.max_spool_bytes
            )
        })
    }

    fn check_priority(self, wanted: &AdmissionRequest<'_>) -> Result<(), Failure> {
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
    fn check_client(self, wanted: &AdmissionRequest<'_>) -> Result<(), Failure> {
        let limits = &self.settings.limits;
        let bound = HolderBound {
            max_tasks: limits.max_client_tasks,
            tasks_key: "limits.max_client_tasks",
            max_bytes: limits.max_client_bytes,
            bytes_key: "limits.max_client_bytes",
        };
        let used = self.admission.used_by_client(wanted.owner, wanted.client);
        bound.check(used, wanted.bytes, || match wanted.client {
            Some(client) => format!("client {client} of {}", wanted.owner),
            None => format!("client {}", wanted.owner),
        })
    }

    fn check_owner(self, wanted: &AdmissionRequest<'_>) -> Result<(), Failure> {
        fault!(self, OwnerUnbounded => return Ok(()));
        let limits = &self.settings.limits;
        let bound = HolderBound {
            max_tasks: limits.max_owner_tasks,
            tasks_key: "limits.max_owner_tasks",
            max_bytes: limits.max_owner_bytes,
            bytes_key: "limits.max_owner_bytes",
        };
        let used = self.admission.used_by_owner(wanted.owner);
        bound.check(used, wanted.bytes, || format!("owner {}", wanted.owner))
    }

    /// Whether the file system keeps its reserve with all reserved uploads and this request.
    fn check_disk(self, wanted: &AdmissionRequest<'_>) -> Result<(), Failure> {
        let (floor, free) = (self.settings.limits.min_free_bytes, self.admission.free_bytes());
        let needed = floor.saturating_add(self.admission.reserved_bytes()).saturating_add(wanted.bytes);
        match free.filter(|free| floor > 0 && *free < needed) {
            None => Ok(()),
            Some(free) => {
                let text = format!(
                    "the scheduler's disk has {free} bytes free, of which {floor} are kept (limits.min_free_bytes) and {} \
                     reserved for uploads: it takes no new work of {} bytes; what was accepted goes on, try again later",
                    self.admission.reserved_bytes(),
                    wanted.bytes
                );
                Err(Failure::new(FailureKind::DiskFull, text))
            }
        }
    }

    /// Waiting tasks whose eviction frees these places and bytes: lowest priority first, then the latest. Only an
    /// administrator's request evicts tasks of other owners.
    fn victims(self, wanted: &AdmissionRequest<'_>, places: u64, bytes: u64) -> Option<Vec<TaskId>> {
        let owner = Some(wanted.owner).filter(|_| wanted.authority == Authority::Client);
        let queue = Some(wanted.queue).filter(|_| places > 0);
        let lower = self.ready.evictable(wanted.priority, queue, owner, MAX_EVICTED);
        let (mut victims, mut freed) = (Vec::new(), 0_u64);
        for Evictable { id, .. } in lower.into_iter().take(MAX_EVICTED) {
            if victims.len() as u64 >= places && freed >= bytes {
                break;
            }
            freed = freed.saturating_add(self.tasks[id].spec().input_bytes());
            victims.push(id);
        }
        (victims.len() as u64 >= places && freed >= bytes).then_some(victims)
    }
}
