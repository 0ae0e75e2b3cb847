//! A card in one process and its network in another: frames over a packet socket.
//!
//! Packets to the network begin with what they are: [`FRAME`], or a new driver that takes TCP packets without a
//! checksum ([`TRUSTING`]) or does not ([`PLAIN`]). Packets to the card begin with where the sum of a checksum that is
//! left out begins, as 16 bits, or zero. Each end checks what it takes as if it came from a guest.
//!
//! Nothing is kept on the way but what the socket holds: a card without buffers reads nothing, and then the network
//! is not asked for frames.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::{io, mem};

use cabana_os::{Event as Wake, Interest, LoopHandle, Packets, Token};

use crate::gate::Waker;
use crate::relay::{FrameLink, Network};
use crate::stack::Outgoing;

const FRAME: u8 = 0;
const PLAIN: u8 = 1;
const TRUSTING: u8 = 2;

/// Bytes of the longest packet: a head, Ethernet with a tag, and an IP packet.
const ROOM: usize = 2 + 18 + 65_535;
/// Packets in one go.
const ROUND: usize = 256;

/// The card's end.
pub struct Cable {
    end: Arc<CardEnd>,
}

struct CardEnd {
    socket: Packets,
    events: LoopHandle,
    token: OnceLock<Token>,
    /// The socket is listened to; otherwise it tells of its end alone. The card and the loop both change it, so what
    /// stands here and what the loop was told change under one lock.
    listening: Mutex<bool>,
    notify: Mutex<Option<Waker>>,
    room: Mutex<Box<[u8]>>,
}

impl Cable {
    /// An end for a card that is served on `events`.
    pub fn new(socket: Packets, events: LoopHandle) -> io::Result<Self> {
        let end = Arc::new(CardEnd {
            socket,
            events,
            token: OnceLock::new(),
            listening: Mutex::new(false),
            notify: Mutex::default(),
            room: Mutex::new(vec![0; ROOM].into_boxed_slice()),
        });
        let this = Arc::downgrade(&end);
        let token = end.events.add(&end.socket, Interest::NONE, move |_| {
            let Some(end) = this.upgrade() else { return };
            // The card takes all there is, and asks to be told again.
            if !end.listen(false) {
                end.give_up();
            }
            if let Some(notify) = &*lock(&end.notify) {
                notify();
            }
        })?;
        let _ = end.token.set(token);
        Ok(Self { end })
    }
}

impl CardEnd {
    /// Listens to the socket or not; whether it did before.
    fn listen(&self, listen: bool) -> bool {
        let mut listening = lock(&self.listening);
        let before = mem::replace(&mut *listening, listen);
        let interest = if listen { Interest::READ } else { Interest::NONE };
        if let Some(token) = self.token.get().filter(|_| before != listen) {
            let _ = self.events.modify(*token, interest);
        }
        before
    }

    /// The network is gone.
    fn give_up(&self) {
        if let Some(token) = self.token.get() {
            self.events.remove(*token);
        }
    }
}

impl FrameLink for Cable {
    fn start(&self, trusting: bool, notify: Waker) {
        *lock(&self.end.notify) = Some(notify);
        // A network that is gone takes nothing, and sends nothing.
        let _ = self.end.socket.send(&[if trusting { TRUSTING } else { PLAIN }], &[]);
        self.end.listen(true);
    }

    fn transmit(&self, frame: &[u8]) {
        let _ = self.end.socket.send(&[FRAME], frame);
    }

    fn flush(&self) {
        // The other end acts on what there is.
    }

    fn receive(&self, take: &mut dyn FnMut(Outgoing<'_>)) -> bool {
        let mut room = lock(&self.end.room);
        loop {
            let received = match self.end.socket.try_receive(&mut room) {
                Ok(Some(received @ 1..)) => received,
                Ok(None) => {
                    self.end.listen(true);
                    return false;
                }
                Ok(Some(0)) | Err(_) => {
                    self.end.give_up();
                    return false;
                }
            };
            let packet = room.get(..received).and_then(|packet| packet.split_first_chunk());
            let Some((head, frame)) = packet else { continue };
            let from = u16::from_le_bytes(*head);
            take(Outgoing { frame, checksum_from: (from != 0).then_some(from) });
            return true;
        }
    }
}

impl Drop for CardEnd {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// The network's end. Dropping it unplugs the card.
pub struct Plug {
    events: LoopHandle,
    tokens: [Token; 2],
}

struct NetworkEnd {
    network: Network,
    socket: Packets,
    events: LoopHandle,
    /// There may be frames for the card.
    wake: Wake,
    /// How the socket is listened to.
    token: OnceLock<Token>,
    state: Mutex<State>,
}

struct State {
    room: Box<[u8]>,
    /// A packet that found the way full.
    waiting: Option<Vec<u8>>,
}

impl Plug {
    /// Plugs the card at the socket's other end into `network`, which is served on `events` too.
    pub fn new(network: Network, socket: Packets, events: LoopHandle) -> io::Result<Self> {
        let room = vec![0; ROOM].into_boxed_slice();
        let end = Arc::new(NetworkEnd {
            network,
            socket,
            events: events.clone(),
            wake: Wake::new()?,
            token: OnceLock::new(),
            state: Mutex::new(State { room, waiting: None }),
        });
        let woken = Arc::clone(&end);
        let wake = events.add_event(&end.wake, move || woken.send())?;
        let on_socket = Arc::clone(&end);
        let socket = events.add(&end.socket, Interest::READ, move |ready| {
            if ready.readable {
                on_socket.take();
            }
            if ready.writable {
                on_socket.send();
            }
        })?;
        let _ = end.token.set(socket);
        Ok(Self { events, tokens: [wake, socket] })
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        for token in self.tokens {
            self.events.remove(token);
        }
    }
}

impl NetworkEnd {
    /// Takes what the card sent.
    fn take(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        for _ in 0..ROUND {
            let received = match self.socket.try_receive(&mut state.room) {
                Ok(Some(received @ 1..)) => received,
                Ok(None) => break,
                Ok(Some(0)) | Err(_) => {
                    // The card is gone.
                    if let Some(token) = self.token.get() {
                        self.events.remove(*token);
                    }
                    break;
                }
            };
            match state.room.get(..received).and_then(|packet| packet.split_first()) {
                Some((&FRAME, frame)) => self.network.transmit(frame),
                Some((&kind @ (PLAIN | TRUSTING), _)) => {
                    let this = Arc::downgrade(self);
                    let wake = move || {
                        if let Some(end) = this.upgrade() {
                            end.wake.signal();
                        }
                    };
                    self.network.start(kind == TRUSTING, Arc::new(wake));
                }
                _ => {}
            }
        }
        drop(state);
        self.network.flush();
    }

    /// Sends what there is for the card, as far as the way has room.
    fn send(&self) {
        let mut state = lock(&self.state);
        if let Some(packet) = state.waiting.take()
            && let Ok(false) = self.socket.try_send(&packet, &[])
        {
            state.waiting = Some(packet);
            return;
        }
        for _ in 0..ROUND {
            let any = self.network.receive(&mut |outgoing| {
                let head = outgoing.checksum_from.unwrap_or(0).to_le_bytes();
                if let Ok(false) = self.socket.try_send(&head, outgoing.frame) {
                    state.waiting = Some([&head, outgoing.frame].concat());
                }
            });
            if state.waiting.is_some() {
                return self.listen(Interest::BOTH);
            }
            if !any {
                return self.listen(Interest::READ);
            }
        }
        // The others on this loop have their turn.
        self.wake.signal();
    }

    fn listen(&self, interest: Interest) {
        if let Some(token) = self.token.get() {
            let _ = self.events.modify(*token, interest);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
