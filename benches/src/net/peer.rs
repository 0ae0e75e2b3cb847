//! The host's end: a server in a process of its own.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use super::CHUNK;

/// Serves connections for ever, each as its first byte says.
pub fn serve(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        // A client that goes is no failure.
        thread::spawn(move || drop(answer(stream)));
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut task = [0];
    stream.read_exact(&mut task)?;
    let mut chunk = vec![7; CHUNK];
    match task[0] {
        b's' => {
            let mut count = 0u64;
            loop {
                match stream.read(&mut chunk)? {
                    0 => return stream.write_all(&count.to_le_bytes()),
                    len => count += len as u64,
                }
            }
        }
        b'S' => {
            let mut amount = [0; 8];
            stream.read_exact(&mut amount)?;
            let mut left = u64::from_le_bytes(amount);
            while left > 0 {
                let len = left.min(CHUNK as u64) as usize;
                stream.write_all(&chunk[..len])?;
                left -= len as u64;
            }
            Ok(())
        }
        _ => loop {
            let len = stream.read(&mut chunk)?;
            if len == 0 {
                return Ok(());
            }
            stream.write_all(&chunk[..len])?;
        },
    }
}
