//! The format of the Firefox profiler, through the crate by which samply writes it: a thread for each process that copied, with
//! bytes for weights and likely causes for categories.

use super::{label, name, process};
use crate::analyse::Cause;
use crate::analyse::detail::Detail;
use crate::analyse::summary::Summary;
use fxprof_processed_profile::{
    CategoryColor, CategoryPairHandle, CpuDelta, Frame, FrameFlags, FrameInfo, Profile, ReferenceTimestamp,
    SamplingInterval, Timestamp, WeightType,
};
use std::collections::BTreeMap;

/// Weights are signed numbers of 32 bits there: a stack of more bytes takes several samples.
const WEIGHT_MAX: u64 = 1 << 30;

/// Copies for the Firefox profiler.
///
/// # Errors
/// The crate refuses to write it.
pub fn firefox(summary: &Summary, detail: &Detail) -> Result<Vec<u8>, serde_json::Error> {
    let product = name(&summary.run.command.join(" "));
    let started = ReferenceTimestamp::from_millis_since_unix_epoch(summary.run.started_unix_ms as f64);
    let mut profile = Profile::new(&product, started, SamplingInterval::from_millis(1));
    profile.set_symbolicated(true);
    let labels: Vec<_> = detail.frames.iter().map(|frame| profile.intern_string(&label(frame))).collect();
    let mut categories: BTreeMap<Cause, CategoryPairHandle> = BTreeMap::new();
    for cause in detail.stacks.iter().map(|stack| stack.cause) {
        let category = || profile.add_category(cause.name(), color(cause)).into();
        categories.entry(cause).or_insert_with(category);
    }
    for (at, interval) in summary.intervals.iter().enumerate() {
        let mut stacks = detail.stacks.iter().filter(|stack| stack.interval == at).peekable();
        if stacks.peek().is_none() {
            continue;
        }
        let begin = Timestamp::from_nanos_since_reference(interval.begin_ns);
        let handle = profile.add_process(&process(summary, interval), interval.pid as u32, begin);
        let thread = profile.add_thread(handle, interval.pid as u32, begin, true);
        profile.set_thread_name(thread, &process(summary, interval));
        profile.set_thread_samples_weight_type(thread, WeightType::Bytes);
        for weighted in stacks {
            let Some(&category_pair) = categories.get(&weighted.cause) else { continue };
            let frames = weighted.frames.iter().filter_map(|&frame| labels.get(frame as usize));
            let frames: Vec<FrameInfo> = frames
                .map(|&label| FrameInfo { frame: Frame::Label(label), category_pair, flags: FrameFlags::empty() })
                .collect();
            let stack = profile.intern_stack_frames(thread, frames.into_iter());
            let time = Timestamp::from_nanos_since_reference(weighted.time_ns.max(interval.begin_ns));
            let mut left = weighted.pages.saturating_mul(summary.run.page_size);
            while left > 0 {
                let weight = left.min(WEIGHT_MAX);
                profile.add_sample(thread, time, stack, CpuDelta::ZERO, weight as i32);
                left -= weight;
            }
        }
    }
    serde_json::to_vec(&profile)
}

fn color(cause: Cause) -> CategoryColor {
    match cause {
        Cause::ReferenceCount
        | Cause::CountOrCollector
        | Cause::Hash
        | Cause::Number
        | Cause::Text
        | Cause::Remembered
        | Cause::Iterator
        | Cause::TextCopies => CategoryColor::Orange,
        Cause::Counter => CategoryColor::Yellow,
        Cause::GarbageCollector => CategoryColor::Red,
        Cause::Allocator | Cause::NewObject => CategoryColor::Purple,
        Cause::Start | Cause::Exit => CategoryColor::Brown,
        Cause::RealWrite => CategoryColor::Blue,
        Cause::Rewritten => CategoryColor::LightBlue,
        Cause::Kernel => CategoryColor::Green,
        Cause::Stack => CategoryColor::LightGreen,
        Cause::Unknown => CategoryColor::Gray,
    }
}
