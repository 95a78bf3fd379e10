//! Lists every metric of a scheduler, in one table.
//!
//! Units are base units and label sets are closed: never a task id or a client. A test writes
//! `docs/metrics.md` from here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use lamagrid_domain::Status;
use lamagrid_protocol::message::TaskInfo;

use crate::core::{Level, MetricsSnapshot};
use crate::store::{StoreSize, WriteFault};

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge>;
type Counters = Family<Labels, Counter>;

/// Bucket bounds in seconds, from a millisecond to an hour.
const SECONDS: [f64; 12] = [0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0, 3_600.0];

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

/// The event loop counts as stuck if it has not turned for this long. A commit that is being retried does not
/// stop it.
const STUCK_MS: u64 = 5_000;

/// All metrics of a scheduler. The event loop writes them; the HTTP thread reads them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    began: Instant,
    /// Milliseconds after `began` at which the event loop last turned.
    turned_ms: AtomicU64,
    failing: AtomicBool,
    unreachable: AtomicBool,
    queue_waiting: Gauges,
    queue_running: Gauges,
    queue_limit: Gauges,
    queue_paused: Gauges,
    alarm: Gauges,
    certificate_ends: Gauges,
    ledger_unreadable: Gauge,
    nodes: Gauges,
    ended_kept: Gauge,
    dead: Gauge,
    spool: Gauge,
    spool_limit: Gauge,
    reserved: Gauge,
    disk_free: Gauge,
    clock_doubted: Gauge,
    store_failing: Gauge,
    store_locked: Gauge,
    store: Gauge,
    store_free: Gauge,
    store_log: Gauge,
    tasks: Counters,
    refusals: Counters,
    attempts: Counter,
    crashes: Counter,
    failures: Counter,
    commits: Counter,
    commit_seconds: Histogram,
    stage_seconds: Family<Labels, Histogram, fn() -> Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers all metrics.
    #[must_use]
    pub fn new() -> Self {
        let stage_seconds = Family::new_with_constructor(seconds as fn() -> Histogram);
        let mut metrics = Self {
            registry: Registry::with_prefix("lamagrid"),
            began: Instant::now(),
            turned_ms: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            unreachable: AtomicBool::new(false),
            queue_waiting: Gauges::default(),
            queue_running: Gauges::default(),
            queue_limit: Gauges::default(),
            queue_paused: Gauges::default(),
            alarm: Gauges::default(),
            certificate_ends: Gauges::default(),
            ledger_unreadable: Gauge::default(),
            nodes: Gauges::default(),
            ended_kept: Gauge::default(),
            dead: Gauge::default(),
            spool: Gauge::default(),
            spool_limit: Gauge::default(),
            reserved: Gauge::default(),
            disk_free: Gauge::default(),
            clock_doubted: Gauge::default(),
            store_failing: Gauge::default(),
            store_locked: Gauge::default(),
            store: Gauge::default(),
            store_free: Gauge::default(),
            store_log: Gauge::default(),
            tasks: Counters::default(),
            refusals: Counters::default(),
            attempts: Counter::default(),
            crashes: Counter::default(),
            failures: Counter::default(),
            commits: Counter::default(),
            commit_seconds: seconds(),
            stage_seconds,
        };
        let mut r = std::mem::take(&mut metrics.registry);
        let m = &metrics;
        r.register("queue_waiting_tasks", "Tasks that wait in a queue", m.queue_waiting.clone());
        r.register("queue_running_tasks", "Tasks of a queue that nodes have", m.queue_running.clone());
        r.register("queue_limit_tasks", "How many tasks may wait in a queue", m.queue_limit.clone());
        r.register("queue_paused", "1 while a queue is paused", m.queue_paused.clone());
        r.register(
            "alarm_percent",
            "100 while a queue, the spool or the disk is full, 80 while it is nearly full, else 0",
            m.alarm.clone(),
        );
        r.register(
            "certificate_ends_timestamp_seconds",
            "When a certificate of the gate's ends, in seconds since the Unix epoch; the revoked ones are left out",
            m.certificate_ends.clone(),
        );
        r.register(
            "certificate_ledger_unreadable",
            "1 while the list of certificates cannot be read: no new connection is let in through the gate",
            m.ledger_unreadable.clone(),
        );
        r.register("nodes", "Connected nodes by state", m.nodes.clone());
        r.register("ended_tasks_kept", "Ended tasks that are in retention", m.ended_kept.clone());
        r.register("dead_letters", "Tasks that were given up and can be replayed", m.dead.clone());
        r.register_with_unit("spool", "Inputs and results of all tasks", Unit::Bytes, m.spool.clone());
        r.register_with_unit("spool_limit", "How much those may be", Unit::Bytes, m.spool_limit.clone());
        r.register_with_unit(
            "reserved",
            "Of the spool's bytes, what is reserved for inputs that were announced and not submitted yet",
            Unit::Bytes,
            m.reserved.clone(),
        );
        r.register_with_unit(
            "disk_free",
            "Free space on the file system of the data directory",
            Unit::Bytes,
            m.disk_free.clone(),
        );
        r.register(
            "clock_doubted",
            "1 while the wall clock has jumped and its time does not count for deletion and deadlines",
            m.clock_doubted.clone(),
        );
        r.register("store_failing", "1 while the store cannot be written", m.store_failing.clone());
        r.register(
            "store_locked",
            "1 while the store cannot be written because another process keeps its database locked",
            m.store_locked.clone(),
        );
        r.register_with_unit("store", "The database, without its log", Unit::Bytes, m.store.clone());
        r.register_with_unit(
            "store_free",
            "Of the database's bytes, those without content: they are used again, or go back to the disk",
            Unit::Bytes,
            m.store_free.clone(),
        );
        r.register_with_unit(
            "store_log",
            "The database's write-ahead log, which grows while another process reads the database",
            Unit::Bytes,
            m.store_log.clone(),
        );
        r.register("tasks", "Tasks that ended, by state and kind of failure", m.tasks.clone());
        r.register(
            "refusals",
            "Requests of clients that were refused, by kind of failure",
            m.refusals.clone(),
        );
        r.register("attempts", "Attempts of tasks that ended", m.attempts.clone());
        r.register("crashes", "Attempts of tasks that ended whose node was lost", m.crashes.clone());
        r.register("failures", "Attempts of tasks that ended that reported a failure", m.failures.clone());
        r.register("commits", "Groups of writes that became durable", m.commits.clone());
        r.register_with_unit("commit", "How long a group took", Unit::Seconds, m.commit_seconds.clone());
        r.register_with_unit(
            "task_stage",
            "Where the time of completed tasks went: queue, infer, or total",
            Unit::Seconds,
            m.stage_seconds.clone(),
        );
        metrics.registry = r;
        metrics
    }

    /// Records that the event loop turned.
    pub(crate) fn turned(&self) {
        self.turned_ms.store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Sets the gauges.
    pub(crate) fn show(&self, figures: &MetricsSnapshot) {
        let set = |gauges: &Gauges, label: &'static str, value: &str, n: u64| {
            gauges.get_or_create(&vec![(label, value.to_owned())]).set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        for (queue, of) in &figures.queues {
            set(&self.queue_waiting, "queue", queue.as_str(), of.waiting);
            set(&self.queue_running, "queue", queue.as_str(), of.running);
            set(&self.queue_limit, "queue", queue.as_str(), of.limit);
            set(&self.queue_paused, "queue", queue.as_str(), u64::from(of.paused));
        }
        for (state, count) in &figures.nodes {
            set(&self.nodes, "state", state, *count);
        }
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.ended_kept.set(number(figures.ended));
        self.dead.set(number(figures.dead));
        self.spool.set(number(figures.spool_bytes));
        self.spool_limit.set(number(figures.spool_limit_bytes));
        self.reserved.set(number(figures.reserved_bytes));
        self.disk_free.set(number(figures.disk_free_bytes.unwrap_or(0)));
        self.clock_doubted.set(i64::from(figures.clock_doubted));
    }

    /// Sets each certificate's end (ms since the Unix epoch), and whether the list of certificates can be
    /// read.
    pub(crate) fn certificates<'a>(&self, ends: impl Iterator<Item = (&'a str, u64)>, has_ledger: bool) {
        self.ledger_unreadable.set(i64::from(!has_ledger));
        // Removes the gauges of certificates that were revoked since.
        self.certificate_ends.clear();
        for (name, ends_ms) in ends {
            let gauge = self.certificate_ends.get_or_create(&vec![("certificate", name.to_owned())]);
            gauge.set(i64::try_from(ends_ms / 1_000).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn level(&self, level: &Level) {
        self.alarm.get_or_create(&vec![("what", level.of.to_string())]).set(i64::from(level.percent));
    }

    pub(crate) fn refused(&self, kind: &str) {
        self.refusals.get_or_create(&vec![("failure", kind.to_owned())]).inc();
    }

    pub(crate) fn finished(&self, task: &TaskInfo) {
        let failure = task.failure.as_ref().map_or("", |failure| failure.kind.as_str());
        let labels = vec![("state", task.status.as_str().to_owned()), ("failure", failure.to_owned())];
        self.tasks.get_or_create(&labels).inc();
        self.attempts.inc_by(u64::from(task.counters.attempts));
        self.crashes.inc_by(u64::from(task.counters.crashes));
        self.failures.inc_by(u64::from(task.counters.failures));
        if task.status == Status::Completed {
            let stages = &task.stages;
            for (stage, ms) in
                [("queue", stages.queue_ms), ("infer", stages.infer_ms), ("total", stages.total_ms)]
            {
                self.stage_seconds.get_or_create(&vec![("stage", stage.to_owned())]).observe(ms / 1e3);
            }
        }
    }

    /// Records that a group of writes became durable, and how long that took.
    pub(crate) fn committed(&self, seconds: f64) {
        self.failing.store(false, Ordering::Relaxed);
        self.store_failing.set(0);
        self.store_locked.set(0);
        self.commits.inc();
        self.commit_seconds.observe(seconds);
    }

    /// Records that a group of writes failed and is being retried.
    pub(crate) fn commit_failed(&self, fault: WriteFault) {
        self.failing.store(true, Ordering::Relaxed);
        self.store_failing.set(1);
        self.store_locked.set(i64::from(fault == WriteFault::Locked));
    }

    /// Sets the store's size.
    pub(crate) fn size(&self, size: &StoreSize) {
        let set = |gauge: &Gauge, bytes: u64| gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        set(&self.store, size.database_bytes);
        set(&self.store_free, size.free_bytes);
        set(&self.store_log, size.log_bytes);
    }

    /// True if the event loop has turned recently.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let now_ms = self.began.elapsed().as_millis() as u64;
        now_ms.saturating_sub(self.turned_ms.load(Ordering::Relaxed)) < STUCK_MS
    }

    /// Records that clients and nodes find the sockets.
    pub(crate) fn sockets_found(&self) {
        self.unreachable.store(false, Ordering::Relaxed);
    }

    /// Records that the sockets were removed and cannot be created again.
    pub(crate) fn sockets_lost(&self) {
        self.unreachable.store(true, Ordering::Relaxed);
    }

    /// Reason why no tasks are accepted now; `None` if they are.
    #[must_use]
    pub fn not_ready(&self) -> Option<&'static str> {
        if !self.is_alive() {
            Some("the scheduler's loop stands still; see its log, or restart it")
        } else if self.unreachable.load(Ordering::Relaxed) {
            Some("the sockets were removed and cannot be made anew; see the scheduler's log")
        } else if self.failing.load(Ordering::Relaxed) {
            Some(
                "the store cannot be written; is the disk full, or its database locked? see the scheduler's log",
            )
        } else {
            None
        }
    }

    /// All metrics in the text format of Prometheus.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes everything");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares the page with the registry; `UPDATE_DOCS=1` writes it.
    #[test]
    fn the_page_lists_every_metric() {
        let metrics = Metrics::new();
        // A family without members is not encoded, so give each one a member.
        let m = &metrics;
        for gauges in
            [&m.queue_waiting, &m.queue_running, &m.queue_limit, &m.queue_paused, &m.alarm, &m.nodes]
        {
            drop(gauges.get_or_create(&Labels::new()));
        }
        for counters in [&m.tasks, &m.refusals] {
            drop(counters.get_or_create(&Labels::new()));
        }
        drop(m.stage_seconds.get_or_create(&Labels::new()));
        let text = metrics.text();
        let mut page =
            "# Metrics\n\nThe scheduler serves them at `http.listen` (127.0.0.1:8871) as `/metrics`, in \
                        Prometheus' text format.\n\n| name | type | what |\n| --- | --- | --- |\n"
                .to_owned();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, what) = help.split_once(' ').unwrap();
                let kind = text
                    .lines()
                    .find_map(|l| l.strip_prefix(&format!("# TYPE {name} ")))
                    .expect("a metric with a help has a type");
                let total = if kind == "counter" { "_total" } else { "" };
                page.push_str(&format!("| `{name}{total}` | {kind} | {} |\n", what.trim_end_matches('.')));
            }
        }
        page.push_str(
            "\n`/healthz` answers 200 while the scheduler's loop turns, else 503. `/readyz` answers 200 while tasks are \
             accepted, and 503 while the\nstore cannot be written or the sockets are gone. Both name the data directory of the \
             scheduler that answers.\n",
        );
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        assert_eq!(page, std::fs::read_to_string(path).unwrap());
    }
}
