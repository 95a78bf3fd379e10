//! The effects of the current input, in the order in which they will be carried out.

use super::effect::{Effect, StoreOp};

/// Collects effects until the input is handled.
#[derive(Debug, Default)]
pub(crate) struct EffectBuffer(Vec<Effect>);

/// A position in the buffer: everything pushed since can be joined into one transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark(usize);

impl EffectBuffer {
    pub(crate) fn push(&mut self, effect: Effect) {
        self.0.push(effect);
    }

    /// Hands over all effects and leaves the buffer empty.
    pub(crate) fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.0)
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark(self.0.len())
    }

    /// Joins the writes since `mark` into one transaction, ahead of every other effect since then: the messages must
    /// not leave before all of the writes are durable.
    pub(crate) fn join_writes_since(&mut self, mark: Mark) {
        let (mut ops, mut others) = (Vec::new(), Vec::new());
        for effect in self.0.split_off(mark.0) {
            match effect {
                Effect::Store(StoreOp::Together(inner)) => ops.extend(inner),
                Effect::Store(op) => ops.push(op),
                other => others.push(other),
            }
        }
        match ops.len() {
            0 => {}
            1 => self.0.extend(ops.into_iter().map(Effect::Store)),
            _ => self.0.push(Effect::Store(StoreOp::Together(ops))),
        }
        self.0.extend(others);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamagrid_domain::SessionId;

    fn write(wall_ms: u64) -> Effect {
        Effect::Store(StoreOp::Clock { wall_ms })
    }

    #[test]
    fn writes_since_the_mark_become_one_transaction_ahead_of_the_messages() {
        let close = || Effect::CloseSession { session: SessionId::from_bytes([1; 16]) };
        let mut buffer = EffectBuffer::default();
        buffer.push(write(1));
        let mark = buffer.mark();
        buffer.push(close());
        buffer.push(write(2));
        let inner = buffer.mark();
        [write(3), write(4)].into_iter().for_each(|effect| buffer.push(effect));
        buffer.join_writes_since(inner);
        buffer.join_writes_since(mark);
        let effects = buffer.take();
        assert!(matches!(effects[0], Effect::Store(StoreOp::Clock { wall_ms: 1 })));
        assert!(matches!(&effects[1], Effect::Store(StoreOp::Together(ops)) if ops.len() == 3));
        assert!(matches!(effects[2], Effect::CloseSession { .. }) && effects.len() == 3);
    }
}
