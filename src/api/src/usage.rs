//! Holds each API key to its limits on unfinished tasks and their bytes.
//!
//! The scheduler's count is asked for only when this side's upper bound reaches a limit, and at most once a second for
//! each key, so that a key at its limit costs the scheduler little.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use lamagrid_domain::Owner;

use crate::keys::KeyLimits;
use crate::problem::{Fault, Problem};

/// Shortest interval between two questions about one key.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Keys whose use is remembered; the others are asked for again.
const MAX_KEYS: usize = 10_000;

/// A number of tasks, and the bytes of their inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Amount {
    pub(crate) tasks: u64,
    pub(crate) bytes: u64,
}

impl Amount {
    fn plus(self, other: Self) -> Self {
        Self { tasks: self.tasks.saturating_add(other.tasks), bytes: self.bytes.saturating_add(other.bytes) }
    }

    fn minus(self, other: Self) -> Self {
        Self { tasks: self.tasks.saturating_sub(other.tasks), bytes: self.bytes.saturating_sub(other.bytes) }
    }

    fn fits(self, limits: &KeyLimits) -> bool {
        limits.max_tasks.is_none_or(|max| self.tasks <= max)
            && limits.max_bytes.is_none_or(|max| self.bytes <= max)
    }
}

#[derive(Debug, Default)]
struct Use {
    /// The scheduler's last answer.
    counted: Amount,
    /// Submitted since it was asked.
    since: Amount,
    /// Being submitted now: the scheduler may know these or not.
    open: Amount,
    asked: Option<Instant>,
}

/// The use of all keys.
#[derive(Debug, Clone, Default)]
pub(crate) struct UsageTable(Arc<Mutex<HashMap<Owner, Use>>>);

/// The decision about a submission.
#[derive(Debug)]
enum Verdict {
    Fits,
    Ask,
    Refused,
}

/// A submission that counts until it is dropped; then it is in the scheduler's count, or was refused.
#[derive(Debug)]
pub(crate) struct Reservation {
    table: UsageTable,
    owner: Owner,
    amount: Amount,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(used) = self.table.0.lock().get_mut(&self.owner) {
            used.open = used.open.minus(self.amount);
            used.since = used.since.plus(self.amount);
        }
    }
}

impl UsageTable {
    /// Makes room for one task of `bytes`; `count` asks the scheduler for the owner's unfinished tasks.
    ///
    /// # Errors
    /// 429 if a limit is reached; the error of `count`.
    pub(crate) async fn reserve<F>(
        &self,
        owner: &Owner,
        limits: &KeyLimits,
        bytes: u64,
        count: impl FnOnce() -> F,
    ) -> Result<Option<Reservation>, Problem>
    where
        F: Future<Output = Result<Amount, Problem>>,
    {
        if limits.max_tasks.is_none() && limits.max_bytes.is_none() {
            return Ok(None);
        }
        let more = Amount { tasks: 1, bytes };
        match self.judge(owner, limits, more) {
            Verdict::Fits => return Ok(Some(self.reservation(owner, more))),
            Verdict::Refused => return Err(full(limits)),
            Verdict::Ask => {}
        }
        let reservation = self.reservation(owner, more);
        let counted = count().await?;
        let mut table = self.0.lock();
        let used = table.entry(owner.clone()).or_default();
        used.counted = counted;
        let fits = used.counted.plus(used.since).plus(used.open).fits(limits);
        drop(table);
        if fits { Ok(Some(reservation)) } else { Err(full(limits)) }
    }

    fn judge(&self, owner: &Owner, limits: &KeyLimits, more: Amount) -> Verdict {
        let mut table = self.0.lock();
        if table.len() >= MAX_KEYS && !table.contains_key(owner) {
            table.retain(|_, used| used.open.tasks > 0);
        }
        let used = table.entry(owner.clone()).or_default();
        let bound = used.counted.plus(used.since).plus(used.open).plus(more);
        if used.asked.is_some() && bound.fits(limits) {
            used.open = used.open.plus(more);
            return Verdict::Fits;
        }
        if !used.open.plus(more).fits(limits) || used.asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY) {
            return Verdict::Refused;
        }
        used.asked = Some(Instant::now());
        used.since = Amount::default();
        used.open = used.open.plus(more);
        Verdict::Ask
    }

    fn reservation(&self, owner: &Owner, amount: Amount) -> Reservation {
        Reservation { table: self.clone(), owner: owner.clone(), amount }
    }
}

fn full(limits: &KeyLimits) -> Problem {
    let limit = |max: Option<u64>, what: &str| max.map(|max| format!("{max} {what}"));
    let limits =
        [limit(limits.max_tasks, "unfinished tasks"), limit(limits.max_bytes, "bytes of their pictures")];
    let text = limits.into_iter().flatten().collect::<Vec<_>>().join(" and ");
    Problem::new(Fault::TooManyRequests, format!("the API key allows {text}; wait for some tasks to end"))
        .retry(Some(ASK_EVERY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_scheduler_is_asked_only_at_a_limit_and_once_a_second() {
        let (table, owner) = (UsageTable::default(), Owner::local());
        let limits = KeyLimits { max_tasks: Some(2), max_bytes: Some(100), ..KeyLimits::default() };
        let asked = std::cell::Cell::new(0);
        let reserve = async |bytes, tasks_there: u64| {
            let count = || {
                asked.set(asked.get() + 1);
                std::future::ready(Ok(Amount { tasks: tasks_there, bytes: 0 }))
            };
            table.reserve(&owner, &limits, bytes, count).await.map_err(|problem| problem.status())
        };
        assert_eq!(reserve(101, 0).await.unwrap_err(), 429, "can never fit");
        let first = reserve(60, 0).await.unwrap();
        assert_eq!(reserve(60, 0).await.unwrap_err(), 429, "too many bytes");
        let second = reserve(40, 0).await.unwrap();
        assert_eq!(reserve(0, 0).await.unwrap_err(), 429, "too many tasks");
        drop((first, second));
        assert_eq!(reserve(0, 0).await.unwrap_err(), 429, "they are with the scheduler now");
        assert_eq!(asked.get(), 1);
        table.0.lock().get_mut(&owner).unwrap().asked = Instant::now().checked_sub(ASK_EVERY);
        assert!(reserve(10, 1).await.is_ok(), "one of them has ended");
        table.0.lock().get_mut(&owner).unwrap().asked = Instant::now().checked_sub(ASK_EVERY);
        assert_eq!(reserve(10, 2).await.unwrap_err(), 429);
    }
}
