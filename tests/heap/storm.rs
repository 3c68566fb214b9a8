//! Many allocations in an order nobody chose, checked byte for byte.

use crate::memory::Block;
use crate::{Case, Numbers, cases};
use std::sync::mpsc;

pub const CASES: &[Case] = cases![one_thread_storms, threads_storm_and_free_what_others_made];

/// A size as programs have them: mostly small, now and then large.
fn size(numbers: &mut Numbers) -> usize {
    let shift = match numbers.below(1000) {
        0 => 23,
        1..20 => 17,
        20..150 => 12,
        _ => 7,
    };
    1 + numbers.below(1 << shift)
}

fn step(numbers: &mut Numbers, blocks: &mut Vec<Block>, kept: usize) {
    let which = |numbers: &mut Numbers, blocks: &[Block]| numbers.below(blocks.len().max(1));
    match numbers.below(10) {
        0..5 => {
            let shifts = if numbers.below(50) == 0 { 14 } else { 5 };
            let align = 1 << numbers.below(shifts);
            blocks.push(Block::new(size(numbers), align, numbers.next() as u8));
        }
        5 if !blocks.is_empty() => {
            let at = which(numbers, blocks);
            blocks[at].resize(size(numbers));
        }
        _ if !blocks.is_empty() => {
            let at = which(numbers, blocks);
            blocks.swap_remove(at);
        }
        _ => {}
    }
    while blocks.len() > kept {
        let at = which(numbers, blocks);
        blocks.swap_remove(at);
    }
}

fn one_thread_storms() {
    let mut numbers = Numbers(0x1234_5678_9abc_def1);
    let mut blocks = Vec::new();
    for _ in 0..300_000 {
        step(&mut numbers, &mut blocks, 3000);
    }
}

fn threads_storm_and_free_what_others_made() {
    const THREADS: usize = 6;
    for round in 0..4u64 {
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| mpsc::channel::<Block>()).unzip();
        let threads: Vec<_> = receivers
            .into_iter()
            .enumerate()
            .map(|(at, mine)| {
                let others = senders.clone();
                std::thread::spawn(move || {
                    let mut numbers = Numbers(0x9e37_79b9 + at as u64 + 100 * round);
                    let mut blocks = Vec::new();
                    for _ in 0..20_000 {
                        step(&mut numbers, &mut blocks, 500);
                        if numbers.below(3) == 0
                            && let Some(block) = blocks.pop()
                        {
                            // A thread that has ended takes no more.
                            let _unsent = others[numbers.below(THREADS)].send(block);
                        }
                        drop(mine.try_recv());
                    }
                    // The rest is freed by the main thread, after this one has ended.
                    blocks
                })
            })
            .collect();
        drop(senders);
        let left: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("it ends well")).collect();
        drop(left);
    }
}
