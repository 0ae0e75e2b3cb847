//! The proxies of the user's settings (Internet Options).

use std::ptr;

use windows_sys::Win32::Foundation::GlobalFree;
use windows_sys::Win32::Networking::WinHttp::{
    WINHTTP_CURRENT_USER_IE_PROXY_CONFIG, WinHttpGetIEProxyConfigForCurrentUser,
};

use crate::proxies::{Variables, of_windows};

/// What the user's settings name; nothing if they cannot be read.
pub(crate) fn settings() -> Variables {
    let mut config = WINHTTP_CURRENT_USER_IE_PROXY_CONFIG {
        fAutoDetect: 0,
        lpszAutoConfigUrl: ptr::null_mut(),
        lpszProxy: ptr::null_mut(),
        lpszProxyBypass: ptr::null_mut(),
    };
    // SAFETY: the call fills the structure, with strings that are ours to free.
    if unsafe { WinHttpGetIEProxyConfigForCurrentUser(&raw mut config) } == 0 {
        return Variables::new();
    }
    let (server, bypass) = (take(config.lpszProxy), take(config.lpszProxyBypass));
    of_windows(&server, &bypass, &take(config.lpszAutoConfigUrl))
}

/// The text of a string of the call's, which is freed.
fn take(text: *mut u16) -> String {
    if text.is_null() {
        return String::new();
    }
    let mut length = 0;
    // SAFETY: the string ends with a zero, and is ours.
    let words = unsafe {
        while *text.add(length) != 0 {
            length += 1;
        }
        std::slice::from_raw_parts(text, length)
    };
    let own = String::from_utf16_lossy(words);
    // SAFETY: it came from the call and nobody uses it any more.
    unsafe { GlobalFree(text.cast()) };
    own
}
