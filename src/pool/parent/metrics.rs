//! The figures of a pool as metrics: as the text that Prometheus reads, and through the facade `metrics`.

use super::held::Held;
use super::pool::Pool;
use crate::error::Result;
use crate::openmetrics::{Exposition, MetricKind};
use crate::sys;

/// A family of metrics and its samples.
struct Family {
    name: &'static str,
    kind: MetricKind,
    help: &'static str,
    /// The last part of the name, if it has a unit.
    unit: &'static str,
    /// The index of the worker, where the sample is one's, and the value.
    samples: Vec<(Option<usize>, f64)>,
}

impl<T, J, R, D: Held> Pool<T, J, R, D> {
    /// All figures as the text of OpenMetrics 1.0, which Prometheus reads: [`Pool::stats`], [`Pool::worker_stats`] and [`Pool::memory`]. docs/POOL.md lists the
    /// names. A server sends it with the media type [`OPENMETRICS_MEDIA_TYPE`](crate::pool::OPENMETRICS_MEDIA_TYPE).
    ///
    /// Each sample has the label `pool`, the pool's name, and those of workers have `worker`, the worker's index, of which there are always the same few.
    ///
    /// It is a whole text with its own end, so those of two pools cannot be served one behind the other: each has an endpoint of its own, or both pools go
    /// through `record_metrics`. Give each pool a [name](crate::pool::PoolBuilder::name) of its own: two of one name (`pool` by default) are told apart only by where the text was
    /// read.
    ///
    /// ```no_run
    /// # use cowbell::arena::Arena;
    /// # use cowbell::pool::Pool;
    /// # let frozen = Arena::builder("data").capacity(1 << 20).build()?.freeze(5u64)?;
    /// let pool = Pool::builder().name("prices").spawn(frozen, |data, job: u64| data * job)?;
    /// let text = pool.openmetrics()?;
    /// assert!(text.contains("\ncowbell_pool_jobs_total{pool=\"prices\"} 0\n"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Pool::worker_stats`].
    pub fn openmetrics(&self) -> Result<String> {
        let mut out = Exposition::new();
        for family in self.families()? {
            let mut lines = out.family(family.name, family.kind, family.help, family.unit);
            for (index, value) in family.samples {
                lines.sample(&self.labels(index), value);
            }
        }
        Ok(out.finish())
    }

    /// The same figures through the facade [`metrics`], to whatever recorder the program has installed: to be called now and then. The names are those of
    /// [`Self::openmetrics`]; counters end with `_total`. The values of a worker that is gone stay until another has its index.
    ///
    /// Give each pool a [name](crate::pool::PoolBuilder::name) of its own. Two of one name (`pool` by default) write the same metrics: gauges have the values of the one that called this
    /// last, and counters, which `Counter::absolute` sets to at least what it is given (recorders that keep to that, as `metrics-exporter-prometheus` does, never let one fall), those of the one that has counted more. It is the same with a pool that is made after an earlier one of its name has ended.
    ///
    /// ```no_run
    /// # use cowbell::arena::Arena;
    /// # use cowbell::pool::Pool;
    /// # let frozen = Arena::builder("data").capacity(1 << 20).build()?.freeze(5u64)?;
    /// let pool = Pool::builder().spawn(frozen, |data, job: u64| data * job)?;
    /// pool.record_metrics()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`Pool::worker_stats`].
    #[cfg(feature = "metrics")]
    pub fn record_metrics(&self) -> Result<()> {
        for family in self.families()? {
            let unit = match family.unit {
                "bytes" => metrics::Unit::Bytes,
                "seconds" => metrics::Unit::Seconds,
                _ => metrics::Unit::Count,
            };
            let labels = |index| self.labels(index).iter().map(metrics::Label::from).collect::<Vec<_>>();
            match family.kind {
                MetricKind::Gauge => {
                    metrics::describe_gauge!(family.name, unit, family.help);
                    for (index, value) in family.samples {
                        metrics::gauge!(family.name, labels(index)).set(value);
                    }
                }
                MetricKind::Counter => {
                    let name = format!("{}_total", family.name);
                    metrics::describe_counter!(name.clone(), unit, family.help);
                    for (index, value) in family.samples {
                        // All of them count events, far below the numbers that a float cannot hold.
                        metrics::counter!(name.clone(), labels(index)).absolute(value as u64);
                    }
                }
            }
        }
        Ok(())
    }

    fn labels(&self, index: Option<usize>) -> Vec<(&'static str, String)> {
        let pool = ("pool", self.core.settings.name.clone());
        std::iter::once(pool).chain(index.map(|index| ("worker", index.to_string()))).collect()
    }

    fn families(&self) -> Result<Vec<Family>> {
        let (stats, workers, memory) = (self.stats(), self.worker_stats()?, self.memory()?);
        let page = sys::page_size().bytes() as u64;
        let counter = |name, help, value: u64| Family {
            name,
            kind: MetricKind::Counter,
            help,
            unit: "",
            samples: vec![(None, value as f64)],
        };
        let gauge = |name, unit, help, samples| Family { name, kind: MetricKind::Gauge, help, unit, samples };
        let of_workers = |figure: &dyn Fn(&super::figures::WorkerStats) -> Option<f64>| -> Vec<_> {
            workers.iter().filter_map(|worker| Some((Some(worker.index), figure(worker)?))).collect()
        };
        let one = |value: Option<u64>| value.map(|value| (None, value as f64)).into_iter().collect::<Vec<_>>();
        let own = memory.workers.iter().filter_map(|worker| Some((Some(worker.index), worker.own_bytes? as f64)));
        Ok(vec![
            counter("cowbell_pool_jobs", "Jobs that workers have run to their end.", stats.jobs),
            counter("cowbell_pool_workers_started", "Workers that were started.", stats.started),
            counter("cowbell_pool_workers_died", "Workers that died.", stats.deaths),
            counter("cowbell_pool_workers_retired", "Workers that left because they copied too much.", stats.retired),
            counter("cowbell_pool_over_budget", "Times a worker was found above its budget.", stats.over_budget),
            counter(
                "cowbell_pool_reshared_pages",
                "Pages given back because they were the original again.",
                stats.reshared_pages,
            ),
            gauge("cowbell_pool_workers", "", "Workers at work.", one(Some(workers.len() as u64))),
            gauge(
                "cowbell_pool_worker_jobs",
                "",
                "Jobs that the worker of now has run to their end.",
                of_workers(&|worker| Some(worker.jobs as f64)),
            ),
            gauge(
                "cowbell_pool_worker_generation",
                "",
                "The number of its data set.",
                of_workers(&|worker| Some(worker.generation as f64)),
            ),
            gauge(
                "cowbell_pool_worker_age_seconds",
                "seconds",
                "The time since it was forked.",
                of_workers(&|worker| Some(worker.age.as_secs_f64())),
            ),
            gauge(
                "cowbell_pool_worker_copied_bytes",
                "bytes",
                "Frozen memory that it has copied and still has.",
                of_workers(&|worker| Some((worker.copied_pages?.0 * page) as f64)),
            ),
            gauge(
                "cowbell_pool_worker_uss_bytes",
                "bytes",
                "Memory that it alone maps, of files too.",
                of_workers(&|worker| Some(worker.uss_bytes? as f64)),
            ),
            gauge(
                "cowbell_pool_worker_own_bytes",
                "bytes",
                "Memory of no file that it alone has: its copies, and what it allocated.",
                own.collect(),
            ),
            gauge(
                "cowbell_pool_parent_own_bytes",
                "bytes",
                "The same of the parent.",
                one(Some(memory.parent_own_bytes)),
            ),
            gauge("cowbell_pool_zygote_own_bytes", "bytes", "The same of the zygote.", one(memory.zygote_own_bytes)),
            gauge(
                "cowbell_pool_data_shared_bytes",
                "bytes",
                "What the newest data takes, once for all processes.",
                one(memory.data.map(|data| data.shared_bytes)),
            ),
            gauge(
                "cowbell_pool_data_unmapped_bytes",
                "bytes",
                "Of it: what none of the pool's processes maps.",
                one(memory.data.and_then(|data| data.unmapped_bytes)),
            ),
        ])
    }
}
