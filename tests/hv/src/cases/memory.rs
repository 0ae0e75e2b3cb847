//! Memory slots and doorbells.

use cabana_hv::{Doorbell, HvError, MemorySlot, VmExit};
use cabana_os::Event;

use crate::extra::PAGE;
use crate::{Backend, Extra, Guest, Payload, lacks, layout};

/// `payload` copies the first word of [`layout::EXTRA`] to [`layout::DATA`], writes 0x77 to its ninth byte, and copies
/// what is there then to the next eight bytes of the data.
pub fn read_only_is_read_without_exits_and_not_written(backend: &Backend, payload: Payload) {
    let extra = Extra::new(1);
    extra.set_byte(0, 0x42);
    extra.set_byte(8, 0x43);
    let guest = Guest::new(backend, payload);
    extra.map(&guest, true, false);
    let write = VmExit::MmioWrite { addr: layout::EXTRA + 8, size: 4, data: 0x77 };
    guest.start().expect(&[(write, 0)]);
    assert_eq!(extra.byte(8), 0x43, "the memory is as it was");
    assert_eq!(guest.read_u64(layout::DATA), 0x42);
    assert_eq!(guest.read_u64(layout::DATA + 8), 0x43);
}

/// `payload` writes to pages 1, 3 and 65, and after `said` to 2 and 1; then it says it again and ends.
pub fn written_pages_are_dirty_until_asked_for(backend: &Backend, payload: Payload, said: VmExit) {
    let extra = Extra::new(70);
    let guest = Guest::new(backend, payload);
    extra.map(&guest, false, true);
    let mut runner = guest.start();
    let dirty = || guest.vm.dirty_pages(layout::EXTRA).unwrap();
    // Whole pages of the hypervisor, which are one of ours or a few.
    let bits = |written: &[u64]| {
        let each = backend.page / PAGE;
        let mut words = [0u64; 2];
        for page in written.iter().flat_map(|page| (0..each).map(move |at| page / each * each + at))
        {
            words[page as usize / 64] |= 1 << (page % 64);
        }
        words
    };
    assert_eq!(dirty(), [0, 0], "nothing was written yet");
    assert_eq!(runner.run(), said);
    assert_eq!(dirty(), bits(&[1, 3, 65]));
    assert_eq!(dirty(), [0, 0], "asked for before");
    assert_eq!(runner.run(), said);
    assert_eq!(dirty(), bits(&[2, 1]));
    assert!(guest.vm.dirty_pages(layout::RAM).is_err(), "RAM is not tracked");
    runner.expect_end();
}

/// Memory is refused over RAM, and at these addresses.
pub fn nonsense_is_refused(backend: &Backend, payload: Payload, addresses: &[u64]) {
    let extra = Extra::new(2);
    let guest = Guest::new(backend, payload);
    let slot = extra.slot(false, false);
    let refused = |slot: MemorySlot| {
        // SAFETY: the mapping outlives the guest.
        unsafe { guest.vm.map(&slot) }.unwrap_err()
    };
    for wrong in [
        MemorySlot { guest: layout::EXTRA + 1, ..slot },
        MemorySlot { len: 100, ..slot },
        MemorySlot { len: 0, ..slot },
    ] {
        assert!(matches!(refused(wrong), HvError::Invalid(_)));
    }
    for &address in [layout::RAM_END - PAGE].iter().chain(addresses) {
        refused(MemorySlot { guest: address, ..slot });
    }
    assert!(matches!(guest.vm.unmap(layout::EXTRA), Err(HvError::Invalid(_))));
    assert!(matches!(guest.vm.dirty_pages(layout::EXTRA), Err(HvError::Invalid(_))));
    // What was refused has taken nothing.
    extra.map(&guest, false, false);
    guest.vm.unmap(layout::EXTRA).unwrap();
}

/// `payload` writes 1, 2, 1 as words and 1 as a half word to the doorbell, a word behind it, and ends.
pub fn a_doorbell_takes_its_value_alone(backend: &Backend, payload: Payload) {
    let guest = Guest::new(backend, payload);
    let bell = Event::new().unwrap();
    let addr = layout::DEVICE + 0x50;
    match guest.vm.doorbell(Doorbell { guest: addr, value: 1 }, &bell) {
        Err(HvError::Unsupported(what)) => return lacks(what),
        other => other.unwrap(),
    }
    let mut runner = guest.start();
    assert_eq!(runner.run(), VmExit::MmioWrite { addr, size: 4, data: 2 });
    assert!(bell.take(), "the first write rang");
    assert_eq!(runner.run(), VmExit::MmioWrite { addr, size: 2, data: 1 });
    assert!(bell.take(), "the third write rang");
    assert_eq!(runner.run(), VmExit::MmioWrite { addr: addr + 4, size: 4, data: 1 });
    runner.expect_end();
    assert!(!bell.take());
}
