//! Signals that interrupt a system call.

/// Makes a signal do nothing but interrupt: a call that can be restarted is, one that cannot (`KVM_RUN`) ends with
/// `EINTR`.
pub fn let_interrupt(signal: i32) {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: all-zero is a valid `sigaction`, and a handler that does nothing is safe to call at any moment.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}
