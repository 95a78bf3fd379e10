//! The attempts of a simulated node: it begins them in the order of assignment, each when a slot is free and its inputs
//! are decoded, and holds their results until they are recorded.

use super::*;

/// How far an attempt is with its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The scheduler has not said that it knows.
    Announced,
    /// In line for one.
    Before {
        prepared: bool,
    },
    In,
    /// The slot is free again.
    After,
}

pub(super) struct Attempt {
    outcome: AttemptOutcome,
    inline: Option<Bytes>,
    pub(super) cancelled: bool,
    pub(super) abandoned: bool,
    pub(super) stage: Stage,
}

impl Attempt {
    /// Whether no slot has begun with it.
    fn stands_in_line(&self) -> bool {
        matches!(self.stage, Stage::Announced | Stage::Before { .. })
    }

    pub(super) fn uses_credit(&self) -> bool {
        self.stage != Stage::After
    }
}

#[derive(Clone)]
pub(super) struct Held {
    outcome: AttemptOutcome,
    inline: Option<Bytes>,
    /// Its delivery gives the credit back.
    pub(super) uses_credit: bool,
}

impl Node {
    /// Attempts that wait for a slot which another one has, oldest first.
    pub(in crate::simulation) fn waiting(&self) -> Vec<LeaseToken> {
        let idle = usize::from(self.slots).saturating_sub(self.in_slots());
        let before = self.order.iter().filter(|t| self.running[t].stands_in_line());
        before.skip(idle).copied().collect()
    }

    fn in_slots(&self) -> usize {
        self.running.values().filter(|a| a.stage == Stage::In).count()
    }

    /// The attempts that a crash of the node now counts against. Empty for a node that prepares tasks, because the scheduler learns
    /// a moment later which of them has begun.
    pub(in crate::simulation) fn surely_begun(&self) -> impl Iterator<Item = LeaseToken> {
        let begun = |a: &Attempt| self.overlap == 0 && a.stage == Stage::In && !a.cancelled;
        self.running.iter().filter(move |(_, attempt)| begun(attempt)).map(|(token, _)| *token)
    }

    /// Whether it was given more than the capacity it announced.
    pub(in crate::simulation) fn is_overfull(&self) -> bool {
        let used = self.running.values().filter(|a| a.uses_credit()).count();
        used > usize::from(self.slots) + usize::from(self.overlap.min(self.slots))
    }

    pub(super) fn free_slot(&mut self) {
        if self.session.is_some() && self.phase == Phase::Serving {
            self.credit += 1;
        }
    }

    pub(super) fn deliver(&mut self, net: &mut Network, token: LeaseToken) {
        let (Some(session), Some(held)) = (self.session, self.held.get(&token).cloned()) else {
            return;
        };
        if held.uses_credit {
            self.free_slot();
        }
        let loaded = self.offers.iter().filter(|o| o.loaded).map(|o| o.model.clone()).collect();
        let memory = self.used.get(&token).copied().filter(|_| token.as_bytes()[0].is_multiple_of(2));
        let (outcome, credit) = (held.outcome, self.credit());
        let delivery = Delivery { session, token, outcome, credit, loaded, memory };
        self.say(net, delivery.into(), held.inline);
    }

    pub(in crate::simulation) fn on_lane(&mut self, net: &mut Network, message: LaneMessage) {
        match message {
            LaneMessage::Assign(assign) => {
                let token = assign.token;
                let fresh = self.seen.insert(token);
                if fresh && self.cancelled.contains(&token) {
                    return self.hold_cancelled(net, token);
                }
                if fresh {
                    let (outcome, inline) = outcome(net, token);
                    let stage = Stage::Announced;
                    let attempt = Attempt { outcome, inline, cancelled: false, abandoned: false, stage };
                    self.running.insert(token, attempt);
                    self.order.push_back(token);
                    self.used.insert(token, self.device.routing.measured(&assign.spec));
                    for offer in &mut self.offers {
                        let is_it = offer.model == assign.spec.model;
                        offer.loaded = is_it || offer.loaded && !self.device.holds_one;
                    }
                }
                if let Some(session) = self.session.filter(|_| self.running.contains_key(&token)) {
                    self.say(net, Accept { session, token }.into(), None);
                }
            }
            LaneMessage::Hint(_) => self.poll(net),
        }
    }

    /// The scheduler knows that an attempt is here.
    pub(super) fn proceed(&mut self, net: &mut Network, token: LeaseToken) {
        if let Some(Attempt { stage: stage @ Stage::Announced, .. }) = self.running.get_mut(&token) {
            *stage = Stage::Before { prepared: false };
            let ms = net.random.between(0, 20);
            net.after(ms, self.timer(NodeTimer::Prepared(token)));
        }
    }

    /// Begins with the first attempts while they are prepared and a slot is free.
    pub(super) fn fill_slots(&mut self, net: &mut Network) {
        while self.in_slots() < usize::from(self.slots) {
            let next = self.order.iter().find(|t| self.running[t].stands_in_line()).copied();
            let Some(token) = next.filter(|t| self.running[t].stage == Stage::Before { prepared: true })
            else {
                return;
            };
            self.running.get_mut(&token).expect("it is in line").stage = Stage::In;
            let long = net.random.chance(if net.faults_off { 30 } else { net.rates.long });
            let ms = if long { net.random.between(500, 9_000) } else { net.random.between(1, 400) };
            let timer = if self.frees_early { NodeTimer::LeaveSlot } else { NodeTimer::Finish };
            net.after(ms, self.timer(timer(token)));
        }
    }

    pub(super) fn leave_slot(&mut self, net: &mut Network, token: LeaseToken) {
        let Some(attempt) = self.running.get_mut(&token) else { return };
        attempt.stage = Stage::After;
        let ms = net.random.between(0, 60);
        net.after(ms, self.timer(NodeTimer::Finish(token)));
        self.free_slot();
        self.ready(net);
        self.fill_slots(net);
    }

    fn remove_running(&mut self, token: LeaseToken) -> Option<Attempt> {
        self.order.retain(|t| *t != token);
        self.running.remove(&token)
    }

    /// Takes an attempt out that no slot has begun with.
    fn take_back(&mut self, net: &mut Network, token: LeaseToken) -> bool {
        let found = self.running.get(&token).is_some_and(Attempt::stands_in_line);
        if found {
            self.remove_running(token);
            self.fill_slots(net);
        }
        found
    }

    /// The same, and delivers that.
    pub(super) fn give_back(&mut self, net: &mut Network, token: LeaseToken) -> bool {
        let found = self.take_back(net, token);
        if found {
            self.hold_cancelled(net, token);
        }
        found
    }

    fn hold_cancelled(&mut self, net: &mut Network, token: LeaseToken) {
        let held = Held { outcome: AttemptOutcome::Cancelled, inline: None, uses_credit: true };
        self.held.insert(token, held);
        self.deliver(net, token);
    }

    pub(super) fn abandon(&mut self, net: &mut Network, token: LeaseToken) {
        if self.take_back(net, token) {
            self.free_slot();
            self.ready(net);
        } else if let Some(attempt) = self.running.get_mut(&token) {
            attempt.abandoned = true;
        }
        self.held.remove(&token);
    }

    pub(super) fn finish(&mut self, net: &mut Network, token: LeaseToken) {
        let Some(attempt) = self.remove_running(token) else { return };
        let uses_credit = attempt.uses_credit();
        if attempt.abandoned {
            if uses_credit {
                self.free_slot();
                self.ready(net);
            }
            return self.fill_slots(net);
        }
        let outcome = if attempt.cancelled { AttemptOutcome::Cancelled } else { attempt.outcome };
        let inline = attempt.inline.filter(|_| matches!(outcome, AttemptOutcome::Done { .. }));
        self.held.insert(token, Held { outcome, inline, uses_credit });
        self.deliver(net, token);
        self.fill_slots(net);
        self.leave_if_drained(net);
    }
}

/// The outcome of an attempt; each attempt has a result of its own.
pub(in crate::simulation) fn outcome(
    net: &mut Network,
    token: LeaseToken,
) -> (AttemptOutcome, Option<Bytes>) {
    let kinds = [
        FailureKind::OutOfMemory,
        FailureKind::Internal,
        FailureKind::Inference,
        FailureKind::ModelLoad,
        FailureKind::Disconnected,
    ];
    if !net.faults_off && net.random.chance(150) {
        let kind = *net.random.pick(&kinds);
        return (AttemptOutcome::Failed { failure: Failure::new(kind, "simulated") }, None);
    }
    let mut hash = [0; 32];
    hash[..16].copy_from_slice(token.as_bytes());
    let inline = net.random.chance(500);
    let wrong = !net.faults_off && net.random.chance(10);
    let len = if wrong { 1 } else { 16 };
    let result = BlobMeta { role: Role::Result, len, hash: Hash::new(hash), form: BlobForm::Encoded };
    let bytes = inline.then(|| Bytes::copy_from_slice(token.as_bytes()));
    (AttemptOutcome::Done { result, inline, stages: Stages::default() }, bytes)
}
