//! An independent model of the bounds, and of the trusted time.

use super::*;
use crate::core::UploadedInputs;

/// The time that deletion and deadlines may go by, as the wall clock's distance from the monotonic one.
pub(super) struct Clock {
    grace_ms: u64,
    believed: i64,
    shown: i64,
    /// Monotonic time since which `shown` has been steady.
    steady_since_ms: u64,
}

const MAX_DRIFT_MS: u64 = 5_000;

fn offset(now: Now) -> i64 {
    now.wall_ms.cast_signed() - now.mono_ms.cast_signed()
}

impl Clock {
    pub(super) fn new(grace_ms: u64) -> Self {
        Self { grace_ms, believed: 0, shown: 0, steady_since_ms: 0 }
    }

    /// A process starts: the time recorded in its store may be an hour old.
    pub(super) fn restart(&mut self, now: Now, recorded_ms: Option<u64>) {
        (self.shown, self.steady_since_ms) = (offset(now), now.mono_ms);
        let recorded = recorded_ms.map(|wall_ms| offset(Now { wall_ms, ..now }));
        let is_likely = |recorded: &i64| (-5_000..=3_600_000).contains(&(self.shown - recorded));
        self.believed = recorded.filter(|recorded| !is_likely(recorded)).unwrap_or(self.shown);
    }

    /// Gives how far the believed time was set back.
    pub(super) fn observe(&mut self, now: Now) -> i64 {
        let was = self.believed;
        if offset(now).abs_diff(self.shown) > MAX_DRIFT_MS {
            self.steady_since_ms = now.mono_ms;
        }
        let was_believed = self.believed == self.shown;
        let is_small = offset(now).abs_diff(self.shown) <= MAX_DRIFT_MS;
        self.shown = offset(now);
        let is_back = self.shown.abs_diff(self.believed) <= MAX_DRIFT_MS;
        if (was_believed && is_small) || is_back || now.mono_ms - self.steady_since_ms >= self.grace_ms {
            self.believed = self.shown;
        }
        was - self.believed
    }

    pub(super) fn believed_ms(&self, now: Now) -> u64 {
        now.mono_ms.saturating_add_signed(self.believed)
    }

    pub(super) fn later_ms(&self, now: Now) -> u64 {
        self.believed_ms(now).max(now.wall_ms)
    }
}

impl Oracle {
    pub(super) fn on_upload_opened(
        &mut self,
        message: &Message,
        owner: &Owner,
        id: TaskId,
        bytes: u64,
    ) -> Result<(), Violation> {
        let Message::Client(_, ClientRequest::Offer(offer), _) = message else {
            return Err(Violation {
                kind: Kind::Granted,
                what: format!("inputs of {id} may be brought without an offer"),
            });
        };
        ensure!(
            offer.id == id && offer.owner == *owner && bytes >= offer.bytes,
            Granted,
            "{owner} may bring {bytes} bytes for {id}, asked for was {offer:?}"
        );
        let known = self.live.contains_key(&id) || self.over.contains_key(&id) || self.is_spent(id, owner);
        ensure!(!known, Granted, "{owner} may bring inputs of {id}, which is known");
        if let Some((other, _)) = self.uploads.insert(id, (owner.clone(), bytes)) {
            ensure!(
                other == *owner,
                Granted,
                "{owner} may bring inputs of {id}, which are reserved for {other}"
            );
        }
        self.note("upload opened");
        self.check_bounds(owner)
    }

    pub(super) fn on_upload_closed(
        &mut self,
        owner: &Owner,
        id: TaskId,
        inputs: UploadedInputs,
    ) -> Result<(), Violation> {
        let of = self.uploads.remove(&id).map(|(of, _)| of);
        ensure!(of.as_ref().is_none_or(|of| of == owner), Granted, "{owner} ended the upload {id} of {of:?}");
        let known = self.live.contains_key(&id) || self.over.contains_key(&id);
        ensure!(
            !(inputs == UploadedInputs::Delete && known),
            Lost,
            "the inputs of {id} are deleted, and it is known"
        );
        Ok(())
    }

    /// Whether an id that has no row may not run any more.
    pub(super) fn is_spent(&self, id: TaskId, owner: &Owner) -> bool {
        self.tombstones.contains(&id)
            || self.watermarks.get(owner).is_some_and(|at| id.drawn_wall_ms() <= *at)
    }

    /// Something of an owner came in: it and all others are within their bounds.
    pub(super) fn check_bounds(&self, owner: &Owner) -> Result<(), Violation> {
        let limits = &self.limits;
        let live = self.live.values().map(|task| (&task.owner, task.bytes));
        let all = live.chain(self.uploads.values().map(|(owner, bytes)| (owner, *bytes)));
        let (mut bytes, mut of_owner, mut bytes_of_owner) = (0, 0, 0);
        for (of, more) in all {
            bytes += more;
            if of == owner {
                of_owner += 1;
                bytes_of_owner += more;
            }
        }
        let free = self.disk_free.filter(|free| limits.min_free_bytes > 0 && *free < limits.min_free_bytes);
        ensure!(free.is_none(), Unbounded, "new work came in with {free:?} bytes of free space");
        ensure!(bytes <= limits.max_spool_bytes, Unbounded, "{bytes} bytes of inputs and uploads");
        ensure!(of_owner <= limits.max_owner_tasks, Unbounded, "{owner} has {of_owner} tasks and uploads");
        ensure!(bytes_of_owner <= limits.max_owner_bytes, Unbounded, "{owner} has {bytes_of_owner} bytes");
        Ok(())
    }
}
