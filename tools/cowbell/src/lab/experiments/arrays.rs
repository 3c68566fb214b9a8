//! A large array under several processes, and lists that are read one item at a time.

use super::super::conclude::{Conclusion, bytes, own};
use super::super::way::{PlannedWay as WayPlan, Program, WorkDir};
use super::{NUMPY, PYTHON, Scale, script};

pub(super) fn matrix(scale: &Scale, _: &WorkDir) -> Vec<WayPlan> {
    let way =
        |name, does| script(name, does, &[NUMPY], scale.workers, "matrix.py", &[&name, &scale.rows, &scale.workers]);
    let numbers = [scale.reads, scale.reads].map(|n| n.to_string()).to_vec();
    vec![
        way("read", "each reads all of it"),
        way("write", "each writes its part"),
        WayPlan {
            name: "manager",
            does: "a list and a Manager().list(), item by item",
            needs: PYTHON,
            workers: 1,
            program: Program::Unwatched("manager.py", numbers),
        },
    ]
}

pub(super) fn of_matrix(found: &mut Conclusion<'_>, scale: &Scale) {
    let matrix = scale.matrix_bytes();
    if let (Some(read), Some(write)) = (found.watched("read"), found.watched("write")) {
        let workers = write.workers;
        found.say(format!(
            "Processes that only read the matrix of {} have {} each of their own. {workers} that each write their part copy {} each: in all what is \
             written, and not a matrix each.",
            bytes(matrix),
            bytes(own(read)),
            bytes(write.copied_bytes),
        ));
        let [fell_read, fell_write] =
            ["read", "write"].map(|name| found.told(name, "free_fell_bytes").unwrap_or_default().max(0.0) as u64);
        found.say(format!(
            "Free memory, which others on the machine take as well, fell by {} and by {}.",
            bytes(fell_read),
            bytes(fell_write)
        ));
        found.expect(own(read) < matrix / 8, "a process that reads the matrix has little of its own");
        let all = write.copied_bytes * workers;
        found.expect(
            (matrix / 10 * 9..matrix / 10 * 13).contains(&all),
            "processes that write a part of the matrix each copy that part",
        );
    }
    if let (Some(list), Some(manager)) = (found.told("manager", "list_ns"), found.told("manager", "manager_ns")) {
        let times = manager / list.max(1.0);
        found.say(format!(
            "An item of an inherited list is read in {list:.0} ns; one of a Manager().list() in {:.1} us, {times:.0} times that, because each \
             read is a message to another process.",
            manager / 1000.0
        ));
        found.expect(times > 50.0, "a Manager().list() is far slower than a list");
    }
}
