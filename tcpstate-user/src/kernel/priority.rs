//! How much of the processors we get while others want them too.

/// Lets this thread, and those it starts, run somewhat before others, unless a priority was chosen for us: a reader that gets no
/// more than its fair share of busy processors falls behind, and loses what it was started for. It takes no more time by that, but takes it
/// earlier.
pub fn hurry() {
    const NICE: libc::c_int = -5;
    // SAFETY: it asks for our own, and has no requirements.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    if nice == 0 {
        // Without CAP_SYS_NICE it stays as it is; what is lost is counted.
        // SAFETY: as above.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    }
}
