//! Pools whose data sets are loaded by processes of their own: see `zygote/loading.rs`. The parent names a source and has the data's file, not the data.

use super::builder::Load;
use super::core::{Core, lock};
use super::held::{Held, file::File};
use super::pool::Pool;
use super::prepared::Prepared;
use crate::arena::prepare::prepare;
use crate::arena::{Contained, Export, Frozen};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::context::WorkerContext;
use crate::pool::protocol::messages::{Loading, Reply, Request};
use crate::pool::settings::PoolBuilder;
use crate::sys::map::Range;
use crate::sys::{channel, memfd, pidfd};
use crate::wire;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What a pool's parent has of data that a process of its own has loaded: its file. `S` is what it is loaded from: see [`PoolBuilder::prepare_loaded`].
pub struct Loaded<S> {
    range: Range,
    file: OwnedFd,
    users: Users,
    source: PhantomData<fn(S)>,
}

/// The channel whose other end is held by all processes that have the data: zygote, workers, and what they have forked.
struct Users(OwnedFd);

/// A data set that newer data has taken the place of: see [`Pool::reload`].
#[derive(Debug)]
pub struct Former {
    generation: u64,
    users: Users,
}

impl Former {
    /// The number of the data set: see [`WorkerInfo::generation`](crate::pool::WorkerInfo::generation).
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Waits until the last user of the data has left, so that its memory is free. Users are its workers, which leave when they have run the batch that they are at,
    /// and whatever they or its loader have forked; but of a process that closes its descriptors, as daemons do, nobody hears.
    ///
    /// # Errors
    /// From `ppoll(2)`; none known.
    pub fn wait(&self) -> Result<()> {
        self.users.left(None).map(drop)
    }

    /// [`Self::wait`], at most so long; whether the memory is free.
    ///
    /// # Errors
    /// Those of [`Self::wait`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<bool> {
        self.users.left(Some(timeout))
    }
}

/// The descriptor hangs up when the last user has left. Nothing is ever there to be read.
impl AsFd for Former {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.users.0.as_fd()
    }
}

impl Users {
    fn left(&self, timeout: Option<Duration>) -> Result<bool> {
        pidfd::wait_hang_up(self.0.as_fd(), timeout).map_err(|e| Error::os("ppoll", e))
    }
}

impl PoolBuilder {
    /// Forks the zygote alone, as [`Self::prepare`] does, for a pool whose data is loaded by processes of their own: [`Prepared::load`] has the first data set
    /// loaded and makes the pool, and [`Pool::reload`] each further one.
    ///
    /// `load` runs in a process that the zygote forks for that, the *loader*: with what the program had when it called this, as many threads as it likes to start, and the
    /// source, encoded as a job is. The arena that it freezes goes to the zygote, and the loader ends. **So no process has a reference into the data but the workers,
    /// and its memory is free when the last of them has left**, with nothing to release and nothing to promise. This process does not have the data.
    ///
    /// ```
    /// use cowbell::arena::{Arena, Frozen, Vec};
    /// use cowbell::pool::{Pool, Shutdown, WorkerContext};
    ///
    /// fn multiples(of: u64) -> cowbell::Result<Frozen<Vec<u64>>> {
    ///     let arena = Arena::builder("multiples").capacity(1 << 20).build()?;
    ///     let mut multiples = Vec::new_in(*arena);
    ///     multiples.extend((0..1000).map(|n| n * of));
    ///     arena.freeze(multiples)
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let prepared = Pool::builder()
    ///     .workers(2)
    ///     .prepare_loaded(multiples, |worker: &WorkerContext<Vec<u64>>, at: usize| worker.root()[at])?;
    ///
    /// // From here on the program may have threads.
    /// let pool = prepared.load(&3)?;
    /// assert_eq!(pool.submit(10)?.wait()?, 30);
    /// let former = pool.reload(&5)?;
    /// assert_eq!(pool.submit(10)?.wait()?, 50);
    /// former.wait()?; // its memory is free
    /// pool.shutdown(Shutdown::Drain)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// - The loader takes no notice of the signals that workers take none of, and is among the first to be killed when memory runs out.
    /// - What was random before the fork is the same in each loader, as in each worker.
    ///
    /// # Errors
    /// Those of [`Self::spawn`].
    pub fn prepare_loaded<S, T, J, R, E, L, F>(self, mut load: L, body: F) -> Result<Prepared<T, J, R, Loaded<S>>>
    where
        S: Serialize + DeserializeOwned + 'static,
        T: Contained + 'static,
        J: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        E: fmt::Display,
        L: FnMut(S) -> std::result::Result<Frozen<T>, E> + 'static,
        F: FnMut(&WorkerContext<T>, J) -> R,
    {
        prepare()?;
        let load: Load<T> = Box::new(move |source| {
            let source = wire::decode(source, &[]).map_err(|e| format!("the source {e}"))?;
            let loaded = load(source).map_err(|e| e.to_string())?;
            loaded.check_contained().map_err(|e| e.to_string())?;
            Ok(loaded)
        });
        let core = self.begin::<T, J, R, F>(None, Some(load), body)?;
        Ok(Prepared::new(core))
    }
}

impl<S: Serialize, T, J, R> Prepared<T, J, R, Loaded<S>> {
    /// Has the first data set loaded, generation 0, and starts the workers: now there is a pool. May be called at any time and by any thread. It waits as long as the loader takes; a
    /// loader that hangs ends by SIGKILL, or with this process.
    ///
    /// # Errors
    /// Those of [`Pool::reload`], and no worker can be started. Whatever it is, what was prepared has ended.
    pub fn load(self, source: &S) -> Result<Pool<T, J, R, Loaded<S>>> {
        let (export, loaded) = self.core()?.load(source)?;
        self.core()?.adopt(&export, &loaded)?;
        self.made(loaded)
    }
}

impl<S: Serialize, T, J, R> Pool<T, J, R, Loaded<S>> {
    /// Has a new data set loaded, the next generation, and moves on to it. Returns the one that it takes the place of.
    ///
    /// Until the data is there, workers go on with what they have. Then new ones are forked over it; the old ones end the batch they are at and leave. Jobs
    /// that are submitted after this has returned run over the new data; of those that are queued each runs once, over the old or the new. While both are in use there is memory
    /// for both.
    ///
    /// Data sets are loaded one after the other: another thread that calls this waits for its turn.
    ///
    /// # Errors
    /// Child, with why: the program's function has failed or panicked, or the loader was killed or stopped ([`Self::stop_loading`]), or some of the data lies outside of its
    /// arena ([`Frozen::check_contained`]), or it was frozen with [`FreezeOptions::lock`](crate::arena::FreezeOptions::lock), or with [`OnWrite::Deny`](crate::arena::OnWrite::Deny) where nobody can lift that any more, or the zygote cannot take it over. The pool is gone. Otherwise the
    /// pool goes on with the data it has.
    pub fn reload(&self, source: &S) -> Result<Former> {
        let _turn = lock(&self.turn);
        let (export, new) = self.core.load(source)?;
        let mut newest = self.newest();
        let generation = self.core.region.board().generation.0.load(Ordering::Acquire);
        self.core.adopt(&export, &new)?;
        let former = std::mem::replace(&mut *newest, new);
        Ok(Former { generation, users: former.users })
    }

    /// Kills the process that loads data, if there is one; then [`Self::reload`], which waits for it in another thread, fails. False if there is none.
    ///
    /// # Errors
    /// The pool is gone.
    pub fn stop_loading(&self) -> Result<bool> {
        match self.core.request(&Request::StopLoading, None)? {
            Reply::Done(stopped) => Ok(stopped),
            _ => Err(Error::invalid("the zygote answered something else")),
        }
    }
}

fn failed(why: &str) -> Error {
    Error::new(ErrorKind::Child(format!("the data cannot be loaded: {why}").into()))
}

impl Core {
    /// Has data loaded.
    fn load<S: Serialize>(&self, source: &S) -> Result<(Export, Loaded<S>)> {
        let mut bytes = Vec::new();
        wire::encode(source, &mut bytes, &mut Vec::new())?;
        // The zygote makes the channel, so that nothing which this process forks meanwhile has the zygote's end of it.
        let mine = match self.request_more(&Request::Load(bytes), None)? {
            (Reply::Done(_), Some(mine)) => mine,
            (Reply::Refused(why), _) => return Err(failed(&why)),
            _ => return Err(Error::invalid("the zygote answered something else")),
        };
        let gone = || failed("the pool's zygote has ended, or the pool is closed");
        // A process that a loader has left behind may hold the other end as well, so the zygote's end is looked at, too.
        let ends = [mine.as_fd(), self.zygote.as_fd()];
        while pidfd::wait_any(ends).map_err(|e| Error::os("ppoll", e))? == [false, false] {}
        if !pidfd::readable(mine.as_fd(), Some(Duration::ZERO)).map_err(|e| Error::os("ppoll", e))? {
            return Err(gone());
        }
        let (message, file) = channel::receive(mine.as_fd()).ok().flatten().ok_or_else(gone)?;
        match (wire::decode(&message, &[])?, file) {
            (Loading::Done(export), Some(file)) => {
                let export = Export::from_bytes(&export)?;
                let range = export.range();
                Ok((export, Loaded { range, file, users: Users(mine), source: PhantomData }))
            }
            (Loading::Done(_), None) => Err(failed("no file came with it")),
            (Loading::Failed(why), _) => Err(failed(&why)),
        }
    }

    #[expect(unsafe_code, reason = "what is to be promised was checked by the loader")]
    fn adopt<S>(&self, export: &Export, loaded: &Loaded<S>) -> Result<()> {
        // SAFETY: the loader has found the data contained in its arena before it let it go, and is a fork of this program, as the zygote is.
        unsafe { self.hand_over(export, loaded.file.as_fd()) }
    }
}

impl<S> Held for Loaded<S> {}

impl<S> File for Loaded<S> {
    fn range(&self) -> Range {
        self.range
    }

    fn is_mapped_here(&self) -> bool {
        false
    }

    fn held_bytes(&self) -> Result<Option<u64>> {
        memfd::held_bytes(self.file.as_fd()).map(Some)
    }
}

impl<S> fmt::Debug for Loaded<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("range", &self.range).finish_non_exhaustive()
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Users")
    }
}
