//! Names of the system calls through which the kernel writes into a program's memory.

/// A match from numbers to names, which are those of libc's constants without `SYS_`.
macro_rules! names {
    ($number:expr, $($name:ident = $constant:ident),+ $(,)?) => {
        match i64::from($number) {
            $(libc::$constant => Some(stringify!($name)),)+
            _ => None,
        }
    };
}

/// The name of a system call of this machine's architecture; `None` for one that does not write, or is not known.
pub fn name(number: i32) -> Option<&'static str> {
    let common = names!(
        number,
        read = SYS_read,
        readv = SYS_readv,
        pread64 = SYS_pread64,
        preadv = SYS_preadv,
        preadv2 = SYS_preadv2,
        recvfrom = SYS_recvfrom,
        recvmsg = SYS_recvmsg,
        recvmmsg = SYS_recvmmsg,
        getdents64 = SYS_getdents64,
        fstat = SYS_fstat,
        newfstatat = SYS_newfstatat,
        statx = SYS_statx,
        statfs = SYS_statfs,
        fstatfs = SYS_fstatfs,
        ppoll = SYS_ppoll,
        epoll_pwait = SYS_epoll_pwait,
        epoll_pwait2 = SYS_epoll_pwait2,
        pselect6 = SYS_pselect6,
        wait4 = SYS_wait4,
        waitid = SYS_waitid,
        clock_gettime = SYS_clock_gettime,
        clock_getres = SYS_clock_getres,
        clock_nanosleep = SYS_clock_nanosleep,
        nanosleep = SYS_nanosleep,
        gettimeofday = SYS_gettimeofday,
        getitimer = SYS_getitimer,
        setitimer = SYS_setitimer,
        getrandom = SYS_getrandom,
        uname = SYS_uname,
        getcwd = SYS_getcwd,
        readlinkat = SYS_readlinkat,
        pipe2 = SYS_pipe2,
        socketpair = SYS_socketpair,
        accept = SYS_accept,
        accept4 = SYS_accept4,
        getsockname = SYS_getsockname,
        getpeername = SYS_getpeername,
        getsockopt = SYS_getsockopt,
        futex = SYS_futex,
        rt_sigprocmask = SYS_rt_sigprocmask,
        rt_sigaction = SYS_rt_sigaction,
        rt_sigtimedwait = SYS_rt_sigtimedwait,
        rt_sigpending = SYS_rt_sigpending,
        sigaltstack = SYS_sigaltstack,
        ioctl = SYS_ioctl,
        fcntl = SYS_fcntl,
        sysinfo = SYS_sysinfo,
        times = SYS_times,
        getrusage = SYS_getrusage,
        getrlimit = SYS_getrlimit,
        prlimit64 = SYS_prlimit64,
        sched_getaffinity = SYS_sched_getaffinity,
        sched_getparam = SYS_sched_getparam,
        get_robust_list = SYS_get_robust_list,
        clone = SYS_clone,
        clone3 = SYS_clone3,
        exit = SYS_exit,
        exit_group = SYS_exit_group,
        execve = SYS_execve,
        process_vm_readv = SYS_process_vm_readv,
        process_vm_writev = SYS_process_vm_writev,
        io_getevents = SYS_io_getevents,
        io_submit = SYS_io_submit,
        io_uring_enter = SYS_io_uring_enter,
        sendfile = SYS_sendfile,
        copy_file_range = SYS_copy_file_range,
        splice = SYS_splice,
        vmsplice = SYS_vmsplice,
        mincore = SYS_mincore,
        msgrcv = SYS_msgrcv,
        timer_create = SYS_timer_create,
        timer_gettime = SYS_timer_gettime,
        timer_settime = SYS_timer_settime,
        timerfd_gettime = SYS_timerfd_gettime,
        timerfd_settime = SYS_timerfd_settime,
        prctl = SYS_prctl,
        getresuid = SYS_getresuid,
        getresgid = SYS_getresgid,
        getgroups = SYS_getgroups,
        getxattr = SYS_getxattr,
        fgetxattr = SYS_fgetxattr,
        listxattr = SYS_listxattr,
        capget = SYS_capget,
        shmctl = SYS_shmctl,
        semctl = SYS_semctl,
        msgctl = SYS_msgctl,
        mq_timedreceive = SYS_mq_timedreceive,
        getcpu = SYS_getcpu,
        set_tid_address = SYS_set_tid_address,
        rseq = SYS_rseq,
        name_to_handle_at = SYS_name_to_handle_at,
        move_pages = SYS_move_pages,
        keyctl = SYS_keyctl,
        bpf = SYS_bpf,
        perf_event_open = SYS_perf_event_open,
    );
    common.or_else(|| old(number))
}

/// Tells whether a system call reads something into a buffer that the program chose for it.
pub fn reads(number: i32) -> bool {
    const READS: [&str; 8] = ["read", "readv", "pread64", "preadv", "preadv2", "recvfrom", "recvmsg", "recvmmsg"];
    name(number).is_some_and(|name| READS.contains(&name))
}

/// Those that only older architectures have.
#[cfg(target_arch = "x86_64")]
fn old(number: i32) -> Option<&'static str> {
    names!(
        number,
        stat = SYS_stat,
        lstat = SYS_lstat,
        poll = SYS_poll,
        select = SYS_select,
        epoll_wait = SYS_epoll_wait,
        pipe = SYS_pipe,
        readlink = SYS_readlink,
        getdents = SYS_getdents,
        time = SYS_time,
        vfork = SYS_vfork,
        fork = SYS_fork,
        arch_prctl = SYS_arch_prctl,
    )
}

/// Those that only older architectures have: none here.
#[cfg(not(target_arch = "x86_64"))]
fn old(_number: i32) -> Option<&'static str> {
    None
}

#[cfg(test)]
mod tests {
    #[test]
    fn known_numbers_have_their_names_and_others_none() {
        assert_eq!(super::name(libc::SYS_read as i32), Some("read"));
        assert_eq!(super::name(libc::SYS_epoll_pwait as i32), Some("epoll_pwait"));
        assert_eq!(super::name(-1), None);
        assert_eq!(super::name(i32::MAX), None);
    }
}
