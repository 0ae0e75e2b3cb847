//! Who may use what this process makes: nobody but its user.

use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr;

use windows_sys::Win32::Foundation::LocalFree;
use windows_sys::Win32::Security::Authorization::{
    ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1,
};
use windows_sys::Win32::Security::{
    GetTokenInformation, PSECURITY_DESCRIPTOR, SECURITY_ATTRIBUTES, TOKEN_QUERY, TOKEN_USER,
    TokenUser,
};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, OpenProcessToken};

use super::pipe::wide;

/// Characters of the longest text of a user.
const LONGEST: usize = 256;

/// A description of rights: all for this user, none for anybody else.
#[derive(Debug)]
pub(super) struct Only(PSECURITY_DESCRIPTOR);

// SAFETY: the description is read only, by whoever has a reference.
unsafe impl Send for Only {}
// SAFETY: as above.
unsafe impl Sync for Only {}

impl Only {
    pub(super) fn this_user() -> io::Result<Self> {
        // Protected, so that nothing is inherited; all rights, to the user.
        let text = wide(&format!("D:P(A;;GA;;;{})", user()?));
        let mut descriptor = ptr::null_mut();
        // SAFETY: the text ends with a zero; the call makes a description, which is ours.
        let made = unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                text.as_ptr(),
                SDDL_REVISION_1,
                &raw mut descriptor,
                ptr::null_mut(),
            )
        };
        if made == 0 { Err(io::Error::last_os_error()) } else { Ok(Self(descriptor)) }
    }

    /// For a call that makes something, for as long as this is there.
    pub(super) fn attributes(&self) -> SECURITY_ATTRIBUTES {
        let len = size_of::<SECURITY_ATTRIBUTES>() as u32;
        SECURITY_ATTRIBUTES { nLength: len, lpSecurityDescriptor: self.0, bInheritHandle: 0 }
    }
}

impl Drop for Only {
    fn drop(&mut self) {
        // SAFETY: the description is ours and was made so that this frees it.
        unsafe { LocalFree(self.0) };
    }
}

/// This user as a text.
fn user() -> io::Result<String> {
    let mut token = ptr::null_mut();
    // SAFETY: the first handle is a constant for this process itself; the call makes another.
    if unsafe { OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &raw mut token) } == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system made the handle for us alone.
    let token = unsafe { OwnedHandle::from_raw_handle(token) };
    // A user with the longest identifier fits; 64-bit words for the structure's alignment.
    let mut room = [0_u64; 32];
    let (at, mut len) = (room.as_mut_ptr(), size_of_val(&room) as u32);
    // SAFETY: no more is written than there is room for.
    let told = unsafe {
        let token = token.as_raw_handle();
        GetTokenInformation(token, TokenUser, at.cast(), len, &raw mut len)
    };
    if told == 0 {
        return Err(io::Error::last_os_error());
    }
    let mut text = ptr::null_mut();
    // SAFETY: the call has filled the structure, whose pointer leads into the same room; the text is ours.
    unsafe {
        let user = &*at.cast::<TOKEN_USER>();
        if ConvertSidToStringSidW(user.User.Sid, &raw mut text) == 0 {
            return Err(io::Error::last_os_error());
        }
        let len = (0..LONGEST).take_while(|at| *text.add(*at) != 0).count();
        let user = String::from_utf16_lossy(std::slice::from_raw_parts(text, len));
        LocalFree(text.cast());
        Ok(user)
    }
}
