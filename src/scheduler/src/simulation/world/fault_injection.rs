//! Injects faults, and lets the two ends of a connection notice them.

use super::*;

impl World {
    pub(super) fn fault_injection(&mut self) {
        if self.net.faults_off {
            return;
        }
        self.net.about(self.net.rates.fault_every_ms, Event::InjectFault);
        let at = self.net.random.below(self.nodes.len() as u64) as usize;
        let weights = [12, 8, 14, 12, 8, 6, 3, 5, 20, 5, 4, 3, 2, 2, 20];
        match self.net.random.weighted(&weights) {
            loud @ (0 | 1) => {
                self.oracle.on_death(self.nodes[at].surely_begun());
                self.nodes[at].die(&mut self.net, loud == 0);
            }
            2 => {
                let ms = self.net.random.between(100, 2 * self.config.lease_ms);
                self.nodes[at].frozen_until_ms = self.net.now.mono_ms + ms;
            }
            3 => {
                if let Some(conn) = self.nodes[at].link {
                    self.break_connection(conn);
                }
            }
            4 => {
                let session = self.nodes[at].session;
                let lanes = session.and_then(|s| self.lanes.get_mut(&s));
                lanes.into_iter().flatten().for_each(|lane| lane.dead = true);
            }
            5 => {
                if self.core.is_some() {
                    self.kill_scheduler().expect("what was emitted was checked before");
                }
            }
            6 => {
                // The clock is set.
                let ms = *self.net.random.pick(&[500, 5_000, 60_000, 86_400_000]);
                let ms = if self.net.random.chance(500) { ms } else { -ms };
                self.net.set_clock(ms);
            }
            12 => {
                // It is wrong for a moment.
                let ms = *self.net.random.pick(&[60_000, 7_200_000, 8 * 86_400_000]);
                let ms = if self.net.random.chance(500) { ms } else { -ms };
                self.net.set_clock(ms);
                let after_ms = self.net.random.between(100, 2_500);
                self.net.after(after_ms, Event::SetClock { ms: -ms });
            }
            13 => {
                let bytes = *self.net.random.pick(&[0, 120, 150, 1 << 30, 1 << 30, 1 << 30]);
                self.net.after(0, Event::Core { epoch: self.net.epoch, message: Message::DiskFree(bytes) });
            }
            14 => self.order_about(at),
            7 => {
                // The whole host stops for a while.
                let ms = self.net.random.between(200, 30_000);
                let later = self.net.now.mono_ms + ms;
                self.net.advance_to(later);
            }
            8 => self.confuse_sessions(),
            9 => self.nodes[at].drain(&mut self.net),
            10 => self.nodes[at].leave(&mut self.net),
            _ => {
                self.oracle.on_death(self.nodes[at].surely_begun());
                self.nodes[at].die_and_change_name(&mut self.net);
            }
        }
    }

    /// An administrator drains or removes a node, or takes that back.
    fn order_about(&mut self, at: usize) {
        let node = || self.nodes[at].name.parse().expect("a plain name");
        let request = match self.net.random.weighted(&[4, 5, 2]) {
            0 => DrainNode { node: node(), by: None }.into(),
            1 => UndrainNode { node: node(), by: None }.into(),
            _ => RemoveNode { node: node(), by: None }.into(),
        };
        let message = Message::Admin(PeerId::from_text("admin"), request);
        self.net.after(0, Event::Core { epoch: self.net.epoch, message });
    }

    /// Without faults every node serves again.
    pub(super) fn take_back_orders(&mut self) -> Result<(), Violation> {
        let ordered = self.core.as_ref().filter(|_| self.net.faults_off).map(Core::view);
        let ordered: Vec<_> = ordered.map_or_else(Vec::new, |core| core.ordered_nodes().cloned().collect());
        for node in ordered {
            let undrain = UndrainNode { node, by: None };
            self.deliver(Message::Admin(PeerId::from_text("admin"), undrain.into()))?;
        }
        Ok(())
    }

    /// A node accepts or delivers under its own session an attempt of another node, or one that is over.
    pub(super) fn confuse_sessions(&mut self) {
        let Some(core) = &self.core else { return };
        let at = self.net.random.below(self.nodes.len() as u64) as usize;
        let (Some(session), Some(conn)) = (self.nodes[at].session, self.nodes[at].link) else { return };
        let foreign = |state: &State| match state {
            State::Assigned { token, session: holder } if *holder != session => Some(*token),
            _ => None,
        };
        let mut tokens: Vec<_> = core.view().tasks().filter_map(|task| foreign(task.state())).collect();
        tokens.retain(|t| !self.nodes[at].has(*t));
        tokens.sort_unstable();
        if tokens.is_empty() {
            return;
        }
        let token = *self.net.random.pick(&tokens);
        if self.net.random.chance(300) {
            let peer = self.net.peer(conn);
            return self.net.send(conn, Message::Result(peer, Accept { session, token }.into(), None));
        }
        let (outcome, inline) = crate::simulation::node::outcome(&mut self.net, token);
        let delivery = Delivery { session, token, outcome, credit: 0, loaded: Vec::new(), memory: None };
        let peer = self.net.peer(conn);
        self.net.send(conn, Message::Result(peer, delivery.into(), inline));
    }

    /// A connection is cut; each side notices, or hears nothing of it.
    pub(super) fn break_connection(&mut self, conn: Conn) {
        let (near, far) = (
            self.net.faults_off || self.net.random.chance(800),
            self.net.faults_off || self.net.random.chance(800),
        );
        if !far {
            self.net.half_open.insert(conn);
        }
        let peer = self.net.peer(conn);
        match self.net.dialler(conn) {
            Dialler::Client(client) if self.clients[client].conn == Some(conn) => {
                self.clients[client].conn = None;
                if near {
                    self.net.send(conn, Message::ClientGone(peer));
                }
            }
            Dialler::Link(node) if self.nodes[node].link == Some(conn) => {
                if near {
                    self.net.send(conn, Message::ResultGone(peer));
                }
                if far {
                    self.net.after(1, Event::Closed { conn });
                }
            }
            _ => {}
        }
    }

    pub(super) fn far_end_closed(&mut self, conn: Conn) {
        match self.net.dialler(conn) {
            Dialler::Client(client) if self.clients[client].conn == Some(conn) => {
                self.clients[client].conn = None
            }
            Dialler::Link(node) if self.nodes[node].link == Some(conn) => {
                self.nodes[node].lose_session(&mut self.net)
            }
            _ => {}
        }
    }
}
