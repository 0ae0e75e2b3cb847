use std::ops::Range;

mod confinement;
mod event_loop;
mod programs;
mod signal_numbers;
mod sparse;
pub mod tree;
mod watch;
pub use event_loop::{EventLoop, Interest, LoopHandle, Token};
pub use watch::EntryChange;

#[cfg(not(target_os = "linux"))]
mod portable;
#[cfg(unix)]
mod unix;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::*;

#[cfg(target_os = "macos")]
mod macos;
#[cfg(target_os = "macos")]
pub use macos::*;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub use windows::*;

/// The longest message of a [`Channel`] in bytes.
pub const MAX_MESSAGE: usize = 128 << 10;
/// The most handles that one message of a [`Channel`] carries (Linux's `SCM_MAX_FD`).
pub const MAX_HANDLES: usize = 253;

/// The pages of `page` bytes that lie in `range` as a whole: what else is in its first and last page is not its own.
fn whole_pages(range: Range<usize>, page: usize) -> Range<usize> {
    range.start.next_multiple_of(page)..range.end / page * page
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{self, Read, Write};
    use std::net::Shutdown;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::file::FileExt;
    use crate::process::{monotonic, processor_time, random_bytes, thread_time};
    use crate::{
        AsHandle, Channel, Event, LocalListener, LocalStream, MAX_MESSAGE, Mapping, Packets,
        Replacement, Timer,
    };

    #[test]
    fn signals_are_merged_and_taken_once() {
        let event = Event::new().unwrap();
        assert!(!event.take());
        event.signal();
        event.try_clone().unwrap().signal();
        assert!(event.take());
        assert!(!event.take());
    }

    #[test]
    fn memory_is_zero_aligned_and_zero_again_when_it_was_given_back() {
        let mapping = Mapping::anonymous(5000).unwrap();
        assert!(mapping.len() >= 5000);
        assert_eq!(mapping.as_ptr() as usize % (2 << 20), 0);
        let last = mapping.as_ptr().wrapping_add(mapping.len() - 1);
        // SAFETY: within the mapping.
        unsafe {
            assert_eq!(last.read_volatile(), 0);
            last.write_volatile(7);
            // A part of a page takes nothing of the rest along.
            mapping.discard(0..mapping.len() - 1).unwrap();
            assert_eq!(last.read_volatile(), 7);
            mapping.discard(0..mapping.len()).unwrap();
            assert_eq!(last.read_volatile(), 0);
        }
        assert!(mapping.discard(0..mapping.len() + 1).is_err());
        assert!(Mapping::anonymous(0).is_err());
    }

    #[test]
    fn it_wakes_once_and_can_be_stopped() {
        let timer = Timer::new().unwrap();
        timer.set(Some(Duration::ZERO));
        let began = Instant::now();
        while !timer.take() {
            assert!(began.elapsed() < Duration::from_secs(10));
            std::thread::yield_now();
        }
        assert!(!timer.take());
        timer.set(Some(Duration::from_secs(3600)));
        timer.set(None);
        assert!(!timer.take());
    }

    #[test]
    fn packets_stay_whole_and_a_full_way_is_told() {
        let (here, there) = Packets::pair().unwrap();
        let mut room = [0; 100];
        assert_eq!(there.try_receive(&mut room).unwrap(), None);
        here.send(b"head", b"body").unwrap();
        here.send(b"", b"more").unwrap();
        assert_eq!(there.try_receive(&mut room).unwrap(), Some(8));
        assert_eq!(&room[..8], b"headbody");
        assert_eq!(there.try_receive(&mut room).unwrap(), Some(4));
        let large = vec![1; 64 << 10];
        let mut under_way = 0;
        while here.try_send(&[], &large).unwrap() {
            under_way += 1;
        }
        assert!(under_way > 0);
        let waiting = std::thread::spawn(move || here.send(&[], &large).unwrap());
        let mut room = vec![0; 64 << 10];
        for _ in 0..=under_way {
            while there.try_receive(&mut room).unwrap().is_none() {}
        }
        waiting.join().unwrap();
        assert_eq!(there.try_receive(&mut room).unwrap(), Some(0));
        assert!(there.try_send(b"x", b"").is_err());
    }

    #[test]
    fn messages_stay_whole_and_bring_their_handles() {
        let (here, there) = Channel::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        here.send(b"first", &[writer.as_handle()]).unwrap();
        here.send(b"second", &[]).unwrap();
        drop(writer);
        let (message, handles) = there.receive().unwrap().unwrap();
        assert_eq!((message.as_slice(), handles.len()), (&b"first"[..], 1));
        let mut sent = File::from(handles.into_iter().next().unwrap());
        sent.write_all(b"through").unwrap();
        drop(sent);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        let (message, handles) = there.receive().unwrap().unwrap();
        assert_eq!((message.as_slice(), handles.len()), (&b"second"[..], 0));
        drop(here);
        assert!(there.receive().unwrap().is_none());
        there.wait_gone(None);
    }

    #[test]
    fn a_channel_that_was_shut_has_ended_for_both() {
        let (here, there) = Channel::pair().unwrap();
        here.send(b"before", &[]).unwrap();
        let waiting = here.try_clone().unwrap();
        let waiting = std::thread::spawn(move || waiting.receive().unwrap());
        std::thread::sleep(Duration::from_millis(20));
        here.shut();
        assert!(waiting.join().unwrap().is_none());
        assert_eq!(there.receive().unwrap().unwrap().0, b"before");
        assert!(there.receive().unwrap().is_none());
    }

    #[test]
    fn patience_ends() {
        let (here, _there) = Channel::pair().unwrap();
        here.set_patience(Duration::from_millis(20)).unwrap();
        assert_eq!(here.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let full = |_| here.send(&vec![1; MAX_MESSAGE], &[]).err();
        assert_eq!((0..1000).find_map(full).unwrap().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_is_too_long_is_not_sent() {
        let (here, _there) = Channel::pair().unwrap();
        assert!(here.send(&vec![0; MAX_MESSAGE + 1], &[]).is_err());
        here.send(&vec![1; MAX_MESSAGE], &[]).unwrap();
    }

    #[test]
    fn a_stream_ends_one_way_and_then_the_other() {
        let (mut here, there) = LocalStream::pair().unwrap();
        let echo = std::thread::spawn(move || {
            let (mut from, mut to) = (there.try_clone().unwrap(), there);
            io::copy(&mut from, &mut to).unwrap();
            to.write_all(b"end").unwrap();
        });
        let sent: Vec<u8> = (0..1_000_000).map(|n: u32| (n / 7) as u8).collect();
        let mut writer = here.try_clone().unwrap();
        let bytes = sent.clone();
        let writing = std::thread::spawn(move || {
            writer.write_all(&bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        here.read_to_end(&mut back).unwrap();
        assert_eq!(back, [&sent[..], b"end"].concat());
        writing.join().unwrap();
        echo.join().unwrap();
        assert!(here.write_all(b"more").is_err());
    }

    #[test]
    fn who_reads_a_stream_hears_of_its_end_by_this_process() {
        let (here, mut there) = LocalStream::pair().unwrap();
        let mut reader = here.try_clone().unwrap();
        let reading = std::thread::spawn(move || reader.read(&mut [0; 9]).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        here.shutdown(Shutdown::Both).unwrap();
        assert_eq!(reading.join().unwrap(), 0);
        assert_eq!(there.read(&mut [0; 9]).unwrap(), 0);
    }

    #[test]
    fn who_listens_at_a_path_is_found_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        assert!(LocalStream::connect(&path).is_err());
        let listener = LocalListener::bind(&path).unwrap();
        let serving = std::thread::spawn(move || {
            for _ in 0..3 {
                let mut stream = listener.accept().unwrap();
                let mut said = [0; 2];
                stream.read_exact(&mut said).unwrap();
                stream.write_all(&said).unwrap();
            }
        });
        for number in 0..3_u16 {
            let mut stream = LocalStream::connect(&path).unwrap();
            stream.write_all(&number.to_le_bytes()).unwrap();
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).unwrap();
            assert_eq!(heard, number.to_le_bytes());
        }
        serving.join().unwrap();
        assert!(LocalStream::connect(&path).is_err());
        LocalListener::remove(&path).unwrap();
        LocalListener::bind(&path).unwrap();
    }

    #[test]
    fn a_path_has_one_listener() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let _listener = LocalListener::bind(&path).unwrap();
        assert!(LocalListener::bind(&path).is_err());
    }

    #[test]
    fn random_bytes_differ() {
        assert_ne!(random_bytes::<32>().unwrap(), random_bytes::<32>().unwrap());
    }

    #[test]
    fn the_clock_goes_on() {
        let before = monotonic();
        while thread_time() == Duration::ZERO {}
        assert!(monotonic() > Duration::ZERO);
        assert!(monotonic() >= before);
        assert!(processor_time() >= thread_time());
    }

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let write = |replacement: &Replacement, content: &str| {
            replacement.file().write_all_at(content.as_bytes(), 0).unwrap();
        };
        for content in ["one", "two"] {
            let replacement = Replacement::new(&path).unwrap();
            write(&replacement, content);
            assert_ne!(std::fs::read_to_string(&path).unwrap_or_default(), content);
            replacement.commit().unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        let given_up = Replacement::new(&path).unwrap();
        write(&given_up, "three");
        drop(given_up);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(Replacement::new(&dir.path().join("no/folder")).is_err());
    }

    #[test]
    fn a_sealed_file_is_read_and_goes_with_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, path) = (dir.path().join("folder"), dir.path().join("folder/file"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(&path, "one").unwrap();
        let file = file::seal(&path).unwrap();
        assert!(file.metadata().unwrap().permissions().readonly());
        let mut bytes = [0; 3];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"one");
        assert!(tree::look(&path).unwrap().is_of(&tree::stat(&file).unwrap()));
        assert!(!tree::look(&folder).unwrap().is_of(&tree::stat(&file).unwrap()));
        assert!(file::open_folder_itself(&folder).is_ok());
        assert!(file::open_folder_itself(&path).is_err());
        drop(file);
        file::remove_tree(&folder).unwrap();
        assert!(tree::look(&folder).is_err());
    }

    #[test]
    fn only_whole_pages_count() {
        assert_eq!(whole_pages(0..8192, 4096), 0..8192);
        assert_eq!(whole_pages(1..12287, 4096), 4096..8192);
        assert!(whole_pages(1..4096, 4096).is_empty());
    }
}
