//! The ways in which the writers of a judged run write, and what may be said of each.

/// The way in which a writer writes. Its C is in [`Kind::statement`], its truth in [`Kind::causes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A field of data: one a page, or one in each record.
    State,
    States,
    Text,
    Texts,
    Pointer,
    Pointers,
    Numbers,
    Additions,
    Whole,
    /// One byte of the page.
    Byte,
    /// The value that is there already.
    Same,
    /// Up and down again, by plain stores.
    UpDown,
    /// An atomic counter.
    Atomic,
    Atomics,
    AtomicUpDown,
    /// A reference count, by an inlined function that is named so.
    Reference,
    ReferenceUpDown,
    /// The kernel, on behalf of system calls.
    Preadv,
    Uname,
    Getrusage,
    Read,
    /// The C library, on behalf of its caller.
    Memset,
    /// A function that the symbol table of a stripped library lacks.
    Hidden,
    /// Code in memory of no file.
    Generated,
    /// The same, named in /tmp/perf-PID.map.
    Named,
}

/// All that a library may hold.
pub const KINDS: &[Kind] = &[
    Kind::State,
    Kind::States,
    Kind::Text,
    Kind::Texts,
    Kind::Pointer,
    Kind::Pointers,
    Kind::Numbers,
    Kind::Additions,
    Kind::Whole,
    Kind::Byte,
    Kind::Same,
    Kind::UpDown,
    Kind::Atomic,
    Kind::Atomics,
    Kind::AtomicUpDown,
    Kind::Reference,
    Kind::ReferenceUpDown,
    Kind::Preadv,
    Kind::Uname,
    Kind::Getrusage,
    Kind::Read,
    Kind::Memset,
    Kind::Hidden,
];

/// Causes that may be told of a write, and whether one of them must be.
pub struct Causes {
    /// The causes that may be said, as in the report's JSON.
    pub true_ones: &'static [&'static str],
    /// True if "unknown" is a failure.
    pub must_be_known: bool,
}

impl Kind {
    /// The store, in C; `p` is 24 bytes into nothing: the page's first byte.
    pub fn statement(self) -> &'static str {
        match self {
            Self::State => "*(volatile int *)(p + 16) = 7;",
            Self::States => "for (long k = 0; k < page; k += 64) *(volatile int *)(p + k + 16) = 7;",
            Self::Text => "*(volatile char *)(p + 24) = 'j';",
            Self::Texts => "for (long k = 0; k < page; k += 64) *(volatile char *)(p + k + 24) = 'j';",
            Self::Pointer => "*(char *volatile *)p = p + 640;",
            Self::Pointers => "for (long k = 0; k < page; k += 64) *(char *volatile *)(p + k) = p + (k * 5 & 4032);",
            Self::Numbers => "for (long k = 0; k < page; k += 64) *(volatile double *)(p + k + 8) += k + 0.25;",
            Self::Additions => "for (long k = 0; k < page; k += 64) *(volatile int *)(p + k + 16) += 1;",
            Self::Whole => "for (long k = 0; k < page; k += 8) *(volatile long *)(p + k) = (k + i) * 2654435761L;",
            Self::Byte => "*(volatile char *)(p + page / 2 + 60) = 1;",
            Self::Same => "*(volatile int *)(p + 16) = *(volatile int *)(p + 16);",
            Self::UpDown => "*(volatile int *)(p + 16) += 1;\n        *(volatile int *)(p + 16) -= 1;",
            Self::Atomic => "__atomic_fetch_add((long *)(p + 48), 1, __ATOMIC_SEQ_CST);",
            Self::Atomics => {
                "for (long k = 0; k < page; k += 64) __atomic_fetch_add((long *)(p + k + 48), 1, __ATOMIC_SEQ_CST);"
            }
            Self::AtomicUpDown => {
                "__atomic_fetch_add((long *)(p + 48), 1, __ATOMIC_SEQ_CST);\n        \
                 __atomic_fetch_sub((long *)(p + 48), 1, __ATOMIC_SEQ_CST);"
            }
            Self::Reference => "g_atomic_ref_count_inc((int *)(p + 56));",
            Self::ReferenceUpDown => {
                "g_atomic_ref_count_inc((int *)(p + 56));\n        g_atomic_ref_count_dec((int *)(p + 56));"
            }
            Self::Preadv => "preadv(fd, &(struct iovec){p + 16, 40}, 1, 0);",
            Self::Uname => "uname((struct utsname *)(p + 16));",
            Self::Getrusage => "getrusage(RUSAGE_SELF, (struct rusage *)(p + 16));",
            Self::Read => "read(fd, p + 16, 40);",
            Self::Memset => "memset(p + 16, 3, bytes);",
            Self::Hidden => "*(volatile int *)(p + 16) = 70000;",
            Self::Generated | Self::Named => "",
        }
    }

    /// The system call that writes.
    pub fn syscall(self) -> Option<&'static str> {
        match self {
            Self::Preadv => Some("preadv"),
            Self::Uname => Some("uname"),
            Self::Getrusage => Some("getrusage"),
            Self::Read => Some("read"),
            _ => None,
        }
    }

    /// Tells whether the instruction is in no library of the plan.
    pub fn is_elsewhere(self) -> bool {
        self.syscall().is_some() || self.is_generated() || self == Self::Memset
    }

    /// Tells whether the code is in no file.
    pub fn is_generated(self) -> bool {
        matches!(self, Self::Generated | Self::Named)
    }

    /// The causes that may be told of it. If nothing declares the layout of the data, "unknown" is true as well. `declares`: the
    /// file has the names of inlined functions. Without them an atomic reference count is an atomic counter like any other.
    pub fn causes(self, declares: bool) -> Causes {
        let (true_ones, must_be_known): (&[_], _) = match self {
            Self::Same | Self::UpDown => (&["unknown", "rewritten"], false),
            Self::Atomic | Self::Atomics | Self::AtomicUpDown => (&["counter"], true),
            Self::Reference | Self::ReferenceUpDown if declares => (&["reference_count"], true),
            Self::Reference | Self::ReferenceUpDown => (&["reference_count", "counter"], true),
            Self::Preadv | Self::Uname | Self::Getrusage | Self::Read => (&["kernel"], true),
            _ => (&["real_write", "neighbour", "unknown"], false),
        };
        Causes { true_ones, must_be_known }
    }
}

/// A writer and its truth.
#[derive(Clone, Debug)]
pub struct Writer {
    /// The library it is in; 0 is the program.
    pub lib: usize,
    /// The way in which it writes.
    pub kind: Kind,
    /// The memory that backs its region.
    pub backing: &'static str,
    /// Pages of the region, and which of them it writes.
    pub pages: usize,
    /// The first page.
    pub first: usize,
    /// From a page to the next.
    pub step: usize,
    /// The number of pages it writes.
    pub count: usize,
    /// The pages that are dropped before they are written: no copies.
    pub dropped: usize,
    /// The writer's region is unmapped after the write.
    pub unmapped: bool,
    /// The circumstance that makes its code hard to tell.
    pub tag: &'static str,
    /// The circumstance that makes its pages hard to tell.
    pub fate: &'static str,
}

impl Writer {
    /// Tells whether it writes into a private mapping of a file, its library's initialised data.
    pub fn is_in_file(&self) -> bool {
        self.backing == "data"
    }

    /// Tells whether its region is static data of its library.
    pub fn is_static(&self) -> bool {
        matches!(self.backing, "data" | "bss")
    }

    /// Pages that must be copied.
    pub fn copies(&self) -> u64 {
        (self.count - self.dropped) as u64
    }
}
