//! Making processes by clone3, waiting for them, and where a blocked thread stands.
//!
//! # Safety
//! The case has one thread when it forks, so a child made by a bare clone3 may do what it could.
#![expect(unsafe_code, reason = "claims about clone3 and glibc's memory of the thread id")]

use crate::child::{self, Gate};
use crate::claim::{Claim, Need, Verdict, claim};
use crate::evidence;
use crate::memory::{Kind, Memory, last_errno, load, mark};
use crate::watcher::{self, SYNC};
use cowbell::sys::clone::{ForkArgs, Forked};
use cowbell::sys::pagemap::{COPIED, Pagemap};
use cowbell::sys::pidfd::{self, Ended};
use cowbell::sys::shared_words::SharedWords;
use cowbell::sys::uffd::Features;
use cowbell::sys::{Errno, pipe, prctl, process, procfs};
use rustix::fs::OFlags;
use rustix::process::WaitOptions;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

pub const CLAIMS: &[Claim] = &[
    claim!(
        clone3_with_the_tid_cell_repairs_the_cached_thread_id,
        "`CHILD_SETTID | CHILD_CLEARTID` at the address of `PR_GET_TID_ADDRESS` repairs glibc's cached thread id (a mutex records the right owner); a bare clone3 leaves the parent's."
    )
    .needs(&[Need::TidAddress]),
    claim!(
        clone3_forgets_the_robust_list,
        "A child made by clone3 has no robust-futex list until it sets it again, which the crate's fork does."
    )
    .needs(&[Need::TidAddress]),
    claim!(
        child_without_exit_signal_needs_wall,
        "A child with exit signal 0 is invisible to `waitpid(-1)` (ECHILD) and found with `__WALL` or by its pidfd."
    )
    .needs(&[Need::TidAddress]),
    claim!(
        clear_sighand_resets_handlers,
        "`CLONE_CLEAR_SIGHAND` gives the child default handlers; without it it inherits them; ignored signals stay ignored."
    )
    .needs(&[Need::TidAddress]),
    claim!(
        death_signal_follows_the_thread,
        "`PR_SET_PDEATHSIG` fires when the thread that forked ends, though its process lives on."
    ),
    claim!(
        exec_gives_a_new_address_space,
        "`exec` keeps the process id and replaces the address space: a pagemap descriptor opened before shows nothing any more, and `/proc/PID/auxv` differs."
    )
    .needs(&[Need::Scan]),
    claim!(
        waiting_faulter_shows_its_program_counter,
        "`/proc/PID/task/TID/syscall` of a thread that waits in a page fault is `-1 SP PC`, and PC is the address of the store."
    )
    .needs(&[Need::Uffd]),
    claim!(
        cleared_tid_word_is_lost_on_a_sync_armed_page,
        "The kernel's store to the `CLONE_CHILD_CLEARTID` word at exit is lost on a page under synchronous write-protection, and done under `WP_ASYNC`."
    )
    .needs(&[Need::FullUffd, Need::WpAsync]),
];

/// Runs `body` in a child that the crate forks, and returns its result.
fn in_crate_fork(args: &ForkArgs<'_>, body: impl FnOnce() -> u64) -> u64 {
    let words = SharedWords::new(1).expect("a shared page");
    // SAFETY: this process has one thread; the child leaves by `exit`.
    match unsafe { cowbell::sys::clone::fork(args) }.expect("clone3") {
        Forked::Child => {
            words.words()[0].store(body(), Ordering::SeqCst);
            process::exit(0)
        }
        Forked::Parent { pidfd, .. } => {
            pidfd::wait_end(pidfd.as_fd(), None).expect("poll");
            assert_eq!(pidfd::reap(pidfd.as_fd()).expect("waitid"), Some(Ended::Exited(0)));
        }
    }
    words.words()[0].load(Ordering::SeqCst)
}

/// The same by a bare clone3.
fn in_bare_fork(body: impl FnOnce() -> u64) -> u64 {
    let words = SharedWords::new(1).expect("a shared page");
    // SAFETY: a clone_args of zeroes is valid.
    let mut args: linux_raw_sys::general::clone_args = unsafe { MaybeUninit::zeroed().assume_init() };
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM the child has its own copy of everything; the arguments are valid.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
    assert!(pid >= 0, "clone3: {}", last_errno());
    if pid == 0 {
        words.words()[0].store(body(), Ordering::SeqCst);
        process::exit(0)
    }
    let pidfd = pidfd::open(pid as i32).expect("pidfd_open");
    child::Child { pid: pid as i32, pidfd }.finish();
    words.words()[0].load(Ordering::SeqCst)
}

/// The thread that glibc takes for the owner of a mutex locked now: `pthread_mutex_t.__data.__owner`, the
/// third int of it on every 64-bit glibc.
fn mutex_owner() -> u64 {
    let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
    let mut mutex = MaybeUninit::<libc::pthread_mutex_t>::uninit();
    // SAFETY: the attributes are ours.
    unsafe { libc::pthread_mutexattr_init(attributes.as_mut_ptr()) };
    // SAFETY: they were initialised just now.
    unsafe { libc::pthread_mutexattr_settype(attributes.as_mut_ptr(), libc::PTHREAD_MUTEX_ERRORCHECK) };
    // SAFETY: the mutex is ours and does not move while it is used.
    unsafe { libc::pthread_mutex_init(mutex.as_mut_ptr(), attributes.as_ptr()) };
    // SAFETY: it was initialised just now.
    let locked = unsafe { libc::pthread_mutex_lock(mutex.as_mut_ptr()) };
    assert_eq!(locked, 0, "pthread_mutex_lock");
    // SAFETY: the mutex is 40 bytes or more.
    let owner = unsafe { mutex.as_ptr().cast::<i32>().add(2) };
    // SAFETY: it lies in the mutex, which nobody else uses.
    let owner = unsafe { owner.read() };
    owner as u64
}

fn clone3_with_the_tid_cell_repairs_the_cached_thread_id() -> Verdict {
    if cfg!(not(target_env = "gnu")) {
        return Err(crate::claim::Skip("this is not glibc".to_owned()));
    }
    let parent = process::tid() as u64;
    assert_eq!(mutex_owner(), parent, "the parent's own");
    let wrong_by = |owner: u64| owner.wrapping_sub(process::tid() as u64);
    assert_eq!(in_crate_fork(&ForkArgs::default(), || wrong_by(mutex_owner())), 0, "the crate's fork");
    assert_eq!(in_bare_fork(mutex_owner), parent, "a bare clone3");
    assert_eq!(child::compute(|| wrong_by(mutex_owner())), 0, "glibc's fork");
    Ok(())
}

/// The address of this thread's robust-futex list; 0 for none.
fn robust_list() -> u64 {
    let (mut head, mut len) = (0usize, 0usize);
    // SAFETY: the out-parameters are ours; 0 means this thread.
    let got = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
    assert_eq!(got, 0, "get_robust_list: {}", last_errno());
    head as u64
}

fn clone3_forgets_the_robust_list() -> Verdict {
    let parent = robust_list();
    assert_ne!(parent, 0, "glibc sets one");
    assert_eq!(in_bare_fork(robust_list), 0, "a bare clone3");
    assert_eq!(in_crate_fork(&ForkArgs::default(), robust_list), parent, "the crate's fork");
    Ok(())
}

fn child_without_exit_signal_needs_wall() -> Verdict {
    let wall = WaitOptions::from_bits_retain(libc::__WALL as u32);
    for (exit_signal, seen) in [(0, false), (libc::SIGCHLD, true)] {
        let args = ForkArgs { exit_signal, ..ForkArgs::default() };
        // SAFETY: this process has one thread; the child leaves by `exit`.
        let forked = unsafe { cowbell::sys::clone::fork(&args) }.expect("clone3");
        let Forked::Parent { pid, pidfd } = forked else { process::exit(5) };
        assert!(pidfd::wait_end(pidfd.as_fd(), None).expect("poll"), "the pidfd tells its end");
        if !seen {
            assert_eq!(rustix::process::wait(WaitOptions::NOHANG).err(), Some(Errno::CHILD), "without __WALL");
        }
        let options = if seen { WaitOptions::NOHANG } else { WaitOptions::NOHANG | wall };
        let (found, status) = rustix::process::wait(options).expect("wait").expect("it has ended");
        assert_eq!((found.as_raw_nonzero().get(), status.exit_status()), (pid, Some(5)), "signal {exit_signal}");
    }
    Ok(())
}

/// The disposition of a signal.
fn disposition(signal: i32) -> usize {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null new action only asks.
    let done = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    assert_eq!(done, 0, "sigaction: {}", last_errno());
    // SAFETY: the call filled it.
    unsafe { action.assume_init() }.sa_sigaction
}

extern "C" fn handler(_: i32) {}

fn clear_sighand_resets_handlers() -> Verdict {
    let ours = handler as *const () as usize;
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGUSR1, ours) };
    // SAFETY: ignoring a signal runs no code.
    unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
    for (reset_handlers, expected) in [(true, libc::SIG_DFL), (false, ours)] {
        let args = ForkArgs { reset_handlers, ..ForkArgs::default() };
        assert_eq!(in_crate_fork(&args, || disposition(libc::SIGUSR1) as u64), expected as u64, "{reset_handlers}");
        assert_eq!(in_crate_fork(&args, || disposition(libc::SIGUSR2) as u64), libc::SIG_IGN as u64, "ignored");
    }
    Ok(())
}

fn death_signal_follows_the_thread() -> Verdict {
    for (dies, expected) in [(true, Ended::Signaled(libc::SIGKILL)), (false, Ended::Exited(3))] {
        let (ready, go) = (Gate::new(), Gate::new());
        let child = std::thread::scope(|scope| {
            let forker = scope.spawn(|| {
                let child = child::spawn(|| {
                    if dies {
                        prctl::die_with_parent().expect("PR_SET_PDEATHSIG");
                    }
                    ready.open();
                    go.pass();
                    process::exit(3)
                });
                ready.pass();
                child
            });
            forker.join().expect("the forking thread")
        });
        // The thread is gone and the process is here. Without the signal the child waits for us.
        if !dies {
            go.open();
        }
        assert_eq!(child.wait(), expected);
    }
    Ok(())
}

/// Becomes another program, which waits for room in a pipe and so lives until it is killed.
fn become_blocked(stdout: OwnedFd) -> ! {
    use std::os::unix::process::CommandExt;
    let failed = std::process::Command::new("/proc/self/exe").arg("--list").stdout(stdout).exec();
    panic!("exec: {failed}");
}

fn exec_gives_a_new_address_space() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 8)?;
    let (ready, go) = (Gate::new(), Gate::new());
    let (unread, stdout) = pipe::pair().expect("pipe");
    rustix::fs::fcntl_setfl(&stdout, OFlags::NONBLOCK).expect("F_SETFL");
    while rustix::io::write(&stdout, &[0]).is_ok() {}
    rustix::fs::fcntl_setfl(&stdout, OFlags::empty()).expect("F_SETFL");
    // Closed by exec, which is the event to wait for.
    let (closed, until_exec) = pipe::pair().expect("pipe");
    let child = child::spawn(|| {
        memory.store(1, 255);
        ready.open();
        go.pass();
        become_blocked(stdout.try_clone().expect("dup"));
    });
    drop(until_exec);
    ready.pass();
    let auxv = || {
        let mut buffer = [0; 1024];
        procfs::signal_safe::auxiliary_vector(child.pid, &mut buffer).expect("auxv").to_vec()
    };
    let pagemap = Pagemap::open(child.pid).expect("pagemap");
    let before = auxv();
    assert_eq!(evidence::scan(&pagemap, &memory, &COPIED), evidence::pages([1]), "before");
    assert_eq!(auxv(), before, "the same without exec");
    go.open();
    assert_eq!(rustix::io::read(&closed, &mut [0u8; 1]), Ok(0), "until exec");
    assert!(evidence::shows_nothing(&pagemap, &memory), "the old address space is gone");
    let after = auxv();
    assert!(!after.is_empty(), "the process lives");
    let random = std::fs::read_to_string("/proc/sys/kernel/randomize_va_space").unwrap_or_default();
    if random.trim() != "0" {
        assert_ne!(after, before, "another auxv");
    }
    drop(unread);
    child.kill();
    Ok(())
}

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(".globl cowbell_claim_store", "cowbell_claim_store:", "mov byte ptr [rdi], sil", "ret");
#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(".globl cowbell_claim_store", "cowbell_claim_store:", "strb w1, [x0]", "ret");

unsafe extern "C" {
    /// Stores a byte; its first instruction is the store.
    pub fn cowbell_claim_store(address: usize, byte: u32);
}

fn waiting_faulter_shows_its_program_counter() -> Verdict {
    let memory = Memory::marked(Kind::PrivateMemfd, 4)?;
    let uffd = watcher::any(SYNC | Features::THREAD_ID).expect("userfaultfd");
    watcher::arm(&uffd, &memory);
    let writer_id = AtomicI32::new(0);
    let (parked, go) = (Gate::new(), Gate::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer_id.store(process::tid(), Ordering::SeqCst);
            // SAFETY: the address lies in the memory.
            unsafe { cowbell_claim_store(memory.at(1).start, 200) };
            parked.open();
            go.pass();
        });
        let fault = watcher::next_fault(&uffd);
        assert_eq!(fault.tid, writer_id.load(Ordering::SeqCst));
        let syscall = procfs::syscall::open(process::pid(), fault.tid).expect("its state");
        let blocked_at = || procfs::syscall::blocked_at(&syscall);
        // The message is sent just before the thread sleeps; until then the file says `running`.
        let (sp, pc) = std::iter::repeat_with(blocked_at).take(100_000).flatten().next().expect("a waiting thread");
        assert_eq!(pc, cowbell_claim_store as *const () as u64, "the store");
        assert!(sp != 0 && pc != sp);
        let text = std::fs::read_to_string(format!("/proc/self/task/{}/syscall", fault.tid)).expect("syscall");
        assert!(text.starts_with("-1 0x"), "{text}");
        watcher::protect(&uffd, memory.range, false).expect("UFFDIO_WRITEPROTECT");
        parked.pass();
        let control = std::fs::read_to_string(format!("/proc/self/task/{}/syscall", fault.tid)).expect("syscall");
        assert!(!control.starts_with("-1"), "elsewhere it says something else: {control}");
        go.open();
    });
    assert_eq!((memory.load(1), memory.in_file(1)), (200, mark(1)));
    Ok(())
}

/// Makes the argument this process's `clear_child_tid` word, and exits.
extern "C" fn exit_with_tid_word(word: *mut libc::c_void) -> i32 {
    // SAFETY: the kernel stores a zero there when this process ends; the memory outlives it.
    unsafe { libc::syscall(libc::SYS_set_tid_address, word) };
    0
}

fn cleared_tid_word_is_lost_on_a_sync_armed_page() -> Verdict {
    for (features, cleared) in [(SYNC, false), (watcher::ASYNC, true)] {
        let memory = Memory::marked(Kind::Anonymous, 4)?;
        let uffd = watcher::full(features).expect("userfaultfd");
        watcher::arm(&uffd, &memory);
        let stack = Memory::new(Kind::Anonymous, 64)?.range;
        let tid = AtomicU64::new(0);
        let word = std::ptr::with_exposed_provenance_mut(memory.at(1).start);
        // SAFETY: the entry only makes a system call; stack and word outlive the process.
        let pid = unsafe { cowbell::sys::clone::share_memory(exit_with_tid_word, word, stack, &tid) }.expect("clone");
        let pidfd = pidfd::open(pid).expect("pidfd_open");
        assert!(pidfd::wait_end(pidfd.as_fd(), None).expect("poll"), "it ended, nobody answered");
        let expected = if cleared { 0 } else { mark(1) };
        assert_eq!(load(memory.at(1).start), expected, "{features:?}");
        if !cleared {
            assert_eq!(uffd.read(|event| panic!("{event:?}")), Ok(false), "no message");
        }
    }
    Ok(())
}
