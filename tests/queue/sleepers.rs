//! Event counts under loom: nobody sleeps through a wake.

use super::*;

/// Two threads wait on one event count for what two others let be there.
#[test]
fn who_waits_on_an_event_count_is_woken() {
    explore(2, || {
        let word = Rc::new(Memory32::new());
        let there = Rc::new([AtomicU32::new(0), AtomicU32::new(0)]);
        let wait = |which: usize| {
            let (word, there) = (Rc::clone(&word), Rc::clone(&there));
            move || {
                let life = Life::long();
                let word = EventCount(Word32(&word, &life));
                loop {
                    let seen = word.count();
                    if there[which].load(Ordering::Acquire) == 1 {
                        return;
                    }
                    word.sleep(seen, None);
                }
            }
        };
        let waiter = thread::spawn(wait(0));
        let ringer = thread::spawn({
            let (word, there) = (Rc::clone(&word), Rc::clone(&there));
            move || {
                let life = Life::long();
                let word = EventCount(Word32(&word, &life));
                for there in there.iter() {
                    there.store(1, Ordering::Release);
                    word.notify();
                }
            }
        });
        wait(1)();
        join([waiter, ringer]);
    });
}

/// The same with an event count that is notified only if somebody waits.
#[test]
fn who_prepares_to_wait_is_woken() {
    explore(3, || {
        let word = Rc::new(Memory32::new());
        let there = Rc::new(AtomicU32::new(0));
        let notify = || {
            let (word, there) = (Rc::clone(&word), Rc::clone(&there));
            thread::spawn(move || {
                let life = Life::long();
                let word = EventCount(Word32(&word, &life));
                there.fetch_add(1, Ordering::AcqRel);
                word.notify_if_awaited();
            })
        };
        let notifiers = [notify(), notify()];
        let life = Life::long();
        let own = EventCount(Word32(&word, &life));
        loop {
            let seen = own.prepare_wait();
            if there.load(Ordering::Acquire) == 2 {
                break;
            }
            own.sleep(seen, None);
        }
        join(notifiers);
    });
}
