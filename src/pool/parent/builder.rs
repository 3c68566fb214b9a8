//! Making a pool: the region, the zygote, and what the zygote carries for its workers.

use super::core::Core;
use super::pool::{Pool, PoolTypes};
use crate::arena::{Export, Frozen, registry};
use crate::error::{Error, ErrorKind, Result};
use crate::fork::{self, ForkOptions, Reshared};
use crate::pool::context::{WorkerContext, WorkerInfo};
use crate::pool::memory::buffer;
use crate::pool::memory::region::Region;
use crate::pool::protocol::batch::{self, JobStatus};
use crate::pool::protocol::messages::Reply;
use crate::pool::settings::PoolBuilder;
use crate::pool::signals;
use crate::pool::worker::panics;
use crate::pool::worker::{JobEnd, JobRunner};
use crate::pool::zygote::{self, Data, Loaded, ZygoteEnds};
use crate::sys::{channel, eventfd};
use crate::wire::{self, Passenger, Unreadable};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// The program's function that builds the data which some bytes ask for.
pub(super) type Load<T> = Box<dyn FnMut(&[u8]) -> std::result::Result<Frozen<T>, String>>;

/// The closure over the data, in the zygote and the workers.
struct JobBody<T: 'static, J, R, F> {
    /// The newest data; in a zygote that was forked before there is any, none yet.
    frozen: Option<Frozen<T>>,
    /// The data is such as this process was forked with, so that captured references may lead to it.
    inherited: bool,
    /// In a worker only.
    context: Option<WorkerContext<T>>,
    body: F,
    /// The function by which a loader builds the data, in a pool that has loaders.
    load: Option<Load<T>>,
    types: PoolTypes<T, J, R>,
}

impl<T, J, R, F> JobRunner for JobBody<T, J, R, F>
where
    J: DeserializeOwned,
    R: Serialize,
    F: FnMut(&WorkerContext<T>, J) -> R,
{
    fn begin(&mut self, info: WorkerInfo) {
        self.context = self.frozen.clone().map(|frozen| WorkerContext { info, frozen });
    }

    fn run(&mut self, bytes: &[u8], passengers: &[Passenger], outcome: &mut JobEnd) {
        let start = batch::begin(&mut outcome.item);
        let ran = panics::catch(|| -> Result<(), String> {
            let job: J = wire::decode(bytes, passengers).map_err(|e| format!("the job {e}"))?;
            let context = self.context.as_ref().ok_or("has come to a process without data")?;
            let result = (self.body)(context, job);
            wire::encode_result(&result, &mut outcome.item, &mut outcome.passengers)
                .map_err(|e| format!("the result {e}"))
        });
        let kept = !buffer::land(matches!(ran, Ok(Ok(()))));
        match ran {
            Ok(Ok(())) if kept => {
                outcome.refuse(JobStatus::Unreadable, "the result cannot be sent: the job still has a Buffer of it");
            }
            Ok(Ok(())) => {
                if !batch::end(&mut outcome.item, start, JobStatus::Value, &outcome.passengers) {
                    outcome.refuse(JobStatus::NoRoom, "the result is larger than 4 GiB");
                }
            }
            Ok(Err(why)) => outcome.refuse(JobStatus::Unreadable, &why),
            Err(said) => {
                outcome.item.clear();
                outcome.passengers.clear();
                let start = batch::begin(&mut outcome.item);
                let _texts_always_encode = wire::encode(&said, &mut outcome.item, &mut outcome.passengers);
                let _short_enough = batch::end(&mut outcome.item, start, JobStatus::Panicked, &[]);
            }
        }
    }

    fn populate(&self) -> Result<()> {
        self.frozen.as_ref().map_or(Ok(()), Frozen::populate)
    }

    fn reshare(&self) -> Result<Reshared> {
        self.frozen.as_ref().map_or_else(|| Ok(Reshared::default()), Frozen::reshare)
    }
}

impl<T, J, R, F> Data for JobBody<T, J, R, F>
where
    J: DeserializeOwned,
    R: Serialize,
    F: FnMut(&WorkerContext<T>, J) -> R,
{
    fn has_data(&self) -> bool {
        self.frozen.is_some()
    }

    #[expect(unsafe_code, reason = "another process's memory becomes the data")]
    fn adopt(&mut self, export: &[u8], file: OwnedFd) -> Result<()> {
        // SAFETY: `replace`, `Prepared::spawn` or, in the loader, `load` has seen to it, or the caller of an unchecked sibling promised it; parent, loader and zygote are forks of one program.
        let new = unsafe { Export::from_bytes(export)?.adopt(file)? };
        let Some(old) = self.frozen.replace(new) else { return Ok(()) };
        let given_up = if std::mem::replace(&mut self.inherited, false) {
            // SAFETY: the zygote uses the data for nothing but forking workers, whose jobs get the new root from now on; a
            // reference that the closure captured faults, as `Pool::replace` says.
            unsafe { old.withdraw() }
        } else {
            // SAFETY: this process has adopted the data, so nothing that it was forked with refers to it. It forks workers over it and lends it to nobody: the closure is not called here,
            // and what is (the program's logger) can get at no reference, because a handle is neither made here nor received.
            unsafe { old.release_at_once() }
        };
        if let Err(e) = given_up {
            zygote::tell(|| log::warn!("the old data's memory stays: {e}"));
        }
        Ok(())
    }

    fn load(&mut self, source: &[u8]) -> std::result::Result<Loaded, String> {
        let load = self.load.as_mut().ok_or("this pool's data comes from its parent")?;
        let new = load(source)?;
        if new.image().denied_for_good() {
            return Err("it was frozen with OnWrite::Deny, so its memory could never be given back".to_owned());
        }
        if new.image().is_locked() {
            return Err("it was frozen with FreezeOptions::lock, which ends with the process that loads it".to_owned());
        }
        let export = new.export().map_err(|e| e.to_string())?;
        Ok((export, Arc::clone(new.image())))
    }
}

/// Refuses a type whose values could be encoded and never decoded, before a job waits for it. Of one that has such values beside others, the log tells.
fn can_travel<T: DeserializeOwned>(pool: &str, what: &str) -> Result<()> {
    let Unreadable { always, parts } = wire::unreadable::<T>();
    let whole = std::any::type_name::<T>();
    if let Some(within) = always {
        let why = format!(
            "{what} of type `{whole}` cannot be passed: `{within}` or a part of it asks what comes next, which is not told"
        );
        return Err(Error::invalid(why).with_hint(wire::AS_TEXT));
    }
    if !parts.is_empty() {
        log::warn!(
            "the pool `{pool}`: {what} of type `{whole}` with one of these cannot be passed, since it asks what comes next, which is not told: {} ({})",
            parts.join(", "),
            wire::AS_TEXT
        );
    }
    Ok(())
}

impl PoolBuilder {
    /// Forks the zygote and through it the workers, which run `body` for each job with the root of `frozen`.
    ///
    /// The closure and everything it captures is inherited by the fork; only jobs and results are encoded. It is one closure
    /// for each worker: what it changes in itself stays in that worker.
    ///
    /// Must be called while this process has one thread. The pool starts none. Where threads build the data, [`Self::prepare`] comes before them.
    ///
    /// # Errors
    /// [`Error::threads`] when there are other threads after [`Self::wait_for_threads`]. Invalid settings. Invalid, too, when no value of `J` or of `R` can be decoded without
    /// names of fields (`serde(untagged)`, `serde(flatten)`, `serde(tag)`, `serde_json::Value`), as far as that shows in made-up values: see [`Self::check_types`]. Unsupported where the kernel cannot [`Self::populate`]. Whatever [`crate::fork::spawn`] says for the zygote or
    /// the first workers.
    pub fn spawn<T, J, R, F>(self, frozen: Frozen<T>, mut body: F) -> Result<Pool<T, J, R>>
    where
        T: 'static,
        J: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        F: FnMut(&'static T, J) -> R,
    {
        self.spawn_with(frozen, move |worker: &WorkerContext<T>, job| body(worker.root(), job))
    }

    /// [`Self::spawn`] for jobs that want to know which worker runs them: its index, its generation, its seed and its frozen data.
    ///
    /// # Errors
    /// Those of [`Self::spawn`].
    pub fn spawn_with<T, J, R, F>(self, frozen: Frozen<T>, body: F) -> Result<Pool<T, J, R>>
    where
        T: 'static,
        J: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        F: FnMut(&WorkerContext<T>, J) -> R,
    {
        if self.settings.populate {
            frozen.image().check_populate()?;
        }
        let core = self.begin::<T, J, R, F>(Some(frozen.clone()), None, body)?;
        Ok(Pool::new(core, frozen))
    }

    /// Forks the zygote, and through it the workers if there is data.
    pub(super) fn begin<T, J, R, F>(
        self,
        frozen: Option<Frozen<T>>,
        load: Option<Load<T>>,
        body: F,
    ) -> Result<Arc<Core>>
    where
        T: 'static,
        J: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        F: FnMut(&WorkerContext<T>, J) -> R,
    {
        self.check()?;
        if self.settings.check_types {
            can_travel::<J>(&self.settings.name, "jobs")?;
            can_travel::<R>(&self.settings.name, "results")?;
        }
        let settings = self.settings;
        // Arenas of both processes must have numbers of their own, and hash alike.
        registry::prepare()?;
        let region =
            Region::new(&settings.name, settings.workers, settings.payload_capacity, settings.result_capacity)?;
        let region = Arc::new(region);
        let (mine, requests) = channel::pair().map_err(|e| Error::os("socketpair", e))?;
        let mut end = Some(mine);
        let limits = eventfd::new()?;
        let theirs = limits.try_clone().map_err(|e| Error::invalid(format!("no descriptor for the pool: {e}")))?;
        let mut options = ForkOptions::new().last_census(false).reset_handlers(true);
        if let Some(timeout) = settings.wait_for_threads {
            options = options.wait_for_threads(timeout);
        }
        let shared = Arc::clone(&region);
        let mut zygotes = settings.clone();
        zygotes.worker_signals.note_ignored();
        let inherited = frozen.is_some();
        let mut job = JobBody { frozen, inherited, context: None, body, load, types: PhantomData };
        // One that comes before the zygote has its settings would end it.
        let held = signals::hold();
        let zygote = fork::spawn(&options, |_| {
            // Else it would not learn that its parent became another program.
            end.take();
            // The zygote's life is the process' life.
            let region: &'static Region = Box::leak(Box::new(shared));
            zygote::run(region, &zygotes, ZygoteEnds { requests, limits: theirs }, &mut job);
        });
        drop(held);
        let mut zygote = zygote.map_err(|e| match e.threads() {
            // One that has ended has a hint of its own.
            Some(threads) if !threads.iter().any(|thread| thread.exiting) => e.with_hint(
                "make the pool before the program starts threads (an async runtime, a logger), or prepare it before and give it the data later (PoolBuilder::prepare), or let it wait for those that are ending: wait_for_threads",
            ),
            _ => e,
        })?;
        // The zygote lives as long as the pool, and generations of the data do not.
        zygote.forget_images();
        let end = end.ok_or_else(|| Error::invalid("the pool's end of the channel is gone"))?;
        region.keep_from_children()?;
        // The zygote's end was moved into its closure, and is closed here: if it dies, this ends.
        let first = channel::receive(end.as_fd()).ok().flatten();
        match first.map(|(message, _)| wire::decode::<Reply>(&message, &[])).transpose()? {
            Some(Reply::Done(_)) => {}
            Some(Reply::Refused(why)) => return Err(Error::new(ErrorKind::Child(why.into()))),
            _ => {
                return Err(Error::new(ErrorKind::Child(
                    "the pool's zygote ended before it had started a worker".into(),
                )));
            }
        }
        Ok(Arc::new(Core::new(region, settings, end, limits, zygote)?))
    }
}
