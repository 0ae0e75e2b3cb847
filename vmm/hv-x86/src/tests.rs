use std::collections::BTreeMap;

use cabana_hv::x86::Regs;
use cabana_hv::{HvError, VmEntry, VmExit};

use crate::{Cpu, Emulation, Mode, Step, Surroundings};

const RAM: u64 = 0x1000;
const DEVICE: u64 = 0xd000_0000;

/// One page of RAM, first at [`RAM`]; everything else is a device, but nothing is mapped above 4 GiB.
struct World {
    start: u64,
    ram: [u8; 4096],
    xmm: BTreeMap<usize, u128>,
}

impl World {
    fn new() -> Self {
        Self { start: RAM, ram: [0; 4096], xmm: BTreeMap::new() }
    }

    fn place(&mut self, guest: u64, len: usize) -> Option<&mut [u8]> {
        let at = usize::try_from(guest.checked_sub(self.start)?).ok()?;
        self.ram.get_mut(at..at + len)
    }
}

impl Surroundings for World {
    fn translate(&mut self, linear: u64, _write: bool) -> Result<Option<u64>, HvError> {
        Ok((linear < 1 << 32).then_some(linear))
    }

    fn read(&mut self, guest: u64, data: &mut [u8]) -> bool {
        self.place(guest, data.len()).map(|ram| data.copy_from_slice(ram)).is_some()
    }

    fn write(&mut self, guest: u64, data: &[u8]) -> bool {
        self.place(guest, data.len()).map(|ram| ram.copy_from_slice(data)).is_some()
    }

    fn xmm(&mut self, index: usize) -> Result<u128, HvError> {
        Ok(self.xmm.get(&index).copied().unwrap_or(0))
    }

    fn set_xmm(&mut self, index: usize, value: u128) -> Result<(), HvError> {
        self.xmm.insert(index, value);
        Ok(())
    }
}

fn cpu(regs: Regs) -> Cpu {
    Cpu { regs: Regs { rip: 0x100, ..regs }, mode: Mode::Bits64, bases: [0; 6] }
}

/// Runs one instruction against these accesses and answers.
fn run(world: &mut World, cpu: &mut Cpu, bytes: &[u8], script: &[(VmExit, u64)]) {
    let mut emulation = Emulation::begin(cpu, bytes).unwrap();
    for &(expected, answer) in script {
        let before = cpu.clone();
        assert_eq!(emulation.step(cpu, world).unwrap(), Step::Exit(expected));
        assert_eq!(*cpu, before, "nothing changes before the end");
        let entry = match expected {
            VmExit::MmioRead { .. } | VmExit::PioRead { .. } => VmEntry::Data(answer),
            _ => VmEntry::Resume,
        };
        emulation.answer(entry).unwrap();
    }
    assert_eq!(emulation.step(cpu, world).unwrap(), Step::Done);
}

fn read(offset: u64, size: u8, answer: u64) -> (VmExit, u64) {
    (VmExit::MmioRead { addr: DEVICE + offset, size }, answer)
}

fn write(offset: u64, size: u8, data: u64) -> (VmExit, u64) {
    (VmExit::MmioWrite { addr: DEVICE + offset, size, data }, 0)
}

#[test]
fn a_read_modify_write_asks_then_tells_then_is_done() {
    let (mut world, mut cpu) = (World::new(), cpu(Regs { rbx: DEVICE, ..Regs::default() }));
    // or dword ptr [rbx], 0x10
    run(&mut world, &mut cpu, &[0x83, 0x0b, 0x10], &[read(0, 4, 1), write(0, 4, 0x11)]);
    assert_eq!(cpu.regs.rip, 0x103);
    // cmpxchg [rbx], ecx; what is held differs from EAX.
    cpu.regs.rax = 5;
    run(&mut world, &mut cpu, &[0x0f, 0xb1, 0x0b], &[read(0, 4, 7), write(0, 4, 7)]);
    assert_eq!((cpu.regs.rax, cpu.regs.rflags & 1 << 6), (7, 0));
    // lock xadd [rbx], eax
    run(&mut world, &mut cpu, &[0xf0, 0x0f, 0xc1, 0x03], &[read(0, 4, 1), write(0, 4, 8)]);
    assert_eq!(cpu.regs.rax, 1);
    // bts dword ptr [rbx], 3
    run(&mut world, &mut cpu, &[0x0f, 0xba, 0x2b, 3], &[read(0, 4, 8), write(0, 4, 8)]);
    assert_eq!(cpu.regs.rflags & 1, 1);
}

#[test]
fn registers_keep_or_lose_their_upper_parts() {
    let regs = Regs { rbx: DEVICE, rax: u64::MAX, rcx: u64::MAX, ..Regs::default() };
    let (mut world, mut cpu) = (World::new(), cpu(regs));
    // mov ah, [rbx]; mov ecx, [rbx + 4]
    run(&mut world, &mut cpu, &[0x8a, 0x23], &[read(0, 1, 0x12)]);
    assert_eq!(cpu.regs.rax, 0xffff_ffff_ffff_12ff);
    run(&mut world, &mut cpu, &[0x8b, 0x4b, 4], &[read(4, 4, 0x8000_0000)]);
    assert_eq!(cpu.regs.rcx, 0x8000_0000);
    // movsx rcx, word ptr [rbx]
    run(&mut world, &mut cpu, &[0x48, 0x0f, 0xbf, 0x0b], &[read(0, 2, 0x8001)]);
    assert_eq!(cpu.regs.rcx, 0xffff_ffff_ffff_8001);
}

#[test]
fn a_repeated_string_is_done_element_by_element() {
    let regs = Regs { rsi: RAM, rdi: DEVICE, rcx: 2, ..Regs::default() };
    let (mut world, mut cpu) = (World::new(), cpu(regs));
    world.ram[..8].copy_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0]);
    // rep movsd
    run(&mut world, &mut cpu, &[0xf3, 0xa5], &[write(0, 4, 1)]);
    assert_eq!((cpu.regs.rip, cpu.regs.rcx, cpu.regs.rdi), (0x100, 1, DEVICE + 4));
    run(&mut world, &mut cpu, &[0xf3, 0xa5], &[write(4, 4, 2)]);
    assert_eq!((cpu.regs.rip, cpu.regs.rcx, cpu.regs.rsi), (0x102, 0, RAM + 8));
    // insb into RAM, backwards.
    cpu.regs = Regs { rdi: RAM + 9, rdx: 0x60, rflags: 1 << 10, ..cpu.regs };
    run(&mut world, &mut cpu, &[0x6c], &[(VmExit::PioRead { port: 0x60, size: 1 }, 0x7f)]);
    assert_eq!((world.ram[9], cpu.regs.rdi), (0x7f, RAM + 8));
}

#[test]
fn what_crosses_pages_or_is_wide_comes_in_sizes_of_the_contract() {
    let regs = Regs { rbx: DEVICE + 0xffd, rax: 0x4433_2211, ..Regs::default() };
    let (mut world, mut cpu) = (World::new(), cpu(regs));
    let bytes = [
        write(0xffd, 1, 0x11),
        write(0xffe, 1, 0x22),
        write(0xfff, 1, 0x33),
        write(0x1000, 1, 0x44),
    ];
    run(&mut world, &mut cpu, &[0x89, 0x03], &bytes);
    cpu.regs.rbx = DEVICE;
    // movdqu xmm1, [rbx]
    run(&mut world, &mut cpu, &[0xf3, 0x0f, 0x6f, 0x0b], &[read(0, 8, 3), read(8, 8, 4)]);
    assert_eq!(world.xmm[&1], 4 << 64 | 3);
}

#[test]
fn real_mode_adds_its_segments() {
    let (mut world, mut cpu) = (World::new(), cpu(Regs { rbx: 0x10, ..Regs::default() }));
    (cpu.mode, cpu.bases[3]) = (Mode::Bits16, 0xd_0000);
    // mov [bx], al
    let told = VmExit::MmioWrite { addr: 0xd_0010, size: 1, data: 0 };
    run(&mut world, &mut cpu, &[0x88, 0x07], &[(told, 0)]);
}

#[test]
fn the_guest_alone_pays_for_what_it_cannot_have() {
    let (mut world, mut cpu) = (World::new(), cpu(Regs { rbx: 1 << 40, ..Regs::default() }));
    let mut emulation = Emulation::begin(&cpu, &[0x89, 0x03]).unwrap();
    let fault = Step::PageFault { linear: 1 << 40, write: true };
    assert_eq!(emulation.step(&mut cpu, &mut world).unwrap(), fault);
    // fld dword ptr [rbx]; nothing at all.
    let mut emulation = Emulation::begin(&cpu, &[0xd9, 0x03]).unwrap();
    assert!(matches!(emulation.step(&mut cpu, &mut world), Err(HvError::Guest(_))));
    assert!(matches!(Emulation::begin(&cpu, &[]), Err(HvError::Guest(_))));
}

#[test]
fn a_wrong_answer_is_refused_and_the_right_one_still_taken() {
    let (mut world, mut cpu) = (World::new(), cpu(Regs { rdx: 0x60, ..Regs::default() }));
    // in al, dx
    let mut emulation = Emulation::begin(&cpu, &[0xec]).unwrap();
    let asked = Step::Exit(VmExit::PioRead { port: 0x60, size: 1 });
    assert!(emulation.answer(VmEntry::Data(1)).is_err(), "nobody asked");
    assert_eq!(emulation.step(&mut cpu, &mut world).unwrap(), asked);
    assert!(emulation.answer(VmEntry::Resume).is_err());
    emulation.answer(VmEntry::Data(0x42)).unwrap();
    assert_eq!(emulation.step(&mut cpu, &mut world).unwrap(), Step::Done);
    assert_eq!(cpu.regs.rax, 0x42);
}

#[test]
fn what_a_device_has_answered_counts_even_if_memory_comes_there() {
    let (mut world, mut cpu) = (World::new(), cpu(Regs { rbx: RAM + 4096, ..Regs::default() }));
    // mov eax, [rbx]
    let mut emulation = Emulation::begin(&cpu, &[0x8b, 0x03]).unwrap();
    let asked = Step::Exit(VmExit::MmioRead { addr: RAM + 4096, size: 4 });
    assert_eq!(emulation.step(&mut cpu, &mut world).unwrap(), asked);
    emulation.answer(VmEntry::Data(7)).unwrap();
    world.start += 4096;
    assert_eq!(emulation.step(&mut cpu, &mut world).unwrap(), Step::Done);
    assert_eq!(cpu.regs.rax, 7);
}

#[test]
fn any_bytes_end_in_a_step_or_an_error() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..20_000 {
        let mut world = World::new();
        let bytes = (u128::from(random()) << 64 | u128::from(random())).to_le_bytes();
        let regs =
            Regs { rbx: random(), rcx: random(), rsi: random(), rdi: random(), ..Regs::default() };
        let mut cpu = cpu(regs);
        cpu.mode = [Mode::Bits16, Mode::Bits32, Mode::Bits64][random() as usize % 3];
        let Ok(mut emulation) = Emulation::begin(&cpu, &bytes[..=random() as usize % 15]) else {
            continue;
        };
        for _ in 0..40 {
            match emulation.step(&mut cpu, &mut world) {
                Ok(Step::Exit(VmExit::MmioRead { .. } | VmExit::PioRead { .. })) => {
                    emulation.answer(VmEntry::Data(random())).unwrap();
                }
                Ok(Step::Exit(_)) => emulation.answer(VmEntry::Resume).unwrap(),
                _ => break,
            }
        }
    }
}
