//! QEMU's command line: a software CPU with nested SVM or EL2, virtio-serial ports and two virtio-fs shares.
//! The reason for every choice that is not plain stands in this crate's README.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

use crate::architecture::Architecture;
use crate::machine::Options;
use crate::tunnel::BELL;

/// Initcalls of Debian's kernel that cost an emulated CPU most and that nothing here needs: a random
/// number self-test, the module certificates, and two users of BTF, whose parsing they cause.
const SKIPPED_INITCALLS: &str =
    "jent_mod_init,load_system_certificate_list,bpf_tcp_ca_kfunc_init,bpf_dummy_struct_ops_init";

/// The open files that QEMU inherits.
pub(crate) struct Inherited {
    /// The connected vhost-user sockets of the shares, with their mount tags.
    pub shares: [(&'static str, RawFd); 2],
    /// QEMU's ends of the ports' sockets, the bell's last.
    pub ports: Vec<RawFd>,
    /// QEMU's end of the socket of its monitor.
    pub monitor: RawFd,
    /// The initramfs.
    pub initramfs: RawFd,
}

/// QEMU's arguments. `tsc_khz` is the host's time stamp counter's rate.
pub(crate) fn arguments(
    architecture: Architecture,
    options: &Options,
    vmlinux: &Path,
    tsc_khz: u64,
    inherited: &Inherited,
) -> Vec<OsString> {
    let memory = options.memory_mib;
    let mut arguments = Arguments::default();
    arguments.words("-nodefaults -no-user-config -display none -no-reboot -serial stdio");
    arguments.words(match architecture {
        Architecture::X86_64 => {
            "-M q35,hpet=off,smbus=off,sata=off,usb=off,vmport=off,graphics=off,memory-backend=ram \
             -bios qboot.rom -cpu max,-la57 -smp 1"
        }
        Architecture::Arm64 => {
            "-M virt,virtualization=on,gic-version=3,memory-backend=ram -cpu max,pauth=off -smp 1"
        }
    });
    arguments.words(&format!("-object memory-backend-memfd,id=ram,share=on,size={memory}M"));
    arguments.words(&format!("-m {memory}"));
    if options.instruction_clock {
        arguments.words("-accel tcg,thread=single,tb-size=512 -icount shift=0,sleep=off");
    } else {
        arguments.words("-accel tcg,tb-size=512");
    }
    arguments.path("-kernel", vmlinux);
    arguments.words(&format!("-initrd /proc/self/fd/{}", inherited.initramfs));
    let command_line = match architecture {
        Architecture::X86_64 => x86_command_line(options, tsc_khz),
        Architecture::Arm64 => "console=ttyAMA0".to_owned(),
    };
    arguments.path("-append", Path::new(&format!("{command_line} {}", common_words(options))));
    arguments.words(&format!("-device virtio-serial-pci,max_ports={},vectors=2", BELL + 1));
    for (index, fd) in inherited.ports.iter().enumerate() {
        let number = index + 1;
        arguments.words(&format!("-chardev socket,id=port{number},fd={fd}"));
        arguments.words(&format!("-device virtserialport,chardev=port{number},nr={number}"));
    }
    arguments.words(&format!("-chardev socket,id=monitor,fd={}", inherited.monitor));
    arguments.words("-mon chardev=monitor,mode=readline");
    for (tag, fd) in inherited.shares {
        arguments.words(&format!("-chardev socket,id={tag},fd={fd}"));
        arguments.words(&format!("-device vhost-user-fs-pci,chardev={tag},tag={tag}"));
    }
    arguments.0
}

/// What the outer kernel is told on every processor.
fn common_words(options: &Options) -> String {
    [
        "loglevel=6 rdinit=/init panic=-1 rcupdate.rcu_expedited=1 mitigations=off".into(),
        format!("initcall_blacklist={SKIPPED_INITCALLS} init_on_alloc=0 hardened_usercopy=off"),
        format!("lsm=landlock transparent_hugepage={}", options.huge_pages),
    ]
    .join(" ")
}

fn x86_command_line(options: &Options, tsc_khz: u64) -> String {
    // Under -icount QEMU's time stamp counter counts the virtual clock's nanoseconds.
    let tsc_khz = if options.instruction_clock { 1_000_000 } else { tsc_khz };
    [
        "console=ttyS0 reboot=t 8250.nr_uarts=1 tsc=reliable no_timer_check".into(),
        // An autopsy begins with one.
        "unknown_nmi_panic".into(),
        format!("tsc_early_khz={tsc_khz} lpj={}", tsc_khz * 4),
    ]
    .join(" ")
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    /// Adds arguments that contain no spaces.
    fn words(&mut self, words: &str) {
        self.0.extend(words.split(' ').map(OsString::from));
    }

    /// Adds an option with a value of any content.
    fn path(&mut self, option: &str, value: &Path) {
        self.0.extend([option.into(), value.as_os_str().to_owned()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command_line(options: &Options) -> String {
        let inherited = Inherited {
            shares: [("root", 10), ("shared", 11)],
            ports: (20..20 + BELL as RawFd).collect(),
            monitor: 13,
            initramfs: 12,
        };
        let arguments = arguments(
            Architecture::X86_64,
            options,
            Path::new("/a b/vmlinux"),
            2_600_000,
            &inherited,
        );
        assert!(arguments.contains(&"/a b/vmlinux".into()), "a path with a space stays whole");
        arguments.join(" ".as_ref()).into_string().unwrap()
    }

    #[test]
    fn the_ordinary_clock_is_the_hosts() {
        let line = command_line(&Options::default());
        assert!(line.contains("tsc_early_khz=2600000 lpj=10400000"), "{line}");
        assert!(!line.contains("-icount"), "{line}");
    }

    #[test]
    fn the_instruction_clock_ticks_once_a_nanosecond() {
        let line = command_line(&Options { instruction_clock: true, ..Options::default() });
        assert!(line.contains("tsc_early_khz=1000000 lpj=4000000"), "{line}");
        assert!(line.contains("thread=single") && line.contains("-icount shift=0,sleep=off"));
    }
}
