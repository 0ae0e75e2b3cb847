//! Where the registers of virtio-mmio stand (virtio 1.3 §4.2.2) and the bits of the device status
//! (§2.1).

pub(crate) const MAGIC_VALUE: u64 = 0x000;
pub(crate) const VERSION: u64 = 0x004;
pub(crate) const DEVICE_ID: u64 = 0x008;
pub(crate) const VENDOR_ID: u64 = 0x00c;
pub(crate) const DEVICE_FEATURES: u64 = 0x010;
pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x014;
pub(crate) const DRIVER_FEATURES: u64 = 0x020;
pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x024;
pub(crate) const QUEUE_SEL: u64 = 0x030;
pub(crate) const QUEUE_SIZE_MAX: u64 = 0x034;
pub(crate) const QUEUE_SIZE: u64 = 0x038;
/// A queue's place as drivers of the legacy interface tell it (§4.2.4), which is reserved in version 2.
pub(crate) const QUEUE_PFN: u64 = 0x040;
pub(crate) const QUEUE_READY: u64 = 0x044;
pub(crate) const QUEUE_NOTIFY: u64 = 0x050;
pub(crate) const INTERRUPT_STATUS: u64 = 0x060;
pub(crate) const INTERRUPT_ACK: u64 = 0x064;
pub(crate) const STATUS: u64 = 0x070;
pub(crate) const QUEUE_DESC_LOW: u64 = 0x080;
pub(crate) const QUEUE_DESC_HIGH: u64 = 0x084;
pub(crate) const QUEUE_DRIVER_LOW: u64 = 0x090;
pub(crate) const QUEUE_DRIVER_HIGH: u64 = 0x094;
pub(crate) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
pub(crate) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
pub(crate) const SHM_SEL: u64 = 0x0ac;
pub(crate) const SHM_LEN_LOW: u64 = 0x0b0;
pub(crate) const SHM_LEN_HIGH: u64 = 0x0b4;
pub(crate) const SHM_BASE_LOW: u64 = 0x0b8;
pub(crate) const SHM_BASE_HIGH: u64 = 0x0bc;
pub(crate) const CONFIG_GENERATION: u64 = 0x0fc;
pub(crate) const CONFIG: u64 = 0x100;

pub(crate) const ACKNOWLEDGE: u32 = 1;
pub(crate) const DRIVER: u32 = 2;
pub(crate) const DRIVER_OK: u32 = 4;
pub(crate) const FEATURES_OK: u32 = 8;
pub(crate) const NEEDS_RESET: u32 = 64;
pub(crate) const FAILED: u32 = 128;
