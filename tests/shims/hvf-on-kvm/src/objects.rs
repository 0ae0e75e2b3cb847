//! Objects that the caller has handles of, until `os_release`.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cabana_hv_hvf::HV_BAD_ARGUMENT;

use crate::Answer;

/// An object.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    /// `hv_vm_config_t`: bits of guest-physical addresses.
    Vm { address_bits: u32 },
    /// `hv_gic_config_t`: where registers are.
    Gic { distributor: Option<u64>, redistributors: Option<u64> },
    /// `hv_gic_state_t`.
    State(Vec<u8>),
}

static OBJECTS: Mutex<(BTreeMap<usize, Object>, usize)> = Mutex::new((BTreeMap::new(), 0));

fn objects() -> MutexGuard<'static, (BTreeMap<usize, Object>, usize)> {
    OBJECTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps an object; its handle is nobody's memory.
pub(crate) fn keep(object: Object) -> *mut c_void {
    let mut objects = objects();
    objects.1 += 16;
    let handle = objects.1;
    objects.0.insert(handle, object);
    ptr::without_provenance_mut(handle)
}

/// What `use_it` makes of an object.
pub(crate) fn with<T>(
    handle: *mut c_void,
    use_it: impl FnOnce(&mut Object) -> Answer<T>,
) -> Answer<T> {
    objects().0.get_mut(&handle.addr()).ok_or(HV_BAD_ARGUMENT).and_then(use_it)
}

pub(crate) fn release(handle: *mut c_void) {
    objects().0.remove(&handle.addr());
}
