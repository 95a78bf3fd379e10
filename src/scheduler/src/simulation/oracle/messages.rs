//! Checks messages and their recipients.

use super::*;

/// An assignment as its row and its lane tell it.
pub(super) struct Assigned<'a> {
    pub(super) id: TaskId,
    pub(super) token: LeaseToken,
    pub(super) session: SessionId,
    /// Which lane of the session carried it.
    pub(super) index: usize,
    pub(super) node: &'a NodeId,
}

impl Oracle {
    pub(super) fn hear_credit(&mut self, request: &ResultRequest) {
        let (id, credit) = match request {
            ResultRequest::Ready(ready) => (ready.session, ready.credit),
            ResultRequest::Delivery(delivery) => (delivery.session, delivery.credit),
            ResultRequest::Accept(accept) => {
                if let Some(session) = self.sessions.get_mut(&accept.session)
                    && let Some(number @ None) = session.numbers.get_mut(&accept.token)
                {
                    session.accepted += 1;
                    *number = Some(session.accepted);
                }
                return;
            }
        };
        if let Some(session) = self.sessions.get_mut(&id) {
            let ceiling = session.given + session.slots + session.overlap;
            let credit = credit.saturating_sub(session.excess).min(ceiling);
            session.granted = session.granted.max(credit);
        }
    }

    /// Connections that must be told at once, because they ask about a finished task.
    pub(super) fn followed_by(&mut self, message: &Message) -> Vec<(PeerId, TaskId)> {
        let Message::Client(peer, request, _) = message else { return Vec::new() };
        let (id, owner, digest) = match request {
            ClientRequest::Submit(s) if s.follow => {
                (s.spec.id, &s.spec.owner, Some(lamagrid_protocol::payload_digest(&s.spec)))
            }
            ClientRequest::Attach(a) => (a.id, &a.owner, a.digest),
            _ => return Vec::new(),
        };
        if let Some(task) = self.live.get_mut(&id)
            && task.owner == *owner
            && digest.is_none_or(|d| d == task.digest)
        {
            task.followers.insert(peer.clone());
        }
        match self.over.get(&id) {
            Some(over) if over.owner == *owner && digest.is_none_or(|d| d == over.digest) => {
                vec![(peer.clone(), id)]
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn live_followers_of_ended(&mut self, id: TaskId) -> Vec<(PeerId, TaskId)> {
        let followers = self.live.remove(&id).map(|t| t.followers).unwrap_or_default();
        followers.into_iter().map(|peer| (peer, id)).collect()
    }

    pub(super) fn on_assigned(&mut self, assigned: Assigned<'_>, core: View<'_>) -> Result<(), Violation> {
        let Assigned { id, token, session, index, node } = assigned;
        ensure!(!self.removed.contains(node), Illegal, "task {id} was given to {node}, which is removed");
        let task = self.task(id, "assigned")?;
        task.state = legal(&task.state, Event::Assign { token, session }, id)?;
        task.node = Some(node.clone());
        task.backs_off = false;
        let (queue, model, isolated) = (task.queue.clone(), task.model.clone(), task.isolated);
        let (others, beside) = self.others_on(session, id);
        let spec = self.task(id, "assigned")?.spec.clone();
        let Some(target) = self.sessions.get_mut(&session) else {
            return Err(Violation {
                kind: Kind::Structure,
                what: format!("task {id} went to a session that is over"),
            });
        };
        let was_unused = target.used() == 0 && beside.is_empty();
        ensure!(!isolated || was_unused, Illegal, "isolated task {id} was given to {node}, which has others");
        ensure!(!beside.contains(&true), Illegal, "task {id} was given to {node} beside an isolated one");
        target.given += 1;
        target.numbers.insert(token, None);
        let on_overlap = target.granted < target.given + target.overlap;
        ensure!(target.given <= target.granted, Structure, "{node} was given more than its credit");
        ensure!(target.info.name == node.name, Structure, "the row of {id} names another node than its lane");
        // A task that ended in the same step is gone: how long it waited is not known.
        let waited_ms = core.task(id).map_or(u64::MAX, |task| task.waited_for_spill_ms());
        let lane = target.lanes.get(index).cloned();
        let lane = lane.as_ref();
        let is_spilled = lane.is_some_and(|lane| self.routing.may_spill(&queue, lane, waited_ms));
        ensure!(
            lane == Some(&queue) || is_spilled,
            Structure,
            "task {id} of {queue} went down the lane of {lane:?} after {waited_ms} ms"
        );
        let offered = target
            .info
            .models
            .iter()
            .any(|offer| offer.model == model && (offer.routed || offer.queue == queue || is_spilled));
        ensure!(offered, Structure, "{node} was given {model} of {queue}, which it lacks");
        // Several slots share the memory.
        let beside_it: Vec<&TaskSpec> = others.iter().filter(|_| target.slots > 1).collect();
        ensure!(
            self.routing.fits(&spec, &beside_it, &target.info),
            Misplaced,
            "task {id} ({:?}) does not fit {node} ({} bytes) beside {} others",
            self.routing.measured(&spec),
            target.info.memory_bytes,
            beside_it.len()
        );
        let given = overtaking::Given {
            id,
            session,
            node,
            beside: &beside_it,
            is_isolated: isolated,
            spilled_to: lane.filter(|_| is_spilled),
            was_unused,
        };
        self.check_order(&given, core)?;
        let is_second =
            is_spilled && queue.as_str() == "big" && lane.is_some_and(|lane| lane.as_str() == "cpu");
        if on_overlap {
            self.note("given on overlap");
        }
        if is_spilled {
            self.note("given to a node of another queue");
            if is_second {
                self.note("given to a node of the second queue in a chain");
            }
        }
        if isolated {
            self.note("given alone");
        }
        Ok(())
    }

    /// The tasks that a session has besides one, and whether each is isolated.
    fn others_on(&self, session: SessionId, id: TaskId) -> (Vec<TaskSpec>, Vec<bool>) {
        let others = self.live.iter().filter(|(other, task)| {
            **other != id && matches!(task.state, State::Assigned { session: s, .. } if s == session)
        });
        others.map(|(_, task)| (task.spec.clone(), task.isolated)).unzip()
    }

    pub(super) fn on_control(&mut self, message: &Message, reply: &ControlReply) -> Result<(), Violation> {
        if let (ControlReply::Commands(told), Message::Control(_, ControlRequest::Poll(poll))) =
            (reply, message)
        {
            let known = self.sessions.get(&poll.session).map(|session| &session.actions);
            let strange = told.commands.iter().find(|c| !known.is_some_and(|k| k.contains(&c.action.kind())));
            ensure!(strange.is_none(), Illegal, "{strange:?} was sent to a node that does not know it");
            return Ok(());
        }
        let (ControlReply::Welcome(welcome), Message::Control(peer, ControlRequest::Hello(hello))) =
            (reply, message)
        else {
            return Ok(());
        };
        let info = hello.info.clone();
        let lanes: Vec<_> = welcome.lanes.iter().map(|lane| lane.queue.clone()).collect();
        let wrong = lanes.iter().find(|queue| !self.routing.meets(queue, &info));
        ensure!(wrong.is_none(), Misplaced, "{} got the lane of {wrong:?}", info.name);
        let routes_all = self.routing.is_strict && info.models.iter().all(|offer| offer.routed);
        let mut missing = self
            .routing
            .queues()
            .into_iter()
            .filter(|queue| routes_all && self.routing.meets(queue, &info) && !lanes.contains(queue));
        let missing = missing.next();
        ensure!(missing.is_none(), Misplaced, "{} meets {missing:?} and has no lane of it", info.name);
        let node = NodeId::new(peer, info.name.clone());
        ensure!(!self.removed.contains(&node), Illegal, "{node} is removed, and was welcomed");
        let (slots, offered) = (u64::from(hello.slots), u64::from(hello.overlap));
        let overlap = offered.min(slots);
        let excess = offered - overlap;
        let session = Session {
            info,
            lanes,
            boot: hello.boot,
            slots,
            overlap,
            excess,
            granted: 0,
            given: 0,
            numbers: BTreeMap::new(),
            accepted: 0,
            actions: hello.actions.clone(),
        };
        self.sessions.insert(welcome.session, session);
        self.note("welcome");
        let mut adopted = 0;
        for (id, task) in &mut self.live {
            let State::Assigned { token, .. } = task.state else { continue };
            if task.node.as_ref() != Some(&node) {
                continue;
            }
            let listed = hello.running.contains(&token) || hello.held.contains(&token);
            let kept = listed && !welcome.abandoned.contains(&token);
            ensure!(
                kept,
                Structure,
                "task {id} stays with {node}, which was told to drop it or never had it"
            );
            task.state = legal(&task.state, Event::Adopt { session: welcome.session }, *id)?;
            self.innocent.remove(&token); // it may have begun since
            self.alone.remove(&token);
            adopted += 1;
        }
        (0..adopted).for_each(|_| self.note("adopted"));
        Ok(())
    }

    pub(super) fn on_result(
        &self,
        message: &Message,
        reply: &ResultReply,
        held: bool,
    ) -> Result<(), Violation> {
        let Message::Result(_, request, _) = message else { return Ok(()) };
        match (reply, request) {
            (ResultReply::Proceed(proceed), ResultRequest::Accept(accept)) => {
                let holds = State::Assigned { token: accept.token, session: accept.session };
                let live = self.live.values().any(|t| t.state == holds);
                ensure!(
                    live && proceed.token == accept.token,
                    StaleAccepted,
                    "a stale accept was answered: go on"
                );
            }
            (ResultReply::Stored(stored), ResultRequest::Delivery(delivery)) => {
                let recorded = self.over.values().any(|o| o.token == Some(delivery.token));
                ensure!(
                    stored.accepted == (held || recorded),
                    StaleAccepted,
                    "a delivery was answered accepted {}, it held the lease: {held}, is on record: {recorded}",
                    stored.accepted
                );
            }
            (ResultReply::Abandon(_), ResultRequest::Accept(accept)) => {
                let holds = State::Assigned { token: accept.token, session: accept.session };
                let live = self.live.values().any(|t| t.state == holds);
                ensure!(!live, Structure, "the holder of a lease was told to stop");
            }
            _ => {}
        }
        Ok(())
    }

    /// A reply to a client: it is not told about tasks of other owners, nor that one of its own is unknown.
    pub(super) fn on_reply(
        &mut self,
        message: &Message,
        peer: &PeerId,
        reply: &ClientReply,
    ) -> Result<(), Violation> {
        if let ClientReply::Outcome(outcome) = reply {
            let id = outcome.task.id;
            let Some(over) = self.over.get(&id) else {
                return Err(Violation {
                    kind: Kind::Illegal,
                    what: format!("an outcome of {id}, which has not ended"),
                });
            };
            let told = TaskStatus::of_outcome(outcome);
            ensure!(
                over.told.agrees(&told),
                TwoOutcomes,
                "task {id} ended as {:?}, told is {told:?}",
                over.told
            );
        }
        let Message::Client(asker, request, _) = message else { return Ok(()) };
        if asker != peer {
            return Ok(());
        }
        let (id, owner) = match request {
            ClientRequest::Submit(s) => (s.spec.id, &s.spec.owner),
            ClientRequest::Offer(o) => (o.id, &o.owner),
            ClientRequest::Attach(a) => (a.id, &a.owner),
            ClientRequest::Cancel(c) => (c.id, &c.owner),
            ClientRequest::Query(q) => (q.id, &q.owner),
            ClientRequest::Ping(_) | ClientRequest::Release(_) | ClientRequest::GetGridStatus(_) => {
                return Ok(());
            }
        };
        // The client may also be told the outcome of another task, which was evicted for this one.
        let id = if let ClientReply::Outcome(outcome) = reply { outcome.task.id } else { id };
        let of = self.live.get(&id).map(|t| &t.owner).or_else(|| self.over.get(&id).map(|t| &t.owner));
        match reply {
            ClientReply::TaskStatus(_) | ClientReply::Outcome(_) => {
                ensure!(of == Some(owner), Leak, "{owner} was told about {id}");
            }
            ClientReply::Unknown(unknown) => {
                ensure!(of != Some(owner), Lost, "{owner} was told that its task {id} is unknown");
                let over = of.is_none() && self.is_spent(id, owner);
                let fresh = matches!(request, ClientRequest::Cancel(_));
                ensure!(fresh || unknown.expired == over, Leak, "expired is {} for {id}", unknown.expired);
            }
            _ => {}
        }
        Ok(())
    }
}
