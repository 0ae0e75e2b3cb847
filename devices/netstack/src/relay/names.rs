//! DNS over TCP (RFC 1035 §4.2.2): messages with their length before them.

use crate::gate::FlowId;
use crate::stack::Stack;

/// Bytes of answers that wait for the guest.
const MAX_WAITING: usize = 256 << 10;

/// A guest's conversation with the gateway about names.
#[derive(Debug, Default)]
pub(super) struct Names {
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    /// Messages that have no answer yet.
    unanswered: usize,
    finished: bool,
}

impl Names {
    /// Reads whole messages and writes answers that wait. False if the guest broke the rules.
    pub(super) fn pump(
        &mut self,
        id: FlowId,
        stack: &mut Stack,
        messages: &mut Vec<Vec<u8>>,
    ) -> bool {
        let inbox = &mut self.inbox;
        loop {
            let taken = stack.read(id, |bytes| {
                inbox.extend_from_slice(bytes);
                bytes.len()
            });
            while let Some((length, rest)) = inbox.split_first_chunk::<2>() {
                let length = usize::from(u16::from_be_bytes(*length));
                let Some(message) = rest.get(..length) else { break };
                messages.push(message.to_vec());
                self.unanswered += 1;
                inbox.drain(..2 + length);
            }
            if taken == 0 {
                break;
            }
        }
        self.write(id, stack);
        // A message of no length is none.
        messages.iter().all(|message| !message.is_empty())
    }

    /// Sends an answer; `None` if too many wait already.
    pub(super) fn answer(&mut self, id: FlowId, message: &[u8], stack: &mut Stack) -> Option<()> {
        let length = u16::try_from(message.len()).ok()?;
        self.unanswered = self.unanswered.saturating_sub(1);
        if self.outbox.len() + message.len() > MAX_WAITING {
            return None;
        }
        self.outbox.extend_from_slice(&length.to_be_bytes());
        self.outbox.extend_from_slice(message);
        self.write(id, stack);
        Some(())
    }

    fn write(&mut self, id: FlowId, stack: &mut Stack) {
        while !self.outbox.is_empty() {
            let outbox = &self.outbox;
            let written = stack.write(id, |room| {
                let len = room.len().min(outbox.len());
                if let (Some(to), Some(from)) = (room.get_mut(..len), outbox.get(..len)) {
                    to.copy_from_slice(from);
                }
                len
            });
            if written == 0 {
                return;
            }
            self.outbox.drain(..written);
        }
        if !self.finished && self.unanswered == 0 && stack.guest_finished(id) {
            self.finished = true;
            stack.finish(id);
        }
    }
}
