//! A pool that is prepared before the program starts threads, and gets its data when they have built it.
//!
//! The zygote is forked first, over nothing. The data comes to it as a later generation does to the zygote of any pool: by its file, to the same addresses.

use super::core::Core;
use super::pool::{Pool, PoolTypes};
use crate::arena::prepare::prepare;
use crate::arena::{Contained, Frozen};
use crate::error::{Error, Result};
use crate::pool::context::WorkerContext;
use crate::pool::settings::PoolBuilder;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// A pool whose data is to come: see [`PoolBuilder::prepare`]. It is a process, the zygote, which waits; dropping this ends it.
#[must_use = "dropping it ends its process"]
pub struct Prepared<T: 'static, J, R, D = Frozen<T>> {
    /// Gone when the pool has it.
    core: Option<Arc<Core>>,
    types: PoolTypes<T, J, R>,
    holds: PhantomData<fn() -> D>,
}

impl PoolBuilder {
    /// Forks the zygote alone: to be called while the program has one thread, before there is an async runtime, a thread pool or data.
    /// [`Prepared::spawn`] makes the pool, at any time and by any thread.
    ///
    /// The closure and what it captures is inherited by this fork. What the program allocates later the workers do not have, but for the data.
    ///
    /// ```
    /// use cowbell::arena::{Arena, Vec};
    /// use cowbell::pool::{Pool, Shutdown};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let prepared = Pool::builder().workers(2).prepare(|squares: &Vec<u64>, at: usize| squares[at])?;
    ///
    /// // Threads compute the data.
    /// let parts = [0..500u64, 500..1000].map(|part| std::thread::spawn(|| part.map(|n| n * n).collect::<std::vec::Vec<_>>()));
    /// let arena = Arena::builder("squares").capacity(1 << 20).build()?;
    /// let mut squares = Vec::new_in(*arena);
    /// parts.into_iter().for_each(|part| squares.extend(part.join().expect("it does not panic")));
    ///
    /// let pool = prepared.spawn(arena.freeze(squares)?)?;
    /// assert_eq!(pool.submit(900)?.wait()?, 810_000);
    /// pool.shutdown(Shutdown::Drain)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`Self::spawn`].
    pub fn prepare<T, J, R, F>(self, mut body: F) -> Result<Prepared<T, J, R>>
    where
        T: 'static,
        J: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        F: FnMut(&'static T, J) -> R,
    {
        self.prepare_with(move |worker: &WorkerContext<T>, job| body(worker.root(), job))
    }

    /// [`Self::prepare`] for jobs that want to know which worker runs them, as with [`Self::spawn_with`].
    ///
    /// # Errors
    /// Those of [`Self::spawn`].
    pub fn prepare_with<T, J, R, F>(self, body: F) -> Result<Prepared<T, J, R>>
    where
        T: 'static,
        J: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        F: FnMut(&WorkerContext<T>, J) -> R,
    {
        // The zygote and its workers have what a process with arenas has, as if there had been one.
        prepare()?;
        let core = self.begin::<T, J, R, F>(None, None, body)?;
        Ok(Prepared::new(core))
    }
}

impl<T, J, R, D> Prepared<T, J, R, D> {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self { core: Some(core), types: PhantomData, holds: PhantomData }
    }

    pub(super) fn core(&self) -> Result<&Core> {
        self.core.as_deref().ok_or_else(|| Error::invalid("the pool was made already"))
    }

    /// The pool, now that its zygote has data.
    pub(super) fn made(mut self, data: D) -> Result<Pool<T, J, R, D>> {
        let core = self.core.take().ok_or_else(|| Error::invalid("the pool was made already"))?;
        Ok(Pool::new(core, data))
    }
}

impl<T, J, R> Prepared<T, J, R> {
    /// Hands the data over and starts the workers: now there is a pool, as if [`PoolBuilder::spawn`] had made it, and the data is its generation 0.
    ///
    /// The arena must have been built after [`PoolBuilder::prepare`]. Handles that are sent to workers are made by [`Frozen::handle_contained`], because the
    /// zygote was forked before the data was there.
    ///
    /// # Errors
    /// Invalid when some of the data lies outside of its arena, which the zygote does not have ([`Frozen::check_contained`]). Child when the zygote cannot take it
    /// over: its addresses are taken there, as those of an arena are that was being built, or was frozen, when the zygote was forked; or no worker can be
    /// started; or the zygote is gone. Whatever it is, what was prepared has ended.
    #[expect(unsafe_code, reason = "what is to be promised was checked")]
    pub fn spawn(self, frozen: Frozen<T>) -> Result<Pool<T, J, R>>
    where
        T: Contained,
    {
        frozen.check_contained()?;
        // SAFETY: it was checked just now.
        unsafe { self.spawn_unchecked(frozen) }
    }

    /// [`Self::spawn`] for types that do not say where their parts lie.
    ///
    /// # Safety
    /// Everything that is reached through the root lies in its arena, or is the same in a process that was forked when this was prepared; and it may be used there:
    /// see [`crate::arena::Export::adopt`].
    ///
    /// # Errors
    /// Those of [`Self::spawn`].
    #[expect(unsafe_code, reason = "declares an unsafe function")]
    pub unsafe fn spawn_unchecked(self, frozen: Frozen<T>) -> Result<Pool<T, J, R>> {
        let core = self.core()?;
        if core.settings.populate {
            frozen.image().check_populate()?;
        }
        // SAFETY: passed on to the caller.
        unsafe { core.hand_over(&frozen.export()?, frozen.image().file()) }?;
        self.made(frozen)
    }
}

impl<T, J, R, D> Drop for Prepared<T, J, R, D> {
    fn drop(&mut self) {
        if let Some(core) = &self.core
            && let Err(e) = core.close(true)
        {
            log::warn!("the prepared pool `{}`: {e}", core.settings.name);
        }
    }
}

impl<T, J, R, D> fmt::Debug for Prepared<T, J, R, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").finish_non_exhaustive()
    }
}
