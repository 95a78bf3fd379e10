//! Alarms of bounds that are reached, or nearly so.

use std::collections::BTreeMap;

use lamagrid_domain::QueueName;

/// Percentages at which an alarm is raised.
const RAISED_AT: [u8; 2] = [100, 80];
/// An alarm ends below this percentage, so that it does not flap at its threshold.
const CLEARED_BELOW: u8 = 70;

/// A bounded quantity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Bounded {
    /// Waiting tasks.
    Queue(QueueName),
    /// The bytes of the spool.
    Spool,
    /// Free space on the file system of the data directory: `used` is the free space, `limit` the reserve.
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

/// A bound that crossed one of its thresholds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) of: Bounded,
    /// 100, 80, or 0 once the alarm is cleared.
    pub(crate) percent: u8,
    pub(crate) used: u64,
    pub(crate) limit: u64,
}

/// The last alarm of each bound; 0 means that none was raised.
#[derive(Debug, Default)]
pub(crate) struct Alarms {
    queues: BTreeMap<QueueName, u8>,
    spool: u8,
    disk: u8,
}

impl Alarms {
    /// Checked after every input, so nothing is copied while nothing changes.
    pub(crate) fn observe_queue(&mut self, queue: &QueueName, used: u64, limit: u64) -> Option<Level> {
        let last = self.queues.get(queue).copied().unwrap_or(0);
        let percent = next_alarm(last, used, limit)?;
        self.queues.insert(queue.clone(), percent);
        Some(Level { of: Bounded::Queue(queue.clone()), percent, used, limit })
    }

    pub(crate) fn observe_spool(&mut self, used: u64, limit: u64) -> Option<Level> {
        self.spool = next_alarm(self.spool, used, limit)?;
        Some(Level { of: Bounded::Spool, percent: self.spool, used, limit })
    }

    /// `reserve` bytes are to stay free. The alarm is cleared when a tenth more than that is free.
    pub(crate) fn observe_disk(&mut self, free: u64, reserve: u64) -> Option<Level> {
        let cleared_at = if self.disk == 0 { reserve } else { reserve.saturating_add(reserve / 10) };
        let percent = if free < cleared_at { 100 } else { 0 };
        if percent == self.disk {
            return None;
        }
        self.disk = percent;
        Some(Level { of: Bounded::Disk, percent, used: free, limit: reserve })
    }
}

/// The alarm that a bound changes to, if it changes.
fn next_alarm(last: u8, used: u64, limit: u64) -> Option<u8> {
    let percent = u128::from(used) * 100 / u128::from(limit.max(1));
    let reached = RAISED_AT.into_iter().find(|alarm| percent >= u128::from(*alarm)).unwrap_or(0);
    let is_cleared = last > 0 && percent < u128::from(CLEARED_BELOW);
    (reached > last || is_cleared).then_some(reached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_rise_at_80_and_100_percent_and_end_below_70() {
        let mut alarms = Alarms::default();
        let steps =
            [(7, None), (8, Some(80)), (9, None), (10, Some(100)), (8, None), (7, None), (6, Some(0))];
        for (used, percent) in steps {
            assert_eq!(alarms.observe_spool(used, 10).map(|level| level.percent), percent, "{used}");
        }
    }

    #[test]
    fn the_alarm_of_the_disk_ends_with_a_tenth_more_than_its_reserve() {
        let mut alarms = Alarms::default();
        for (free, percent) in [(100, None), (99, Some(100)), (109, None), (110, Some(0)), (100, None)] {
            assert_eq!(alarms.observe_disk(free, 100).map(|level| level.percent), percent, "{free}");
        }
    }
}
