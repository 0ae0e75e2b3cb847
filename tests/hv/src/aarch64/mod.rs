//! arm64: guests and payloads.

mod guest;

pub use cabana_hv::Arm64 as Processor;
pub(crate) use guest::is_end;
pub use guest::{Guest, boot_state, layout};
