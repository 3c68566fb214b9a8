//! Pairs of roles: the role after that each role before is.

use super::judge::{FigureChange, RunFigure, Side};
use super::{Pair, RoleChange};
use crate::analyse::roles::{self, Bounds, Role};
use crate::analyse::summary::Summary;
use std::collections::{BTreeMap, BTreeSet};

/// The copies that the processes of a role made in one run.
#[derive(Clone, Copy)]
struct Played {
    processes: u64,
    bytes: u64,
    bounds: Bounds,
}

impl Played {
    const NOBODY: Self = Self { processes: 0, bytes: 0, bounds: Bounds::NOTHING };

    /// One process of them, on the average; others of this role may have run unwatched.
    fn each(self, is_open: bool, beyond: Option<u64>) -> RunFigure {
        let part = |bytes: u64| bytes / self.processes.max(1);
        // If those that ran unwatched were all of this role, and copied nothing.
        let least = beyond.map_or(0, |beyond| self.bounds.least / self.processes.saturating_add(beyond).max(1));
        let most = self.bounds.most.filter(|_| !is_open).map(part);
        RunFigure { bytes: part(self.bytes), bounds: Bounds { least, most } }
    }
}

/// The roles of one run.
struct Cast<'a> {
    run: &'a Summary,
    roles: BTreeMap<Role, Played>,
}

/// The copies of one process of each role before and after.
pub fn roles(pair: &Pair<'_>) -> Vec<RoleChange> {
    let (before, after) = (casts(pair.before), casts(pair.after));
    let mut changes: Vec<RoleChange> = matched(&all(&before), &all(&after))
        .into_iter()
        .map(|(role, became)| {
            let (side_before, processes_before) = side(&before, &role);
            let (side_after, processes_after) = side(&after, became.as_ref().unwrap_or(&role));
            let change = FigureChange::new(side_before, side_after, pair.page_size);
            RoleChange { role, became, processes_before, processes_after, change }
        })
        .collect();
    let weight = |change: &RoleChange| {
        let processes = change.processes_before.max(change.processes_after);
        change.change.difference_bytes.unsigned_abs().saturating_mul(processes)
    };
    changes.sort_by_key(|change| std::cmp::Reverse(weight(change)));
    changes
}

fn casts(side: &[Summary]) -> Vec<Cast<'_>> {
    side.iter().map(cast).collect()
}

fn cast(run: &Summary) -> Cast<'_> {
    let mut roles = BTreeMap::new();
    for process in roles::watched(run) {
        let played = roles.entry(process.role).or_insert(Played::NOBODY);
        played.processes += 1;
        played.bytes = played.bytes.saturating_add(process.copied_bytes);
        played.bounds += process.figures.copied;
    }
    Cast { run, roles }
}

fn all(casts: &[Cast<'_>]) -> BTreeSet<Role> {
    casts.iter().flat_map(|cast| cast.roles.keys().cloned()).collect()
}

/// Roles before with what they are after: the same ones first; then, of what is left, by depth where there is only one on each
/// side, for a changed program may have another name or other arguments.
fn matched(before: &BTreeSet<Role>, after: &BTreeSet<Role>) -> Vec<(Role, Option<Role>)> {
    let mut pairs: Vec<(Role, Option<Role>)> = before.intersection(after).map(|role| (role.clone(), None)).collect();
    let (gone, mut came): (Vec<&Role>, Vec<&Role>) =
        (before.difference(after).collect(), after.difference(before).collect());
    for role in &gone {
        let is_only = gone.iter().filter(|other| other.depth == role.depth).count() == 1;
        let candidates: Vec<&Role> = came.iter().copied().filter(|other| other.depth == role.depth).collect();
        match candidates[..] {
            [became] if is_only => {
                came.retain(|other| *other != became);
                pairs.push(((*role).clone(), Some(became.clone())));
            }
            _ => pairs.push(((*role).clone(), None)),
        }
    }
    pairs.extend(came.into_iter().map(|role| (role.clone(), None)));
    pairs
}

/// A role's runs, and how many processes it has in the run that stands in the middle.
fn side(casts: &[Cast<'_>], role: &Role) -> (Side, u64) {
    let played: Vec<Played> =
        casts.iter().map(|cast| cast.roles.get(role).copied().unwrap_or(Played::NOBODY)).collect();
    let mut numbers: Vec<u64> = played.iter().map(|played| played.processes).collect();
    numbers.sort_unstable();
    let middle = numbers.get(numbers.len() / 2).copied().unwrap_or_default();
    let each = |(cast, played): (&Cast<'_>, Played)| {
        played.each(roles::may_be_unwatched(cast.run, role), roles::beyond(cast.run))
    };
    (Side::new(casts.iter().zip(played).map(each).collect()), middle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_known_again_by_command_and_else_by_depth_where_there_is_one() {
        let set = |roles: &[(u32, &str)]| {
            roles.iter().map(|(depth, command)| Role { depth: *depth, command: (*command).to_owned() }).collect()
        };
        let pairs =
            matched(&set(&[(0, "a"), (1, "a.py"), (2, "x"), (2, "y")]), &set(&[(0, "a"), (1, "b.py"), (2, "z")]));
        let shown: Vec<_> =
            pairs.iter().map(|(a, b)| (a.command.as_str(), b.as_ref().map(|b| b.command.as_str()))).collect();
        assert_eq!(shown, [("a", None), ("a.py", Some("b.py")), ("x", None), ("y", None), ("z", None)]);
    }
}
