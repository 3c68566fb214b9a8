//! The tracer: a process of its own that follows the target with ptrace, arms each forked child, answers its page
//! events and writes records.
