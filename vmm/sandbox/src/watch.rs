//! Tells the agent what happens to shared folders on the host, which repeats it in the guest.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use cabana_fs::{FileServer, Replay, Step};
use cabana_os::Event;
use cabana_protocol::watch::{self, Replayed, Watcher};
use cabana_protocol::{ProtocolError, WATCH_SOURCE, frame};
use cabana_vsock::{VsockListener, VsockStream};

/// How long changes are gathered: an editor's save is several, and many are merged into few.
const GATHER: Duration = Duration::from_millis(2);

/// The thread that tells of changes. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    stopped: Event,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Waits for the agent, then watches until the machine ends. A host that cannot watch is none: the
    /// guest then sees changes, but hears of none.
    pub(crate) fn start(server: Arc<FileServer>, listener: VsockListener) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, stopped) = (Arc::clone(&stop), Event::new()?);
        let wake = stopped.try_clone()?;
        let tell = move || {
            while let Ok(stream) = listener.accept() {
                // No program of the guest but root's has a port below 1024.
                if stream.guest_port() == WATCH_SOURCE {
                    // The guest is gone, or does not follow the rules: it hears no more.
                    let _ = tell_all(&server, stream, &stopping, &wake);
                    server.set_replayer(0);
                }
            }
        };
        let builder = thread::Builder::new().name("watch".to_owned()).stack_size(256 << 10);
        Ok(Self { stop, stopped, thread: Some(builder.spawn(tell)?) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.stopped.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn tell_all(
    server: &FileServer,
    mut stream: VsockStream,
    stop: &AtomicBool,
    wake: &Event,
) -> Result<(), ProtocolError> {
    let watcher: Watcher = frame::read_message(&mut stream)?;
    server.set_replayer(watcher.thread);
    server.watch()?;
    while !stop.load(Ordering::Relaxed) {
        server.await_changes(wake)?;
        thread::sleep(GATHER);
        for replay in server.changes()? {
            let message = message(&replay);
            server.set_replay(Some(replay));
            let told = frame::write_message(&mut stream, &message)
                .and_then(|()| frame::read_message::<Replayed>(&mut stream));
            server.set_replay(None);
            told?;
        }
    }
    Ok(())
}

fn message(replay: &Replay) -> watch::Replay {
    let step = match replay.step {
        Step::Make(kind) => watch::Step::Make(kind),
        Step::Remove { folder: true, .. } => watch::Step::Rmdir,
        Step::Remove { folder: false, .. } => watch::Step::Unlink,
        Step::Modify => watch::Step::Modify,
        Step::Touch => watch::Step::Touch,
        Step::Close => watch::Step::Close,
    };
    watch::Replay { directory: replay.directory, name: replay.name.clone(), step }
}
