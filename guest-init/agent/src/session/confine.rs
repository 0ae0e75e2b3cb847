//! From root to a session's user, with no way back: between a fork and an exec.

use std::io;

use rustix::thread::{Gid, Uid};

use super::filter;

/// The highest capability that a kernel may have (`CAP_LAST_CAP` is 40 in Linux 6.12).
const CAPABILITIES: libc::c_ulong = 64;

/// Makes this process the user's, without capabilities, privileges to gain, or the kernel's rarer
/// interfaces. [`filter::program`] has been called before.
pub(crate) fn apply(user: u32) -> io::Result<()> {
    // The bounding set goes while there is the right to change it.
    for capability in 0..CAPABILITIES {
        // SAFETY: changes a set of the process; no memory is involved.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } < 0 {
            break;
        }
    }
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    // Leaving root behind empties the sets of capabilities.
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    rustix::thread::set_no_new_privs(true)?;
    filter::apply()
}
