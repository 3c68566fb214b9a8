//! The cost of arming a frozen arena for a watch.

use crate::error::{Error, Result};
use crate::spread::{Spread, order};
use cowbell::arena::{Arena, Frozen};
use cowbell::fork::{self, ForkOptions};
use cowbell::sys;
use cowbell::watch::Watch;
use serde::{Deserialize, Serialize};

/// The result of [`arming`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arming {
    /// The size of the frozen arena.
    pub bytes: u64,
    /// The number of children that were spawned under each watch.
    pub repeats: usize,
    /// The watches, [`Watch::Census`] first, which arms nothing.
    pub watches: Vec<ArmingCost>,
}

/// The time that one watch adds to a fork.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArmingCost {
    /// The watch.
    pub watch: Watch,
    /// [`cowbell::fork::spawn`] until it returns; absent with `error`.
    pub spawn_us: Option<Spread>,
    /// The part of it that comes on top of [`Watch::Census`], for each MiB of the arena.
    pub arming_us_per_mib: Option<Spread>,
    /// Why this watch could not be measured: this kernel or this user does not have it.
    pub error: Option<String>,
}

/// Measures how much longer `spawn` takes over a frozen arena of `bytes` under each watch that arms it.
///
/// # Errors
/// Input: no bytes or no repeats. Failed: no memory, other threads alive, a child that dies.
pub fn arming(bytes: u64, repeats: usize) -> Result<Arming> {
    if bytes == 0 || repeats == 0 {
        return Err(Error::Input("size and repeats must be at least 1".into()));
    }
    let size = usize::try_from(bytes).ok().filter(|&size| size < isize::MAX as usize / 2);
    let size = size.ok_or_else(|| Error::Input(format!("{bytes} bytes are no arena's size")))?;
    let arena = Arena::builder("bench-arming").capacity(size + sys::page_size().bytes()).build()?;
    let data = &*arena.alloc_iter(0..size.div_ceil(size_of::<u64>()) as u64)?;
    let frozen = arena.freeze(data)?;
    let measured = all(repeats);
    release(frozen)?;
    Ok(Arming { bytes, repeats, watches: summary(bytes as f64 / f64::from(1 << 20), &measured?) })
}

#[expect(unsafe_code, reason = "an arena is given back")]
fn release(frozen: Frozen<&'static [u64]>) -> Result<()> {
    // SAFETY: nobody looks into it any more, and its children are reaped.
    Ok(unsafe { frozen.release() }?)
}

/// The times of one watch in microseconds, round by round, or why there are none.
type Series = (Watch, Result<Vec<f64>, String>);

fn all(repeats: usize) -> Result<Vec<Series>> {
    let mut all: Vec<Series> = Watch::ALL.map(|watch| (watch, Ok(Vec::new()))).into();
    // The first round only warms up.
    for round in 0..=repeats {
        for at in order(all.len(), round) {
            let Some((watch, series)) = all.get_mut(at) else { continue };
            let Ok(sofar) = series else { continue };
            let begun = sys::monotonic_ns();
            let spawned = fork::spawn(&ForkOptions::new().watch(*watch), |_| ());
            let us = (sys::monotonic_ns() - begun) as f64 / 1e3;
            match spawned {
                Ok(mut child) => {
                    child.wait()?;
                    if round > 0 {
                        sofar.push(us);
                    }
                }
                Err(e) if *watch == Watch::Census => return Err(e.into()),
                Err(e) => *series = Err(e.to_string()),
            }
        }
    }
    Ok(all)
}

fn summary(mib: f64, all: &[Series]) -> Vec<ArmingCost> {
    let census = all.first().and_then(|(_, series)| series.as_deref().ok()).unwrap_or_default();
    let cost = |(watch, series): &Series| {
        let times = series.as_deref().unwrap_or_default();
        let extra = times.iter().zip(census).map(|(with, without)| (with - without) / mib);
        ArmingCost {
            watch: *watch,
            spawn_us: Spread::of(times.iter().copied()),
            arming_us_per_mib: if watch.arms() { Spread::of(extra) } else { None },
            error: series.as_ref().err().cloned(),
        }
    };
    all.iter().map(cost).collect()
}
