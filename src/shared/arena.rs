//! The arena that shared objects are allocated from.

use super::mapping::{Shared, SharedMapping};
use super::mutex::SharedMutex;
use super::queue::SharedQueue;
use super::vec::SharedVec;
use super::{Shareable, lock};
use crate::error::Result;
use bytemuck::{Pod, Zeroable};
use std::fmt;
use std::sync::Arc;

/// Memory that this process shares with those forked from it while it has the arena or a handle.
///
/// Any of them may allocate, at the same time; but only those forked afterwards get the handle. A clone is the same
/// arena. Takes one descriptor.
#[derive(Clone)]
pub struct SharedArena {
    mapping: Arc<SharedMapping>,
}

impl SharedArena {
    /// Maps `capacity` bytes, rounded up to whole pages. Only addresses are taken up front. The name shows in
    /// `/proc/PID/maps` as `/memfd:cowbell-shared:NAME`.
    ///
    /// # Errors
    /// Invalid: a capacity of 0 or beyond all addresses, a name that is empty, longer than 200 bytes, or has control
    /// characters. ENOMEM when the addresses cannot be had (`ulimit -v`). Out of memory. EMFILE.
    pub fn new(name: impl Into<String>, capacity: usize) -> Result<Self> {
        let mapping = Arc::new(SharedMapping::new(name.into(), capacity)?);
        lock::notice_forks()?;
        Ok(Self { mapping })
    }

    /// The arena's name.
    pub fn name(&self) -> &str {
        &self.mapping.name
    }

    /// The most it can hold, in bytes.
    pub fn capacity(&self) -> usize {
        self.mapping.capacity
    }

    /// Bytes allocated by all processes.
    pub fn used(&self) -> usize {
        self.mapping.used()
    }

    /// Moves an object into the arena. It is never dropped.
    ///
    /// # Errors
    /// Out of capacity, out of memory.
    pub fn alloc<T: Shareable>(&self, value: T) -> Result<Shared<T>> {
        Shared::new(&self.mapping, value)
    }

    /// Puts `count` atomics (or tuples, or arrays of them) into the arena, all zero.
    ///
    /// # Errors
    /// Out of capacity, out of memory; invalid when their size is beyond all addresses.
    pub fn atomics<A: Shareable + Zeroable>(&self, count: usize) -> Result<Shared<[A]>> {
        Shared::zeroed(&self.mapping, count)
    }

    /// A mutex around a value.
    ///
    /// # Errors
    /// Out of capacity, out of memory.
    pub fn mutex<T: Pod + Send>(&self, value: T) -> Result<SharedMutex<T>> {
        SharedMutex::new(&self.mapping, value)
    }

    /// An empty vector for so many elements.
    ///
    /// # Errors
    /// Invalid: a capacity of 0, or beyond all addresses. Out of capacity, out of memory.
    pub fn vec<T: Pod + Send>(&self, capacity: usize) -> Result<SharedVec<T>> {
        SharedVec::new(&self.mapping, capacity)
    }

    /// An empty queue for so many elements. (It takes room for the next power of two.)
    ///
    /// # Errors
    /// Those of [`Self::vec`].
    pub fn queue<T: Pod + Send>(&self, capacity: usize) -> Result<SharedQueue<T>> {
        SharedQueue::new(&self.mapping, capacity)
    }
}

impl fmt::Debug for SharedArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedArena({}, {} of {} bytes)", self.name(), self.used(), self.capacity())
    }
}
