//! What a process that has nothing to do gives back. A process of its own, since other tests would bring it in again.

use std::fs::{self, File};
use std::hint::black_box;
use std::ops::Range;
use std::sync::Mutex;

use cabana_os::file::FileExt;
use cabana_os::process::{learn, own_program, release_spare};
use cabana_os::{confine, present_pages};

/// One test at a time: what one gives back is another one's.
static ALONE: Mutex<()> = Mutex::new(());

/// Where this program is mapped from its file so that nobody can write there.
fn fixed(maps: &str) -> Vec<Range<usize>> {
    let program = own_program().and_then(fs::canonicalize).unwrap();
    let ours = maps.lines().filter(|line| line.ends_with(program.to_str().unwrap()));
    let fixed = ours.filter(|line| !line.split(' ').nth(1).unwrap().contains('w'));
    let places = fixed.map(|line| line.split(' ').next().unwrap().split_once('-').unwrap());
    let number = |hex| usize::from_str_radix(hex, 16).unwrap();
    places.map(|(start, end)| number(start)..number(end)).collect()
}

/// Bytes that are in memory, and how many of them are this process's own.
fn present(places: &[Range<usize>]) -> (usize, usize) {
    let pages = places.iter().flat_map(|place| present_pages(place.clone()).unwrap());
    pages.fold((0, 0), |(all, own), pages| {
        let len = pages.range.len();
        (all + len, own + if pages.own { len } else { 0 })
    })
}

/// Most of this program, beside which what is needed to go on is little. A debugger could write to it, the program cannot.
static LARGE: [u8; 4 << 20] = [7; 4 << 20];

#[test]
fn pages_as_in_the_programs_file_go_and_the_program_goes_on() {
    if present_pages(0..0).is_err() {
        return println!("skipped: this system does not tell what is in memory");
    }
    let _alone = ALONE.lock().unwrap();
    let places = fixed(&fs::read_to_string("/proc/self/maps").unwrap());
    // Reading a process's memory as a file brings it in as touching it does.
    let memory = File::options().read(true).write(true).open("/proc/self/mem").unwrap();
    let read = |place: &Range<usize>| {
        let mut bytes = vec![0; place.len()];
        memory.read_exact_at(&mut bytes, place.start as u64).unwrap();
        bytes
    };
    let breakpoint = black_box(&LARGE).as_ptr() as u64 + (1 << 20);
    if memory.write_all_at(&[8], breakpoint).is_err() {
        println!("this system lets nobody write where the program cannot");
    }
    let bytes: Vec<_> = places.iter().map(read).collect();
    let (all, own) = present(&places);
    assert!(all > LARGE.len(), "{all} bytes are too little");

    release_spare().unwrap();
    let (left, still_own) = present(&places);
    assert!(left < all / 4, "{left} of {all} bytes left");
    assert_eq!(still_own, own);
    assert!(places.iter().map(read).eq(bytes), "other bytes than before");
}

#[test]
fn a_machines_process_can_do_so_when_it_is_confined() {
    if present_pages(0..0).is_err() {
        return println!("skipped: this system does not tell what is in memory");
    }
    let _alone = ALONE.lock().unwrap();
    learn();
    // This thread alone.
    confine::machine(std::iter::empty()).unwrap();
    assert!(File::open("/proc/self/maps").is_err());
    release_spare().unwrap();
}
