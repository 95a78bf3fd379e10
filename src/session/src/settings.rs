//! Settings of a node that change while it runs, by commands of its scheduler.
//!
//! A change is executed as a whole or refused: everything is checked before anything changes. Models and slots are
//! part of the registration: the node registers again, and keeps its running attempts. Of labels the scheduler knows by
//! the confirmation alone, and plans the node's queues anew.

use std::fmt::Debug;

use lamagrid_config::LogLevel;
use lamagrid_domain::{Label, ModelName, ModelOffer, NodeInfo, QueueName, WithheldModel};
use lamagrid_protocol::message::NodeChange;

/// Most tasks one node may work on at once.
const MAX_SLOTS: u16 = 64;

/// The part of a change that a node's session cannot carry out itself; `None` leaves a setting as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adjustment {
    /// Number of tasks that the node runs at once.
    pub slots: Option<u16>,
    /// CPU threads of one inference; 0 leaves the number to the backend. See [`crate::Session::take_threads`].
    pub threads: Option<u32>,
    /// The lowest severity that is logged.
    pub log_level: Option<LogLevel>,
}

/// Adjusts the process around a session.
pub trait Adjust: Debug + Send + Sync {
    /// Prepares the process for the number of slots, checks that its backend can change its threads, and sets the level
    /// of its log. Does all of that or nothing.
    ///
    /// # Errors
    /// [`ChangeRefused`] with the reason.
    fn adjust(&self, adjustment: Adjustment) -> Result<(), ChangeRefused>;
}

/// Why a node does not change a setting, for the administrator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ChangeRefused(pub String);

/// The settings of a node that are part of its registration.
#[derive(Debug)]
pub(crate) struct Registered {
    /// The models that it offers, of those that it was started with; `None` for all.
    models: Option<Vec<ModelName>>,
    slots: u16,
    /// The most slots that it had: it may have that many backends.
    most_slots: u16,
    /// `None` for those of its start.
    labels: Option<Vec<Label>>,
    /// Queues that the scheduler refused.
    pub(crate) refused_queues: Vec<QueueName>,
}

impl Registered {
    pub(crate) fn new(slots: u16) -> Self {
        Self { models: None, slots, most_slots: slots, labels: None, refused_queues: Vec::new() }
    }

    pub(crate) fn slots(&self) -> u16 {
        self.slots
    }

    /// Whether more backends may be running than it has slots now.
    pub(crate) fn is_reduced(&self) -> bool {
        self.slots < self.most_slots
    }

    /// Checks a change against the models that the node offers, and those that it could not verify.
    ///
    /// # Errors
    /// [`ChangeRefused`]
    pub(crate) fn check(
        &self,
        change: &NodeChange,
        offers: &[ModelOffer],
        withheld: &[WithheldModel],
    ) -> Result<Adjustment, ChangeRefused> {
        if let Some(models) = &change.models {
            self.check_models(models, offers, withheld)?;
        }
        if let Some(slots) = change.slots
            && !(1..=MAX_SLOTS).contains(&slots)
        {
            return Err(ChangeRefused(format!("a node has 1 to {MAX_SLOTS} slots, not {slots}")));
        }
        let level = |word: &Label| {
            let unknown = || ChangeRefused(format!("this node knows no log level {word}"));
            LogLevel::of_word(word.as_str()).ok_or_else(unknown)
        };
        let log_level = change.log_level.as_ref().map(level).transpose()?;
        Ok(Adjustment { slots: change.slots, threads: change.threads, log_level })
    }

    fn check_models(
        &self,
        models: &[ModelName],
        offers: &[ModelOffer],
        withheld: &[WithheldModel],
    ) -> Result<(), ChangeRefused> {
        let offered = offers.iter().map(|offer| &offer.model);
        let known: Vec<_> = offered.chain(withheld.iter().map(|withheld| &withheld.model)).collect();
        if let Some(unknown) = models.iter().find(|model| !known.contains(model)) {
            let known: Vec<_> = known.into_iter().map(ModelName::as_str).collect();
            return Err(ChangeRefused(format!(
                "it was started without the model {unknown}; it has {}",
                known.join(", ")
            )));
        }
        let is_served = |offer: &&ModelOffer| {
            models.contains(&offer.model) && (offer.routed || !self.refused_queues.contains(&offer.queue))
        };
        if !offers.iter().any(|offer| is_served(&offer)) {
            let text = "it could serve none of these models: the scheduler refuses their queues, or their files are not usable";
            return Err(ChangeRefused(text.to_owned()));
        }
        Ok(())
    }

    /// Takes over a checked change. True if the node must register again.
    pub(crate) fn apply(&mut self, change: &NodeChange) -> bool {
        if let Some(models) = &change.models {
            self.models = Some(models.clone());
        }
        if let Some(slots) = change.slots {
            self.slots = slots;
            self.most_slots = self.most_slots.max(slots);
        }
        if let Some(labels) = &change.labels {
            self.labels = Some(labels.clone());
        }
        change.models.is_some() || change.slots.is_some()
    }

    /// Changes the description of the node's start to the present one.
    pub(crate) fn describe(&self, info: &mut NodeInfo) {
        if let Some(labels) = &self.labels {
            info.labels.clone_from(labels);
        }
        let Some(models) = &self.models else { return };
        let (offered, left_out) =
            std::mem::take(&mut info.models).into_iter().partition(|offer| models.contains(&offer.model));
        info.models = offered;
        info.withheld.extend(left_out.into_iter().map(|offer| WithheldModel {
            model: offer.model,
            reason: "an administrator left it out with lamagrid node set --models".into(),
        }));
        info.withheld = WithheldModel::that_fit(std::mem::take(&mut info.withheld));
    }
}
