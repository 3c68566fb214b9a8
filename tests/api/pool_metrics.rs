//! The figures of a pool as text that Prometheus reads, and through the facade `metrics`.

use crate::case::{Outcome, passed};
use crate::look::{Bytes, frozen_pages};
use crate::pool_kit::{each, touch};
use cowbell::pool::{Pool, WorkerContext};
use cowbell::sys::page_size;
use libtest_mimic::{Failed, Trial};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const PAGES: usize = 300;

/// Runs a program that reads all of a text and must say nothing.
fn says_nothing(reader: &mut Command, text: &str) -> Result<(), Failed> {
    let mut check = reader.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    check.stdin.take().ok_or("a pipe")?.write_all(text.as_bytes())?;
    let output = check.wait_with_output()?;
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert!(output.status.success() && said.iter().all(String::is_empty), "{said:?} of\n{text}");
    Ok(())
}

/// Prometheus' own check of metrics, and its own parser of OpenMetrics, where tools/setup has put them.
fn prometheus_is_content(text: &str) -> Result<(), Failed> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().ok_or("a target directory")?;
    let promtool = target.join("readers/promtool");
    if promtool.exists() {
        // The program reads the older format, in which a counter's family has the name of its sample.
        let counters = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"));
        let older = counters.fold(text.to_owned(), |text, counter| {
            text.replace(&format!("# TYPE {counter} "), &format!("# TYPE {counter}_total "))
                .replace(&format!("# HELP {counter} "), &format!("# HELP {counter}_total "))
        });
        says_nothing(Command::new(promtool).args(["check", "metrics"]), &older)?;
    } else {
        println!("skipped: no promtool, which would read what is exported");
    }
    let python = || Command::new("/usr/bin/python3");
    if python().args(["-c", "import prometheus_client"]).output().is_ok_and(|output| output.status.success()) {
        let parser = "import sys; from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse; \
                      assert len(list(parse(sys.stdin.read()))) == 17";
        says_nothing(python().args(["-c", parser]), text)?;
    } else {
        println!("skipped: no prometheus_client, which would parse what is exported");
    }
    Ok(())
}

fn the_text_of_openmetrics_has_all_figures_and_prometheus_is_content() -> Outcome {
    let name = "a \"pool\"\\ of\n{x=\"1\"} 5";
    let pool = Pool::builder()
        .name(name)
        .workers(2)
        .spawn_with(frozen_pages("figures", PAGES)?, |worker: &WorkerContext<Bytes>, job| touch(worker, job))?;
    each(&pool, &[(10, 7, 7); 8])?;
    let text = pool.openmetrics()?;
    prometheus_is_content(&text)?;
    assert!(text.ends_with("\n# EOF\n"));
    let label = "pool=\"a \\\"pool\\\"\\\\ of\\n{x=\\\"1\\\"} 5\"";
    let value = |name: &str, index: Option<usize>| -> Result<f64, Failed> {
        let index = index.map_or_else(String::new, |index| format!(",worker=\"{index}\""));
        let start = format!("{name}{{{label}{index}}} ");
        let line =
            text.lines().find_map(|line| line.strip_prefix(&start)).ok_or_else(|| format!("no {start} in\n{text}"))?;
        Ok(line.parse::<f64>()?)
    };
    assert_eq!(value("cowbell_pool_jobs_total", None)?, 8.0);
    assert_eq!(value("cowbell_pool_workers", None)?, 2.0);
    let size = page_size().bytes() as f64;
    for worker in pool.worker_stats()? {
        let copied = worker.copied_pages.ok_or("readable")?.0;
        assert_eq!(value("cowbell_pool_worker_copied_bytes", Some(worker.index))?, copied as f64 * size);
        assert_eq!(value("cowbell_pool_worker_jobs", Some(worker.index))?, worker.jobs as f64);
        assert_eq!(value("cowbell_pool_worker_generation", Some(worker.index))?, 0.0);
        assert!(value("cowbell_pool_worker_uss_bytes", Some(worker.index))? > 0.0);
        assert!(value("cowbell_pool_worker_own_bytes", Some(worker.index))? > 0.0);
    }
    let data = pool.memory()?.data.ok_or("sealed")?;
    assert_eq!(value("cowbell_pool_data_shared_bytes", None)?, data.shared_bytes as f64);
    assert_eq!(value("cowbell_pool_data_unmapped_bytes", None)?, data.unmapped_bytes.ok_or("readable")? as f64);
    passed()
}

#[cfg(feature = "metrics")]
mod facade {
    use super::*;
    use crate::pool_kit::{still, touching};
    use cowbell::watch::Watch;
    use metrics::{CounterFn, GaugeFn, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};

    type All = Arc<Mutex<BTreeMap<String, f64>>>;

    struct Noted(String, All);

    impl Noted {
        fn set(&self, value: f64) {
            self.1.lock().expect("one thread").insert(self.0.clone(), value);
        }
    }

    impl GaugeFn for Noted {
        fn increment(&self, _: f64) {}
        fn decrement(&self, _: f64) {}
        fn set(&self, value: f64) {
            Self::set(self, value);
        }
    }

    impl CounterFn for Noted {
        fn increment(&self, _: u64) {}
        fn absolute(&self, value: u64) {
            self.set(value as f64);
        }
    }

    impl HistogramFn for Noted {
        fn record(&self, _: f64) {}
    }

    #[derive(Default)]
    struct Notes(All);

    impl Notes {
        fn of(&self, key: &Key) -> Arc<Noted> {
            let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            Arc::new(Noted(format!("{} {}", key.name(), labels.join(" ")), Arc::clone(&self.0)))
        }
    }

    impl Recorder for Notes {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> metrics::Counter {
            metrics::Counter::from_arc(self.of(key))
        }
        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> metrics::Gauge {
            metrics::Gauge::from_arc(self.of(key))
        }
        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> metrics::Histogram {
            metrics::Histogram::from_arc(self.of(key))
        }
    }

    fn the_facade_gets_what_the_text_has() -> Outcome {
        let pool = touching(frozen_pages("figures", PAGES)?, Watch::Census)?;
        each(&pool, &[(10, 7, 7); 8])?;
        let samples = || -> Vec<String> {
            let text = pool.openmetrics().expect("an answer");
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
        };
        // Time goes on, and this process and the zygote allocate for the answer.
        let moves = |sample: &String| ["age_seconds", "parent", "zygote"].iter().any(|word| sample.contains(word));
        // A worker that just ended its last job may write a page still.
        let (compared, notes) = still(
            || samples().into_iter().filter(|sample| !moves(sample)).collect::<Vec<_>>(),
            || {
                let notes = Notes::default();
                metrics::with_local_recorder(&notes, || pool.record_metrics()).map(|()| notes)
            },
        )?;
        let noted = notes.0.lock().expect("one thread");
        assert_eq!(samples().len(), noted.len(), "{noted:?}");
        assert!(compared.len() > 20, "{compared:?}");
        for sample in compared {
            let (name, rest) = sample.split_once('{').ok_or("labels")?;
            let (labels, value) = rest.split_once("} ").ok_or("a value")?;
            let key = format!("{name} {}", labels.replace("\",", " ").replace('"', ""));
            let there = noted.get(&key).ok_or_else(|| format!("no {key} in {noted:?}"))?;
            assert_eq!(*there, value.parse::<f64>()?, "{key}");
        }
        passed()
    }

    pub fn trials() -> Vec<Trial> {
        claims![the_facade_gets_what_the_text_has]
    }
}

pub fn trials() -> Vec<Trial> {
    let text = claims![the_text_of_openmetrics_has_all_figures_and_prometheus_is_content];
    #[cfg(feature = "metrics")]
    let facade = facade::trials();
    #[cfg(not(feature = "metrics"))]
    let facade = Vec::new();
    text.into_iter().chain(facade).collect()
}
