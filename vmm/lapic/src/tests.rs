//! What guests rely on.

use super::*;

const ZERO: Now = Now { nanoseconds: 0, tsc: 0 };
const SVR: u32 = 0xf0;
const EOI: u32 = 0xb0;
const ICR: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const INITIAL: u32 = 0x380;
const COUNT: u32 = 0x390;
const DIVIDE: u32 = 0x3e0;

fn at(nanoseconds: u64) -> Now {
    Now { nanoseconds, tsc: nanoseconds.saturating_mul(2) }
}

/// One that its guest has switched on.
fn on(id: u32) -> Apic {
    let mut apic = Apic::new(id);
    apic.write(SVR, 0x1ff, ZERO);
    apic
}

#[test]
fn it_is_off_until_software_switches_it_on() {
    let mut apic = Apic::new(0);
    assert_eq!((apic.base(), apic.is_mapped()), (0xfee0_0900, true));
    assert_eq!(Apic::new(3).base(), 0xfee0_0800);
    assert_eq!((apic.read(0x30, ZERO), apic.read(SVR, ZERO)), (0x5_0014, 0xff));
    apic.request(0x41, false);
    assert_eq!(apic.pending(), None);
    apic.write(SVR, 0x1ff, ZERO);
    apic.request(0x41, false);
    assert_eq!(apic.pending(), Some(0x41));
    // Vectors cannot be unmasked while it is off.
    apic.write(SVR, 0xff, ZERO);
    apic.write(LVT_TIMER, 0x30, ZERO);
    assert_eq!(apic.read(LVT_TIMER, ZERO), 0x1_0030);
}

#[test]
fn the_highest_vector_comes_first_and_holds_back_its_class() {
    let mut apic = on(0);
    for vector in [0x31, 0x52, 0x58, 0x33] {
        apic.request(vector, false);
    }
    assert_eq!(apic.acknowledge(), Some(0x58));
    assert_eq!(apic.read(0xa0, ZERO), 0x50, "the processor's priority");
    assert_eq!(apic.acknowledge(), None, "of the same class");
    apic.request(0x60, false);
    assert_eq!(apic.acknowledge(), Some(0x60));
    for next in [None, Some(0x52), Some(0x33)] {
        assert_eq!(apic.write(EOI, 0, ZERO), Effect::None);
        assert_eq!(apic.acknowledge(), next);
    }
    apic.write(EOI, 0, ZERO);
    apic.set_cr8(3);
    assert_eq!((apic.cr8(), apic.read(0x80, ZERO)), (3, 0x30));
    assert_eq!(apic.pending(), None, "0x31 is of class 3");
    apic.write(0x80, 0x2f, ZERO);
    assert_eq!(apic.acknowledge(), Some(0x31));
    // Ends without an interrupt are nothing.
    apic.write(EOI, 0, ZERO);
    assert_eq!(apic.write(EOI, 0, ZERO), Effect::None);
}

#[test]
fn the_end_of_a_level_is_told() {
    let mut apic = on(0);
    apic.request(0x41, true);
    assert_eq!(apic.acknowledge(), Some(0x41));
    assert_eq!(apic.read(0x1a0, ZERO), 2, "TMR");
    assert_eq!(apic.write(EOI, 0, ZERO), Effect::EndOfLevel(0x41));
    // The next of this vector is an edge.
    apic.request(0x41, false);
    apic.acknowledge();
    assert_eq!(apic.write(EOI, 0, ZERO), Effect::None);
}

#[test]
fn one_shot_fires_once_and_counts_down() {
    let mut apic = on(0);
    apic.write(DIVIDE, 0b1011, ZERO);
    apic.write(LVT_TIMER, 0x30, ZERO);
    apic.write(INITIAL, 1000, at(500));
    assert_eq!(apic.deadline(), Some(Deadline::Nanoseconds(1500)));
    assert_eq!(apic.read(COUNT, at(800)), 700);
    apic.tick(at(1499));
    assert_eq!(apic.pending(), None);
    apic.tick(at(1500));
    assert_eq!(apic.acknowledge(), Some(0x30));
    assert_eq!((apic.deadline(), apic.read(COUNT, at(9999))), (None, 0));
    // Divided by two, and stopped by zero.
    apic.write(DIVIDE, 0, ZERO);
    apic.write(INITIAL, 1000, at(0));
    assert_eq!(apic.deadline(), Some(Deadline::Nanoseconds(2000)));
    apic.write(INITIAL, 0, at(10));
    assert_eq!(apic.deadline(), None);
}

#[test]
fn periods_go_on_and_what_was_missed_is_one_interrupt() {
    let mut apic = on(0);
    apic.write(DIVIDE, 0b1011, ZERO);
    apic.write(LVT_TIMER, 0x30 | 1 << 17, ZERO);
    apic.write(INITIAL, 100, ZERO);
    apic.tick(at(350));
    assert_eq!(apic.acknowledge(), Some(0x30));
    apic.tick(at(351));
    assert_eq!(apic.pending(), None);
    assert_eq!(apic.deadline(), Some(Deadline::Nanoseconds(400)), "in step");
    // A timer that is masked counts, and interrupts nobody.
    apic.write(LVT_TIMER, 0x1_0030 | 1 << 17, ZERO);
    assert_eq!(apic.deadline(), None);
    assert_eq!(apic.read(COUNT, at(360)), 40);
}

#[test]
fn deadlines_are_of_the_time_stamp_counter() {
    let mut apic = on(0);
    assert_eq!(apic.write_msr(0x6e0, 5, ZERO), Ok(Effect::None));
    assert_eq!(apic.read_msr(0x6e0, ZERO), Ok(0), "not in this mode");
    apic.write(LVT_TIMER, 0x30 | 2 << 17, ZERO);
    apic.write_msr(0x6e0, 1000, ZERO).unwrap();
    assert_eq!(apic.deadline(), Some(Deadline::Tsc(1000)));
    apic.tick(at(499));
    assert_eq!(apic.pending(), None);
    apic.tick(at(500));
    assert_eq!(apic.acknowledge(), Some(0x30));
    assert_eq!((apic.read_msr(0x6e0, ZERO), apic.deadline()), (Ok(0), None));
    // Another mode disarms.
    apic.write_msr(0x6e0, 5000, ZERO).unwrap();
    apic.write(LVT_TIMER, 0x30, ZERO);
    apic.write(LVT_TIMER, 0x30 | 2 << 17, ZERO);
    assert_eq!(apic.deadline(), None);
}

#[test]
fn commands_become_messages() {
    let mut apic = on(2);
    apic.write(ICR_HIGH, 0x0100_0000, ZERO);
    let sent = |effect: Effect| match effect {
        Effect::Send(message) => message,
        other => panic!("{other:?}"),
    };
    let init = sent(apic.write(ICR, 0x4500, ZERO));
    assert_eq!((init.delivery, init.to), (Delivery::Init, To::Physical(1)));
    assert_eq!(apic.write(ICR, 0x8500, ZERO), Effect::None, "the end of INIT");
    let start = sent(apic.write(ICR, 0x4608, ZERO));
    assert_eq!((start.delivery, start.vector), (Delivery::StartUp, 8));
    assert_eq!(sent(apic.write(ICR, 0xc_00fd, ZERO)).to, To::Others);
    assert_eq!(sent(apic.write(ICR, 0x4_00fd, ZERO)).to, To::Own);
    assert_eq!(sent(apic.write(ICR, 0x8fd, ZERO)).to, To::Logical(1));
    assert_eq!(apic.read(ICR, ZERO), 0x8fd);
    // A vector that is none is an error, told when it is asked for.
    assert_eq!(apic.write(ICR, 3, ZERO), Effect::None);
    assert_eq!(apic.read(0x280, ZERO), 0);
    apic.write(0x280, 0, ZERO);
    assert_eq!(apic.read(0x280, ZERO), 1 << 5);
}

#[test]
fn messages_find_whom_they_are_for() {
    let mut apic = on(2);
    assert!(apic.is_for(To::Physical(2), None) && apic.is_for(To::Physical(0xff), None));
    assert!(!apic.is_for(To::Physical(1), None));
    assert!(apic.is_for(To::Own, Some(2)) && !apic.is_for(To::Others, Some(2)));
    assert!(!apic.is_for(To::Own, Some(1)) && apic.is_for(To::All, Some(2)));
    apic.write(0xd0, 0x0400_0000, ZERO);
    assert!(apic.is_for(To::Logical(0x0c), None) && !apic.is_for(To::Logical(0x0b), None));
    // Clusters: number and members.
    apic.write(0xe0, 0, ZERO);
    apic.write(0xd0, 0x2400_0000, ZERO);
    assert!(apic.is_for(To::Logical(0x2c), None) && apic.is_for(To::Logical(0xf4), None));
    assert!(!apic.is_for(To::Logical(0x14), None));
    let message = Message::from_msi(0xfee0_2004, 1 << 15 | 1 << 8 | 0x41).unwrap();
    let expected =
        Message { delivery: Delivery::Lowest, vector: 0x41, level: true, to: To::Logical(2) };
    assert_eq!(message, expected);
    assert_eq!(Message::from_msi(0xfee0_0000, 6 << 8), None);
}

#[test]
fn x2apic_is_registers_alone() {
    let mut apic = on(0x12);
    assert_eq!(apic.read_msr(0x802, ZERO), Err(Fault), "not in this mode");
    assert_eq!(apic.write_msr(0x1b, 0xfee0_0400, ZERO), Err(Fault));
    apic.write_msr(0x1b, 0xfee0_0c00, ZERO).unwrap();
    assert!(!apic.is_mapped());
    assert_eq!(apic.read_msr(0x802, ZERO), Ok(0x12));
    assert_eq!(apic.read_msr(0x80d, ZERO), Ok(1 << 16 | 1 << 2));
    assert!(apic.is_for(To::Logical(1 << 16 | 6), None) && !apic.is_for(To::Logical(6), None));
    assert_eq!(apic.write_msr(0x802, 1, ZERO), Err(Fault));
    assert_eq!(apic.write_msr(0x80b, 1, ZERO), Err(Fault));
    assert_eq!(apic.write_msr(0x808, 1 << 32, ZERO), Err(Fault));
    for none in [0x800, 0x80e, 0x831, 0x840, 0x8ff] {
        assert_eq!(apic.write_msr(none, 0, ZERO), Err(Fault), "{none:#x}");
    }
    let sent = apic.write_msr(0x830, 7 << 32 | 0x41, ZERO).unwrap();
    assert!(matches!(sent, Effect::Send(Message { to: To::Physical(7), vector: 0x41, .. })));
    let sent = apic.write_msr(0x83f, 0x42, ZERO).unwrap();
    assert!(matches!(sent, Effect::Send(Message { to: To::Own, vector: 0x42, .. })));
    // Back only by switching it off.
    assert_eq!(apic.write_msr(0x1b, 0xfee0_0800, ZERO), Err(Fault));
    apic.write_msr(0x1b, 0xfee0_0000, ZERO).unwrap();
    assert_eq!(apic.read(SVR, ZERO), 0xff);
    assert_eq!(apic.write_msr(0x1b, 0xfee0_0c00, ZERO), Err(Fault));
    // It stays where it is, and has no unknown bits.
    for wrong in [0xfee0_1800, 0xfee0_0801, 1 << 40 | 0xfee0_0800] {
        assert_eq!(apic.write_msr(0x1b, wrong, ZERO), Err(Fault));
    }
}

#[test]
fn a_state_goes_on_elsewhere() {
    let mut apic = on(1);
    apic.write(0xd0, 0x0200_0000, ZERO);
    apic.write(DIVIDE, 0b1011, ZERO);
    apic.write(LVT_TIMER, 0x30 | 1 << 17, ZERO);
    apic.write(INITIAL, 1000, ZERO);
    for (vector, level) in [(0x41, true), (0x52, false)] {
        apic.request(vector, level);
    }
    apic.acknowledge();
    let state = apic.state(at(300));
    let mut other = Apic::new(1);
    other.restore(&state, at(10_000)).unwrap();
    assert_eq!(other.deadline(), Some(Deadline::Nanoseconds(10_700)));
    assert_eq!(other.state(at(10_000)), state);
    assert_eq!(other.acknowledge(), None);
    other.write(EOI, 0, ZERO);
    assert_eq!(other.acknowledge(), Some(0x41));
    assert_eq!(other.write(EOI, 0, ZERO), Effect::EndOfLevel(0x41));
    assert_eq!(other.restore(&[0; 4], ZERO), Err(NoState));
    assert!(!other.restore_base(1) && other.restore_base(0xfee0_0c00));
}

#[test]
fn no_access_panics() {
    let mut apic = on(0);
    for base in [0xfee0_0900, 0xfee0_0d00] {
        apic.restore_base(base);
        for value in [0, 1, 0xffff_ffff, 0x5555_5555, u64::MAX] {
            for msr in 0x800..=0x8ff {
                let _ = apic.write_msr(msr, value, at(u64::MAX));
                let _ = apic.read_msr(msr, ZERO);
                apic.write((msr - 0x800) << 4, value as u32, at(u64::MAX / 2));
                apic.tick(at(u64::MAX / 2));
                apic.acknowledge();
            }
            let _ = apic.write_msr(0x6e0, value, ZERO);
        }
    }
    for offset in 0..4096 {
        apic.read(offset, at(7));
    }
}
