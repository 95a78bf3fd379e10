//! Faults planted on purpose: the checks of the scheduler must see each of them.
//!
//! Compiled for tests, and with the feature `sabotage` for `make chaos SABOTAGE=...`; never shipped. The macro `fault!`
//! is the only way in, at the edge of a part or of a decision, never inside one.

use lamagrid_domain::TaskId;

/// `fault!(at, Kind => act)` runs `act` where that fault is planted in `at.faults`; `Kind(id)` limits it to some tasks.
/// Without tests and the feature `sabotage` it expands to nothing.
macro_rules! fault {
    ($at:expr, $fault:ident => $act:expr) => {
        if $at.faults.is_planted($crate::core::fault::Fault::$fault) {
            $act;
        }
    };
    ($at:expr, $fault:ident($id:expr) => $act:expr) => {
        if $at.faults.is_planted_at($crate::core::fault::Fault::$fault, $id) {
            $act;
        }
    };
}

/// A planted fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Followers are not told how their task ended.
    OutcomeDropped,
    /// A second delivery of a finished task is accepted as well.
    DoubleAccept,
    /// An accepted task is not written.
    RowForgotten,
    /// A delivery is accepted from a session that does not hold the lease.
    StaleAccepted,
    /// Busy nodes are given tasks to prepare while others are idle.
    OverlapFirst,
    /// A recall is noted and never sent to the node.
    RecallUnsent,
    /// The loss of a node counts as a crash of every task it had.
    NeighbourCounted,
    /// An isolated task is given to a node that has others.
    SuspectInCompany,
    /// The loss of a node counts as a crash of no task.
    CrashUncounted,
    /// Inputs may be uploaded under an id that is taken.
    UploadOfKnown,
    /// An upload counts against no bound.
    UploadUncounted,
    /// The bounds of owners are not enforced, only those of clients.
    OwnerUnbounded,
    /// A task's own run limit replaces the configured one even if it is longer.
    OwnLimitCounts,
    /// An id older than the tombstones is taken for a new one.
    WatermarkIgnored,
    /// The wall clock is trusted, whatever it shows.
    ClockBelieved,
    /// Tasks are given to nodes whose device is not enough for them.
    FitIgnored,
    /// Tasks of models in memory go first, however long others wait.
    WarmForever,
    /// Nodes of another queue never get the tasks that spilled to it.
    SpillForgotten,
    /// No node is kept free for a task that smaller ones overtake.
    CrowdedOut,
}

/// Each fault by the word that plants it.
#[cfg(feature = "sabotage")]
const WORDS: [(&str, Fault); 19] = [
    ("drop-outcome", Fault::OutcomeDropped),
    ("double-accept", Fault::DoubleAccept),
    ("forget-row", Fault::RowForgotten),
    ("stale-accept", Fault::StaleAccepted),
    ("overlap-first", Fault::OverlapFirst),
    ("unsent-recall", Fault::RecallUnsent),
    ("counted-neighbour", Fault::NeighbourCounted),
    ("suspect-in-company", Fault::SuspectInCompany),
    ("uncounted-crash", Fault::CrashUncounted),
    ("upload-of-known", Fault::UploadOfKnown),
    ("uncounted-upload", Fault::UploadUncounted),
    ("unbounded-owner", Fault::OwnerUnbounded),
    ("own-limit", Fault::OwnLimitCounts),
    ("ignored-watermark", Fault::WatermarkIgnored),
    ("trusted-clock", Fault::ClockBelieved),
    ("ignored-fit", Fault::FitIgnored),
    ("warm-forever", Fault::WarmForever),
    ("forgotten-spill", Fault::SpillForgotten),
    ("crowded-out", Fault::CrowdedOut),
];

impl Fault {
    /// The fault that `make chaos` calls so.
    #[cfg(feature = "sabotage")]
    pub(crate) fn of_word(word: &str) -> Option<Self> {
        WORDS.iter().find(|(each, _)| *each == word).map(|(_, fault)| *fault)
    }
}

/// The fault that is planted, if any.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults(Option<Fault>);

impl Faults {
    pub(crate) fn plant(&mut self, fault: Option<Fault>) {
        self.0 = fault;
    }

    pub(crate) fn is_planted(self, fault: Fault) -> bool {
        self.0 == Some(fault)
    }

    /// Whether a fault shows at this task: at every one in the simulation. Under real load, a fault that leaves a
    /// client waiting shows at one task in sixteen, or no other task would be left to notice it by.
    pub(crate) fn is_planted_at(self, fault: Fault, id: TaskId) -> bool {
        let is_rare = !cfg!(test) && fault != Fault::DoubleAccept;
        self.is_planted(fault) && (!is_rare || id.as_bytes()[0] < 16)
    }
}
