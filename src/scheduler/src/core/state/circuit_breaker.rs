//! A circuit breaker for nodes: one that fails task after task is set aside, probed, and taken back once it works.
//!
//! Does not: notice silent nodes; sessions and leases do.

use std::collections::HashMap;

use lamagrid_domain::LeaseToken;

use crate::core::node_id::NodeId;

/// The rest of a node doubles with each failed probe, up to this many times the first one.
const MAX_REST: u64 = 16;
/// Nodes with a record; a node without one is healthy, so forgetting any is harmless.
const MAX_RECORDS: usize = 4_096;

/// Failures in a row, by node. A node that works is not listed.
#[derive(Debug, Default)]
pub(crate) struct CircuitBreaker(HashMap<NodeId, Record>);

#[derive(Debug, Default)]
struct Record {
    failures: u32,
    aside: Option<Aside>,
}

#[derive(Debug)]
struct Aside {
    /// Lease clock; from then on it may be given one task.
    until_ms: u64,
    rest_ms: u64,
    probe: Option<LeaseToken>,
}

impl CircuitBreaker {
    pub(crate) fn is_aside(&self, node: &NodeId) -> bool {
        self.0.get(node).is_some_and(|record| record.aside.is_some())
    }

    /// Whether it may be given a task: it is not set aside, or it is due for a probe.
    pub(crate) fn allows(&self, node: &NodeId, clock_ms: u64) -> bool {
        let aside = self.0.get(node).and_then(|record| record.aside.as_ref());
        aside.is_none_or(|aside| aside.probe.is_none() && aside.until_ms <= clock_ms)
    }

    /// Whether this attempt probes whether its node works again.
    pub(crate) fn is_probe(&self, node: &NodeId, token: LeaseToken) -> bool {
        self.0
            .get(node)
            .and_then(|record| record.aside.as_ref())
            .is_some_and(|aside| aside.probe == Some(token))
    }

    /// A node is given a task, which is the probe if it is set aside.
    pub(crate) fn on_dispatched(&mut self, node: &NodeId, token: LeaseToken) {
        if let Some(aside) = self.0.get_mut(node).and_then(|record| record.aside.as_mut()) {
            aside.probe = Some(token);
        }
    }

    /// A node finished a task. True if it was set aside until now.
    pub(crate) fn on_success(&mut self, node: &NodeId) -> bool {
        self.0.remove(node).is_some_and(|record| record.aside.is_some())
    }

    /// A node failed a task. True if that sets it aside.
    pub(crate) fn on_failure(
        &mut self,
        node: &NodeId,
        token: LeaseToken,
        clock_ms: u64,
        policy: BreakerPolicy,
    ) -> bool {
        if policy.after == 0 {
            return false;
        }
        if !self.0.contains_key(node) && self.0.len() >= MAX_RECORDS {
            self.0.retain(|_, record| record.aside.is_some());
        }
        let record = self.0.entry(node.clone()).or_default();
        record.failures = record.failures.saturating_add(1);
        match &mut record.aside {
            Some(aside) if aside.probe == Some(token) => {
                aside.probe = None;
                aside.rest_ms = (aside.rest_ms * 2).min(policy.rest_ms.saturating_mul(MAX_REST));
                aside.until_ms = clock_ms.saturating_add(aside.rest_ms);
                false
            }
            None if record.failures >= policy.after => {
                let until_ms = clock_ms.saturating_add(policy.rest_ms);
                record.aside = Some(Aside { until_ms, rest_ms: policy.rest_ms, probe: None });
                true
            }
            Some(_) | None => false,
        }
    }

    /// An attempt ended and says nothing about its node: if it was a probe, another one follows.
    pub(crate) fn on_inconclusive(&mut self, token: LeaseToken) {
        let asides = self.0.values_mut().filter_map(|record| record.aside.as_mut());
        asides.filter(|aside| aside.probe == Some(token)).for_each(|aside| aside.probe = None);
    }
}

/// When a node is set aside, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BreakerPolicy {
    /// Failures in a row; 0 is never.
    pub(crate) after: u32,
    /// The first rest, in milliseconds.
    pub(crate) rest_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: BreakerPolicy = BreakerPolicy { after: 2, rest_ms: 100 };

    fn token(n: u8) -> LeaseToken {
        LeaseToken::from_bytes([n; 16])
    }

    #[test]
    fn a_node_that_fails_again_and_again_rests_longer_and_longer_until_it_works() {
        let (mut breaker, node) = (CircuitBreaker::default(), "n".parse::<NodeId>().unwrap());
        assert!(!breaker.on_failure(&node, token(1), 0, POLICY));
        assert!(breaker.allows(&node, 0));
        assert!(breaker.on_failure(&node, token(2), 0, POLICY));
        assert!(breaker.is_aside(&node) && !breaker.allows(&node, 99) && breaker.allows(&node, 100));
        let mut now = 100;
        for rest in [200, 400, 800, 1_600, 1_600] {
            breaker.on_dispatched(&node, token(3));
            assert!(breaker.is_probe(&node, token(3)) && !breaker.allows(&node, now + 9_999));
            // An attempt from before says nothing about the probe.
            assert!(!breaker.on_failure(&node, token(2), now, POLICY));
            assert!(!breaker.on_failure(&node, token(3), now, POLICY));
            assert!(!breaker.allows(&node, now + rest - 1) && breaker.allows(&node, now + rest));
            now += rest;
        }
        breaker.on_dispatched(&node, token(4));
        breaker.on_inconclusive(token(4));
        assert!(breaker.allows(&node, now));
        assert!(breaker.on_success(&node) && !breaker.on_success(&node));
        assert!(!breaker.is_aside(&node));
    }

    #[test]
    fn success_in_between_forgives() {
        let (mut breaker, node) = (CircuitBreaker::default(), "n".parse::<NodeId>().unwrap());
        for _ in 0..5 {
            assert!(!breaker.on_failure(&node, token(1), 0, POLICY));
            assert!(!breaker.on_success(&node));
        }
        let never = BreakerPolicy { after: 0, ..POLICY };
        assert!((0..9).all(|_| !breaker.on_failure(&node, token(1), 0, never)));
    }
}
