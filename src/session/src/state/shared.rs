//! Shares a node's [`State`] between its backends and its session's thread, and wakes each side for the other.

use super::*;

/// The state, with the means by which its two sides wake each other.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Held for map operations only, never across a system call except an unlink.
    state: Mutex<State>,
    /// Signals that a backend can take an attempt or that the session ended.
    pub(crate) for_backends: Condvar,
    /// Signals that the session's thread has something to send or must end.
    pub(crate) for_session: Notify,
    info: NodeInfo,
    /// Slots and overlap at the start.
    slots: u16,
    overlap: u16,
    adjust: Option<Arc<dyn Adjust>>,
    /// Distinguishes this process from another one with the same node name.
    boot: BootId,
}

impl Shared {
    pub(crate) fn new(info: NodeInfo, slots: u16, overlap: u16, adjust: Option<Arc<dyn Adjust>>) -> Self {
        let loaded =
            info.models.iter().filter(|offer| offer.loaded).map(|offer| offer.model.clone()).collect();
        let state = State {
            phase: Phase::Serving,
            ended: None,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            next_place: 0,
            held: BTreeMap::new(),
            outgoing: VecDeque::new(),
            cancelled: VecDeque::new(),
            loaded,
            offers: Offers { models: info.models.clone(), withheld: info.withheld.clone() },
            must_register: false,
            credit: 0,
            live: None,
            spool: None,
            blobs: None,
            registered: Registered::new(slots),
            threads: None,
            slot_s: BTreeMap::new(),
        };
        Self {
            state: Mutex::new(state),
            for_backends: Condvar::new(),
            for_session: Notify::new(),
            info,
            slots,
            overlap,
            adjust,
            boot: BootId::from_bytes(lamagrid_process::random_id()),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(crate) fn hello(&self) -> Hello {
        let mut state = self.lock();
        state.must_register = false;
        let Offers { models, withheld } = state.offers.clone();
        let mut info = NodeInfo { models, withheld, ..self.info.clone() };
        for offer in &mut info.models {
            offer.loaded = state.loaded.contains(&offer.model);
            offer.present |= offer.loaded;
        }
        state.registered.describe(&mut info);
        let held = state.held.keys().copied().collect();
        let mut actions = Action::BASIC.to_vec();
        actions.push(ActionKind::Undrain);
        actions.extend(self.adjust.as_ref().map(|_| ActionKind::Set));
        let slots = state.registered.slots();
        Hello {
            info,
            slots,
            overlap: self.overlap_of(slots),
            running: state.wanted(),
            held,
            boot: Some(self.boot),
            actions,
        }
    }

    /// The overlap in proportion to the slots, as at the start.
    fn overlap_of(&self, slots: u16) -> u16 {
        let overlap = u32::from(self.overlap) * u32::from(slots) / u32::from(self.slots.max(1));
        u16::try_from(overlap).unwrap_or(u16::MAX)
    }

    /// Executes a change of settings as a whole, or refuses it.
    pub(crate) fn set(&self, change: &NodeChange) -> Result<Executed, ChangeRefused> {
        let fixed = || ChangeRefused("its settings cannot change while it runs".to_owned());
        let adjust = self.adjust.as_ref().ok_or_else(fixed)?;
        let adjustment = {
            let state = self.lock();
            state.registered.check(change, &state.offers.models, &state.offers.withheld)?
        };
        adjust.adjust(adjustment)?;
        let mut state = self.lock();
        if change.threads.is_some() {
            state.threads = change.threads;
        }
        Ok(if state.registered.apply(change) { Executed::Renew } else { Executed::Done })
    }

    /// Takes tasks again after a drain of the scheduler.
    pub(crate) fn undrain(&self) -> Result<Executed, ChangeRefused> {
        let mut state = self.lock();
        match state.phase {
            Phase::Serving => Ok(Executed::Done),
            Phase::Draining(DrainedBy::Scheduler) => {
                state.phase = Phase::Serving;
                Ok(Executed::Renew)
            }
            Phase::Draining(DrainedBy::Owner) | Phase::Closing => {
                Err(ChangeRefused("it was told to end on its own host".to_owned()))
            }
        }
    }

    /// Memory of the models that are loaded now, in bytes, as far as it is known.
    pub(crate) fn model_memory_bytes(&self) -> u64 {
        let state = self.lock();
        let loaded = state.offers.models.iter().filter(|offer| state.loaded.contains(&offer.model));
        loaded.map(|offer| offer.memory_bytes).fold(0, u64::saturating_add)
    }

    /// Starts a session: discards queued messages, and sends the held results again.
    pub(crate) fn begin(&self, session: SessionId, events: EventPublisher) {
        let mut state = self.lock();
        state.live = Some(Live { session, events });
        // Abandoned attempts that still compute use their slot, too.
        let used = state.running.values().filter(|running| running.stage != Stage::After).count()
            + state.held.values().filter(|held| held.uses_credit).count();
        // The scheduler knows all attempts that the welcome did not abandon, even if its confirmations were lost.
        let announced =
            state.wanted().into_iter().filter(|token| state.running[token].stage == Stage::Announced);
        for token in announced.collect::<Vec<_>>() {
            state.proceed(token);
        }
        let slots = state.registered.slots();
        let capacity = i64::from(slots) + i64::from(self.overlap_of(slots));
        state.credit = capacity - i64::try_from(used).unwrap_or(i64::MAX);
        if state.phase != Phase::Serving {
            state.credit = 0;
        }
        state.outgoing.clear();
        state.outgoing.push_back(Outgoing::Ready);
        let State { held, outgoing, .. } = &mut *state;
        let delivered = |(token, held): (&LeaseToken, &Held)| Outgoing::Deliver {
            token: *token,
            frees: held.uses_credit,
        };
        outgoing.extend(held.iter().map(delivered));
        drop(state);
        self.for_session.notify_one();
        self.for_backends.notify_all();
    }

    /// Records that the connection is lost; the work continues.
    pub(crate) fn lose_connection(&self) {
        let mut state = self.lock();
        state.live = None;
        state.outgoing.clear();
    }

    pub(crate) fn set_refused_queues(&self, queues: Vec<QueueName>) {
        self.lock().registered.refused_queues = queues;
    }

    pub(crate) fn set_spool(&self, root: &str) {
        let mut state = self.lock();
        // A directory of another host is not usable here.
        state.spool = state.blobs.is_none().then(|| Spool::new(root));
    }

    pub(crate) fn set_blobs(&self, blobs: Option<BlobClient>) {
        self.lock().blobs = blobs;
    }

    pub(crate) fn blobs(&self) -> Option<BlobClient> {
        self.lock().blobs.clone()
    }

    pub(crate) fn spool(&self) -> Option<Spool> {
        self.lock().spool.clone()
    }

    pub(crate) fn set_loaded(&self, loaded: Vec<ModelName>) {
        let mut state = self.lock();
        if state.loaded != loaded {
            state.loaded = loaded;
            state.outgoing.push_back(Outgoing::Ready);
            drop(state);
            self.for_session.notify_one();
        }
    }

    /// Replaces the offered models; the node registers again if other models are offered or withheld.
    pub(crate) fn set_offers(&self, offers: Offers) {
        let models =
            |offers: &Offers| offers.models.iter().map(|offer| offer.model.clone()).collect::<Vec<_>>();
        let mut state = self.lock();
        let differ = models(&state.offers) != models(&offers) || state.offers.withheld != offers.withheld;
        state.offers = offers;
        state.must_register |= differ;
        drop(state);
        if differ {
            self.for_session.notify_one();
        }
    }

    /// True if the offered models have changed since the last hello.
    pub(crate) fn must_register(&self) -> bool {
        self.lock().must_register
    }

    /// Accepts an assignment; a repeated one is only confirmed again.
    pub(crate) fn assign(&self, assign: Assign, blobs: Vec<Bytes>) {
        let token = assign.token;
        let mut state = self.lock();
        if state.was_cancelled(token, Instant::now()) {
            state.hold(token, Held::cancelled(assign.spec.id));
        } else {
            if !state.running.contains_key(&token) && !state.held.contains_key(&token) {
                let attempt = Arc::new(Attempt::new(assign, blobs));
                let place = state.next_place;
                state.next_place += 1;
                state.running.insert(token, Running { attempt, stage: Stage::Announced, place });
            }
            state.outgoing.push_back(Outgoing::Accept(token));
        }
        drop(state);
        self.for_session.notify_one();
    }

    /// Makes an attempt available to backends, because the scheduler has confirmed its accept.
    pub(crate) fn proceed(&self, token: LeaseToken) {
        self.lock().proceed(token);
        self.for_backends.notify_one();
    }

    /// Stops an attempt, and remembers its token in case the assignment arrives after the cancel.
    pub(crate) fn cancel(&self, token: LeaseToken) {
        let mut state = self.lock();
        state.remember_cancelled(token, Instant::now());
        if !state.give_back(token)
            && let Some(Running { attempt, .. }) = state.running.get(&token)
        {
            attempt.cancel();
        }
        drop(state);
        self.for_session.notify_one();
    }

    /// Returns an attempt that has not entered its slot to the scheduler.
    pub(crate) fn recall(&self, token: LeaseToken) {
        self.lock().give_back(token);
        self.for_session.notify_one();
    }

    /// Marks an attempt as in its slot; returns false if it is no longer wanted. Waits for a free slot if there are
    /// fewer slots than backends.
    pub(crate) fn enter_slot(&self, attempt: &Attempt) -> bool {
        let mut state = self.lock();
        while state.ended.is_none() && state.is_full() && !attempt.is_stopped() {
            self.for_backends.wait_for(&mut state, SLOT_WAIT);
        }
        let Some(running) = state.running.get_mut(&attempt.token) else { return false };
        running.stage = Stage::In;
        attempt.enter();
        !attempt.is_stopped()
    }

    /// Frees the slot of an attempt whose remaining work needs no slot.
    pub(crate) fn leave_slot(&self, attempt: &Attempt, load: Duration) {
        let mut state = self.lock();
        if let Some(running) = state.running.get_mut(&attempt.token)
            && running.stage != Stage::After
        {
            running.stage = Stage::After;
            state.outgoing.push_back(Outgoing::Freed);
            if let Some(entered) = attempt.entered_at().filter(|_| !attempt.is_stopped()) {
                let seconds = entered.elapsed().saturating_sub(load).as_secs_f64();
                let average = state.slot_s.entry(attempt.spec.model.clone()).or_insert(seconds);
                *average += (seconds - *average) * 0.2; // about the last five tasks
            }
        }
        drop(state);
        self.for_session.notify_one();
    }

    /// Stops an attempt that is no longer wanted, and discards its result.
    pub(crate) fn abandon(&self, token: LeaseToken) {
        let mut state = self.lock();
        if state.take_back(token).is_some() {
            state.outgoing.push_back(Outgoing::Freed);
        } else if let Some(Running { attempt, .. }) = state.running.get(&token) {
            attempt.abandon();
        }
        let dropped = state.held.remove(&token);
        let spool = state.spool.clone();
        drop(state);
        discard(spool.as_ref(), token, dropped);
        self.for_session.notify_one();
    }

    /// Records that a backend has finished an attempt, and queues the delivery.
    pub(crate) fn finished(&self, attempt: &Attempt, outcome: AttemptOutcome, inline: Option<Bytes>) {
        let mut state = self.lock();
        let stage = state.running.remove(&attempt.token).map(|running| running.stage);
        let uses_credit = stage != Some(Stage::After);
        let held = Held { task: attempt.spec.id, outcome, inline, memory: attempt.memory(), uses_credit };
        let mut dropped = None;
        if attempt.is_abandoned() {
            // An attempt that was taken back has already returned its credit.
            if stage.is_some() && uses_credit {
                state.outgoing.push_back(Outgoing::Freed);
            }
            dropped = Some(held);
        } else {
            state.hold(attempt.token, held);
        }
        let spool = state.spool.clone();
        drop(state);
        discard(spool.as_ref(), attempt.token, dropped);
        self.for_session.notify_one();
    }

    /// Drops a held outcome that the scheduler has recorded; deletes its file if it was not accepted.
    pub(crate) fn stored(&self, Stored { token, accepted }: Stored) {
        let mut state = self.lock();
        let dropped = state.held.remove(&token);
        let spool = state.spool.clone();
        drop(state);
        if !accepted {
            discard(spool.as_ref(), token, dropped);
        }
    }

    /// Publishes an event, if there is a connection.
    pub(crate) fn publish(&self, event: impl FnOnce(SessionId) -> Result<Frame, FrameError>) {
        if let Some(live) = &self.lock().live
            && let Ok(frame) = event(live.session)
        {
            live.events.publish(frame);
        }
    }

    /// Stops taking work, and returns the attempts that have not entered their slot.
    pub(crate) fn drain(&self, by: DrainedBy) {
        let mut state = self.lock();
        state.phase = match state.phase {
            Phase::Serving => Phase::Draining(by),
            // The process ends, whatever the scheduler wants.
            Phase::Draining(_) if by == DrainedBy::Owner => Phase::Draining(by),
            same => same,
        };
        let tokens: Vec<_> = state.running.keys().copied().collect();
        for token in tokens {
            state.give_back(token);
        }
        drop(state);
        self.for_session.notify_one();
    }

    pub(crate) fn close(&self) {
        self.lock().phase = Phase::Closing;
        self.for_session.notify_one();
    }

    /// True if the session was told to leave and has nothing left to do.
    pub(crate) fn may_leave(&self) -> bool {
        let state = self.lock();
        match state.phase {
            Phase::Serving => false,
            Phase::Draining(_) => state.running.is_empty() && state.held.is_empty(),
            Phase::Closing => true,
        }
    }

    /// Number of outcomes not yet recorded on a node that was told to leave and has finished its work; 0 otherwise.
    pub(crate) fn left_to_deliver(&self) -> usize {
        let state = self.lock();
        let done = state.phase != Phase::Serving && state.running.is_empty();
        if done { state.held.len() } else { 0 }
    }

    /// Ends the session. A node that was refused for good has no attempts any more: they are stopped.
    pub(crate) fn end(&self, failure: Option<Failure>) {
        let mut state = self.lock();
        if failure.is_some() {
            state.waiting.clear();
            state.running.values().for_each(|running| running.attempt.abandon());
        }
        state.ended = Some(failure);
        drop(state);
        self.for_backends.notify_all();
    }
}
