//! Bells under loom: nobody sleeps through a ring.

use super::*;

/// Two threads wait on one bell for what two others let be there.
#[test]
fn who_waits_on_a_bell_is_woken() {
    explore(2, || {
        let bell = Rc::new(Memory32::new());
        let there = Rc::new([AtomicU32::new(0), AtomicU32::new(0)]);
        let wait = |which: usize| {
            let (bell, there) = (Rc::clone(&bell), Rc::clone(&there));
            move || {
                let life = Life::long();
                let bell = Bell(Word32(&bell, &life));
                loop {
                    let heard = bell.rings();
                    if there[which].load(Ordering::Acquire) == 1 {
                        return;
                    }
                    bell.sleep(heard, None);
                }
            }
        };
        let waiter = thread::spawn(wait(0));
        let ringer = thread::spawn({
            let (bell, there) = (Rc::clone(&bell), Rc::clone(&there));
            move || {
                let life = Life::long();
                let bell = Bell(Word32(&bell, &life));
                for there in there.iter() {
                    there.store(1, Ordering::Release);
                    bell.ring();
                }
            }
        });
        wait(1)();
        join([waiter, ringer]);
    });
}

/// The same with a bell that rings only if somebody listens.
#[test]
fn who_listens_to_a_bell_is_woken() {
    explore(3, || {
        let bell = Rc::new(Memory32::new());
        let there = Rc::new(AtomicU32::new(0));
        let ring = || {
            let (bell, there) = (Rc::clone(&bell), Rc::clone(&there));
            thread::spawn(move || {
                let life = Life::long();
                let bell = Bell(Word32(&bell, &life));
                there.fetch_add(1, Ordering::AcqRel);
                bell.ring_if_heard();
            })
        };
        let ringers = [ring(), ring()];
        let life = Life::long();
        let own = Bell(Word32(&bell, &life));
        loop {
            let heard = own.listen();
            if there.load(Ordering::Acquire) == 2 {
                break;
            }
            own.sleep(heard, None);
        }
        join(ringers);
    });
}
