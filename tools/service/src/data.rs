//! The data that the service answers from: here packages that depend on each other, made up. A real service reads its own.

use cowbell::arena::{Arena, Frozen, HashMap, Vec};
use std::thread;

cowbell::contained! {
    /// One generation of the data.
    pub struct Packages {
        pub generation: u64,
        packages: Vec<Package>,
        /// The place of each package in the list above.
        places: HashMap<&'static str, u32>,
    }

    pub struct Package {
        pub name: &'static str,
        pub version: &'static str,
        /// Places in the list of packages.
        dependencies: &'static [u32],
    }
}

impl Packages {
    pub fn find(&self, name: &str) -> Option<&Package> {
        self.places.get(name).and_then(|&place| self.packages.get(place as usize))
    }

    pub fn dependencies<'a>(&'a self, package: &Package) -> impl Iterator<Item = &'a Package> {
        package.dependencies.iter().filter_map(|&place| self.packages.get(place as usize))
    }
}

/// Builds a generation, by as many threads as there are processors, in an arena of its own.
pub fn build(generation: u64, count: u32) -> cowbell::Result<Frozen<Packages>> {
    let arena = Arena::builder(format!("packages-{generation}")).capacity(8 << 30).build()?;
    let threads = thread::available_parallelism().map_or(1, usize::from) as u32;
    let per_thread = count.div_ceil(threads).max(1);
    let parts = thread::scope(|scope| {
        let part = |from: u32| {
            let (arena, to) = (&arena, (from + per_thread).min(count));
            scope.spawn(move || (from..to).map(|place| package(arena, generation, place, count)).collect())
        };
        let threads: std::vec::Vec<_> = (0..count).step_by(per_thread as usize).map(part).collect();
        let joined = threads.into_iter().map(|thread| thread.join().expect("no part panics"));
        joined.collect::<cowbell::Result<std::vec::Vec<std::vec::Vec<Package>>>>()
    })?;
    let mut packages = Vec::with_capacity_in(count as usize, *arena);
    packages.extend(parts.into_iter().flatten());
    let mut places = HashMap::with_capacity_and_hasher_in(count as usize, Default::default(), *arena);
    places.extend(packages.iter().zip(0..).map(|(package, place)| (package.name, place)));
    arena.freeze(Packages { generation, packages, places })
}

/// A package that is known by its place: the tests of this crate know it, too.
fn package(arena: &Arena, generation: u64, place: u32, count: u32) -> cowbell::Result<Package> {
    let dependencies = (1..=place % 6).map(|nth| (place + nth * nth * 7919) % count);
    Ok(Package {
        name: arena.alloc_str(&format!("package-{place:06}"))?,
        version: arena.alloc_str(&format!("{}.{}.{generation}", place % 7, place % 50))?,
        dependencies: arena.alloc_iter(dependencies)?,
    })
}
