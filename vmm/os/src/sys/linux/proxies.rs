//! Linux has no settings of proxies but the environment's.

use crate::proxies::Variables;

/// None.
pub(crate) fn settings() -> Variables {
    Variables::new()
}
