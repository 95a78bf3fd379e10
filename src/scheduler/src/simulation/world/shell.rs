//! The scheduler's process around the core: its store, its commit barrier, its sockets.

use super::*;

impl World {
    pub(super) fn start_scheduler(&mut self) -> Result<(), Violation> {
        let recovered = self.disk.recover();
        let mut random = Random::new(self.net.random.next());
        let settings = Settings {
            scheduler: self.config.clone(),
            queues: self.routing.queues().into_iter().map(|queue| (queue, self.max_tasks)).collect(),
            routes: self.routing.table(),
            retry: RetryConfig { network: RETRY, resource: RETRY, model: RETRY, other: RETRY },
            limits: self.limits.clone(),
            max_tombstones: self.max_tombstones,
            max_ended: crate::core::MAX_ENDED,
            clock_grace_ms: CLOCK_GRACE_MS,
            endpoints: Endpoints::new("/grid"),
            spool: "/grid/spool".into(),
        };
        let mut core = Core::new(settings, Box::new(move || random.bytes()), self.net.now, recovered);
        core.faults.plant(self.fault);
        Violation::of_core(&core)?;
        self.oracle.note("scheduler starts");
        self.oracle.on_restart(self.net.now, &self.disk, core.view())?;
        self.core = Some(core);
        self.watch = waits::Watch::default();
        self.net.after(TICK_MS, Event::Tick { epoch: self.net.epoch });
        Ok(())
    }

    /// The process dies: uncommitted writes are lost. The current group may have been committed or not.
    pub(super) fn kill_scheduler(&mut self) -> Result<(), Violation> {
        self.core = None;
        self.net.epoch += 1;
        if let Some(group) = self.group.take().filter(|_| !self.failing && self.net.random.chance(500)) {
            self.make_durable(&group.ops)?;
        }
        self.pending.clear();
        self.unread.clear();
        self.lanes.clear();
        self.failing = false;
        let mut closed: Vec<Conn> = self.nodes.iter().filter_map(|n| n.link).collect();
        closed.extend(self.clients.iter().filter_map(|c| c.conn));
        for conn in closed {
            let ms = self.net.random.between(0, 50);
            self.net.after(ms, Event::Closed { conn });
        }
        let ms = self.net.random.between(20, 4_000);
        self.net.after(ms, Event::SchedulerStart);
        Ok(())
    }

    pub(super) fn deliver(&mut self, message: Message) -> Result<(), Violation> {
        if self.failing
            && matches!(message, Message::Client(..) | Message::ClientGone(..) | Message::Admin(..))
        {
            self.unread.push_back(message);
            return Ok(());
        }
        let Some(core) = &mut self.core else { return Ok(()) };
        self.steps += 1;
        let effects = core.handle(self.net.now, message.clone().into());
        if self.log.is_some() {
            let text = format!("{message:?}\n                -> {effects:?}");
            self.note(|| text);
        }
        let core = self.core.as_ref().expect("it just handled this");
        self.oracle.on_step(self.net.now, &message, &effects, core.view())?;
        Violation::of_core(core)?;
        self.watch_waits()?;
        for spec in effects.iter().filter_map(inserted) {
            if self.ids.len() == 64 {
                self.ids.clear();
            }
            self.ids.push(spec.id);
        }
        for effect in effects {
            if effect.is_unbarred() {
                self.carry_out(effect)?;
            } else {
                self.pending.push_back(effect);
            }
        }
        self.pump()
    }

    /// As the service does: messages without a write before them leave, the rest becomes the next group.
    pub(super) fn pump(&mut self) -> Result<(), Violation> {
        if self.group.is_some() {
            return Ok(());
        }
        while let Some(effect) = self.pending.pop_front() {
            if matches!(effect, Effect::Store(_)) || effect.attachment().is_some() {
                self.pending.push_front(effect);
                break;
            }
            self.carry_out(effect)?;
        }
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut group = Group { ops: Vec::new(), released: Vec::new() };
        let mut reads = Vec::new();
        while let Some(effect) = self.pending.pop_front() {
            match effect {
                Effect::Store(op) if op.deletes_blobs_of(&reads) => {
                    self.pending.push_front(Effect::Store(op));
                    break;
                }
                Effect::Store(op) => group.ops.push(op),
                effect => {
                    reads.extend(effect.attachment().cloned());
                    group.released.push(effect);
                }
            }
            if group.ops.len() >= 16 {
                break;
            }
        }
        self.group = Some(group);
        let ms = self.net.random.between(0, self.net.rates.commit_ms);
        self.net.after(ms, Event::Commit { epoch: self.net.epoch });
        Ok(())
    }

    pub(super) fn commit(&mut self) -> Result<(), Violation> {
        if !self.net.faults_off && self.net.random.chance(self.net.rates.commit_fails) {
            self.failing = true;
            self.oracle.note("commit failed");
            self.net.after(100, Event::Commit { epoch: self.net.epoch });
            return Ok(());
        }
        let Some(group) = self.group.take() else { return Ok(()) };
        self.make_durable(&group.ops)?;
        for effect in group.released {
            self.carry_out(effect)?;
        }
        if std::mem::take(&mut self.failing) {
            for message in std::mem::take(&mut self.unread) {
                self.deliver(message)?;
            }
        }
        self.pump()
    }

    pub(super) fn make_durable(&mut self, ops: &[StoreOp]) -> Result<(), Violation> {
        for op in ops {
            self.disk.apply(op);
            self.oracle.on_committed(op)?;
        }
        Ok(())
    }

    pub(super) fn carry_out(&mut self, effect: Effect) -> Result<(), Violation> {
        match effect {
            Effect::Store(_) => unreachable!("writes go into groups"),
            Effect::Client { peer, reply, attach } => {
                self.oracle.on_sent(&reply, attach.as_ref(), &self.disk)?;
                let conn = self.net.conn(&peer);
                if let Dialler::Client(client) = self.net.dialler(conn) {
                    self.net.carry(conn, false, Event::Client { client, conn, reply });
                }
            }
            Effect::Control { peer, reply } => {
                let reply = self.open_lanes(reply);
                let conn = self.net.conn(&peer);
                if let Dialler::Control(node, life, request) = self.net.dialler(conn) {
                    self.net.carry(conn, false, Event::NodeControl { node, life, request, reply });
                }
            }
            Effect::Result { peer, reply } => {
                let conn = self.net.conn(&peer);
                if let Dialler::Link(node) = self.net.dialler(conn) {
                    self.net.carry(conn, false, Event::NodeResult { node, conn, reply });
                }
            }
            Effect::Lane { session, index, message, .. } => {
                let lane = self.lanes.get(&session).and_then(|lanes| lanes.get(index));
                if let Some(Lane { conn: Some((node, life, conn)), dead: false }) = lane
                    && self.nodes[*node].life == *life
                {
                    self.net.carry(*conn, false, Event::NodeLane { node: *node, session, message });
                }
            }
            Effect::CloseSession { session } => {
                self.lanes.remove(&session);
            }
            // A program on the same host: it is gone before it could lose anything.
            Effect::Admin { .. } => {}
            Effect::Finished(_) | Effect::Level(_) | Effect::Clock(_) => {}
            // Carried out at once: the oracle has seen them.
            Effect::OpenUpload { .. } | Effect::CloseUpload { .. } => {}
        }
        Ok(())
    }

    pub(super) fn open_lanes(&mut self, reply: ControlReply) -> ControlReply {
        let ControlReply::Welcome(welcome) = &reply else { return reply };
        let session = welcome.session;
        if !self.net.faults_off && self.net.random.chance(10) {
            self.net.after(0, Event::Core { epoch: self.net.epoch, message: Message::LanesFailed(session) });
            let kind = lamagrid_domain::FailureKind::Disconnected;
            return Rejected { failure: lamagrid_domain::Failure::new(kind, "no lane"), removed: false }
                .into();
        }
        let lanes = welcome.lanes.iter().map(|_| Lane { conn: None, dead: false }).collect();
        self.lanes.insert(session, lanes);
        reply
    }
}

/// The task that an effect records as accepted.
fn inserted(effect: &Effect) -> Option<&TaskSpec> {
    fn of(op: &StoreOp) -> Option<&TaskSpec> {
        if let StoreOp::Insert { spec, .. } = op { Some(spec) } else { None }
    }
    match effect {
        Effect::Store(StoreOp::Together(ops)) => ops.iter().find_map(of),
        Effect::Store(op) => of(op),
        _ => None,
    }
}
