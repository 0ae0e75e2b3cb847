//! A command in a machine, and one in a session of it.
//!
//!     CABANA_WORKER=target/release/cabana cargo run -p cabana-engine --example hello

use std::io::Write;

use cabana_engine::{
    CommandSpec, Engine, EngineConfig, Error, MachineSpec, ProcessEvent, SessionLimits, SessionSpec,
};

fn main() -> Result<(), Error> {
    let engine = Engine::new(EngineConfig::default())?;
    // Nothing runs yet: the machine starts with its first command.
    let machine =
        engine.machine(MachineSpec { name: "hello".to_owned(), ..MachineSpec::default() })?;
    let output = machine.exec(&CommandSpec::new(["uname", "-s"]))?.output()?;
    print!("{}", String::from_utf8_lossy(&output.stdout));

    // A session is a user of the machine, with limits of its own.
    let session = machine.create_session(SessionSpec {
        name: "chat-1".to_owned(),
        limits: SessionLimits { pids: Some(50), ..SessionLimits::default() },
        ..SessionSpec::default()
    })?;
    session.place().write_file("notes", b"from Rust\n", 0o644)?;
    // Output is taken as it comes.
    let mut process = session.exec(&CommandSpec::new(["sh", "-c", "id -un; cat notes; exit 3"]))?;
    while let Some(event) = process.next_event()? {
        match event {
            ProcessEvent::Stdout(bytes) => {
                // Nobody may be reading any more.
                let _ = std::io::stdout().write_all(bytes);
            }
            ProcessEvent::Exited(exit) => println!("status {}", exit.status()),
            _ => {}
        }
    }
    session.remove()?;
    machine.shutdown()
}
