//! The proxies of the network service in use (System Settings).

use system_configuration::core_foundation::array::CFArray;
use system_configuration::core_foundation::base::{CFType, TCFType};
use system_configuration::core_foundation::dictionary::CFDictionary;
use system_configuration::core_foundation::number::CFNumber;
use system_configuration::core_foundation::string::CFString;
use system_configuration::dynamic_store::SCDynamicStoreBuilder;

use crate::proxies::{Variables, of_macos};

/// What the settings name; nothing if they cannot be read.
pub(crate) fn settings() -> Variables {
    let store = SCDynamicStoreBuilder::new("cabana").build();
    let Some(settings) = store.and_then(|store| store.get_proxies()) else {
        return Variables::new();
    };
    let number = |key: &str| value(&settings, key)?.downcast::<CFNumber>()?.to_i64();
    let text = |key: &str| Some(value(&settings, key)?.downcast::<CFString>()?.to_string());
    let exceptions = value(&settings, "ExceptionsList").and_then(|list| list.downcast::<CFArray>());
    let exceptions = exceptions.map(|list| {
        list.iter()
            .filter_map(|item| {
                // SAFETY: an array of the system's holds objects, which it keeps while we look.
                let item = unsafe { CFType::wrap_under_get_rule(item.cast()) };
                Some(item.downcast::<CFString>()?.to_string())
            })
            .collect()
    });
    of_macos(number, text, exceptions.unwrap_or_default())
}

fn value(settings: &CFDictionary<CFString, CFType>, key: &str) -> Option<CFType> {
    settings.find(CFString::new(key)).map(|value| value.clone())
}
