//! A graph in an arena: ordinary collections, names, and labels that are reference-counted.

use crate::failure::Failure;
use cowbell::arena::{Arena, ArenaRef, HashMap, Vec};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// A reference-counted object in an arena: an `Arc` in miniature, because the standard one allocates
/// from the global heap only. As in every reference-counting language, the count lies beside the
/// object, so using the object writes its page.
pub struct Counted<T: 'static>(&'static Block<T>);

/// A count and what it counts.
struct Block<T> {
    count: AtomicUsize,
    value: T,
}

impl<T: 'static> Counted<T> {
    fn new(value: T, arena: ArenaRef) -> Result<Self, Failure> {
        Ok(Self(arena.alloc(Block { count: AtomicUsize::new(1), value })?))
    }
}

impl<T> std::ops::Deref for Counted<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T> Clone for Counted<T> {
    fn clone(&self) -> Self {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        Self(self.0)
    }
}

impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        // The block is the arena's and stays; a real Arc would free it at 0.
        self.0.count.fetch_sub(1, Ordering::Release);
    }
}

/// A vertex's attributes.
pub struct Attributes {
    /// The vertex's name, in the arena.
    pub name: &'static str,
}

/// A vertex.
pub struct Vertex {
    /// The vertex' place in [`Graph::vertices`].
    pub index: u32,
    /// The vertex' attributes, shared by counting.
    pub attributes: Counted<Attributes>,
    /// A cell that a worker may write.
    pub mark: AtomicU32,
    /// Vertices that it points to.
    pub edges: Vec<u32>,
}

/// The whole graph; all of it lies in one arena.
pub struct Graph {
    /// All vertices.
    pub vertices: Vec<Vertex>,
    /// From the input's ids to places in `vertices`.
    pub index: HashMap<u64, u32>,
    /// The number of edges.
    pub edges: u64,
}

/// The findings of a search from one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Paths {
    /// The number of vertices that can be reached, the source included.
    pub reached: u64,
    /// The number of edges of the longest of the shortest paths.
    pub longest: u64,
    /// The sum of the lengths of all shortest paths.
    pub total: u64,
    /// Bytes of names read on the way.
    pub name_bytes: u64,
}

impl Graph {
    /// Shortest paths from a source to everything it reaches. `visit` is called for each vertex reached.
    pub fn shortest_paths(&self, source: &Vertex, mut visit: impl FnMut(&Vertex) -> u64) -> Paths {
        let mut distance = vec![u32::MAX; self.vertices.len()];
        let mut queue = VecDeque::from([source.index]);
        let mut paths = Paths::default();
        distance[source.index as usize] = 0;
        while let Some(index) = queue.pop_front() {
            let vertex = &self.vertices[index as usize];
            let here = distance[index as usize];
            paths.reached += 1;
            paths.longest = paths.longest.max(u64::from(here));
            paths.total += u64::from(here);
            paths.name_bytes += visit(vertex);
            for &next in &vertex.edges {
                if distance[next as usize] == u32::MAX {
                    distance[next as usize] = here + 1;
                    queue.push_back(next);
                }
            }
        }
        paths
    }

    /// The vertices with most out-edges, most first.
    pub fn hubs(&'static self, count: usize) -> std::vec::Vec<&'static Vertex> {
        let mut all: std::vec::Vec<&Vertex> = self.vertices.iter().collect();
        all.sort_by_key(|vertex| (std::cmp::Reverse(vertex.edges.len()), vertex.index));
        all.truncate(count);
        all
    }
}

/// Builds a [`Graph`] edge by edge. Memory that runs out is an error, not an abort.
pub struct Builder {
    arena: ArenaRef,
    graph: Graph,
}

impl Builder {
    /// An empty graph in an arena.
    pub fn new(arena: &Arena) -> Self {
        let vertices = Vec::new_in(arena.site::<Vertex>());
        let index = HashMap::with_hasher_in(Default::default(), arena.site::<(u64, u32)>());
        Self { arena: **arena, graph: Graph { vertices, index, edges: 0 } }
    }

    /// Makes room for so many vertices at once, so that tables need not double.
    pub fn reserve(&mut self, vertices: usize) -> Result<(), Failure> {
        self.graph.vertices.try_reserve(vertices).map_err(|_| why(self.arena))?;
        self.graph.index.try_reserve(vertices).map_err(|_| why(self.arena))
    }

    /// Adds an edge, and its vertices where they are new.
    pub fn edge(&mut self, from: u64, to: u64) -> Result<(), Failure> {
        let (from, to) = (self.vertex(from)?, self.vertex(to)?);
        let edges = &mut self.graph.vertices[from as usize].edges;
        edges.try_reserve(1).map_err(|_| why(self.arena))?;
        edges.push(to);
        self.graph.edges += 1;
        Ok(())
    }

    fn vertex(&mut self, id: u64) -> Result<u32, Failure> {
        let (graph, arena) = (&mut self.graph, self.arena);
        if let Some(&index) = graph.index.get(&id) {
            return Ok(index);
        }
        let index = graph.vertices.len() as u32;
        let name = arena.alloc_str(&format!("v{id}"))?;
        let attributes = Counted::new(Attributes { name }, arena)?;
        let edges = Vec::new_in(arena.site::<u32>());
        graph.vertices.try_reserve(1).map_err(|_| why(arena))?;
        graph.vertices.push(Vertex { index, attributes, mark: AtomicU32::new(0), edges });
        graph.index.try_reserve(1).map_err(|_| why(arena))?;
        graph.index.insert(id, index);
        Ok(index)
    }

    /// Bytes of the arena in use.
    pub fn used(&self) -> usize {
        self.arena.used()
    }

    /// The finished graph.
    pub fn finish(self) -> Graph {
        self.graph
    }
}

/// Why a collection could not grow.
fn why(arena: ArenaRef) -> Failure {
    arena.take_failure().map_or_else(|| Failure::new("the graph is too large"), Failure::from)
}
