//! Saved states, of guests that say the sum of all that they have read.

use cabana_hv::VmExit;

use crate::{Guest, Runner};

/// `moved` makes a new VM whose vCPU goes on where this one stands, which is gone then.
pub fn an_unanswered_read_is_read_again(
    guest: Guest,
    ask: VmExit,
    said: impl Fn(u32) -> VmExit,
    moved: impl FnOnce(Guest, Runner) -> (Guest, Runner),
) {
    let mut runner = guest.start();
    assert_eq!(runner.run(), ask);
    assert_eq!(runner.data(3), said(3));
    assert_eq!(runner.run(), ask);
    // Who was asked for a state can go on.
    runner.vcpu.state().unwrap();
    assert_eq!(runner.data(5), said(8));
    assert_eq!(runner.run(), ask);
    let (_copy, mut there) = moved(guest, runner);
    assert_eq!(there.run(), ask);
    assert_eq!(there.data(4), said(12));
}

/// In the same VM.
pub fn a_vcpu_goes_back_to_where_it_was(guest: &Guest, said: impl Fn(u32) -> VmExit) {
    let mut runner = guest.start();
    runner.run();
    assert_eq!(runner.data(3), said(3));
    let saved = runner.vcpu.state().unwrap();
    runner.run();
    assert_eq!(runner.data(10), said(13));
    runner.vcpu.set_state(&saved).unwrap();
    runner.run();
    assert_eq!(runner.data(1), said(4));
}
