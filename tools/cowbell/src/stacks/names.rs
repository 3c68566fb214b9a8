//! Instructions as functions and lines.
//!
//! Names come from the files on disk, so the process may be gone; and from debug information that distributions package
//! apart, where it is installed. A name is claimed only for an instruction that its function is known to cover: nearly
//! all of a stripped interpreter lies *behind* some exported function, and is none of it.

use super::elf::{self, Image, Layout};
use super::perf_map::PerfMap;
use crate::record::{Code, Mapping, NativeFrame, Uninitialised};
use blazesym::symbolize::source::Elf;
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolizer};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Where distributions put debug information.
const DEBUG_DIRECTORY: &str = "/usr/lib/debug";

/// Finds names, and remembers them by file across processes.
pub struct Names {
    symbolizer: Symbolizer,
    debug_directory: PathBuf,
    /// By name in /proc/PID/maps; `None` for what is no ELF file or is gone.
    files: HashMap<String, Option<Known>>,
    perf_maps: HashMap<i32, PerfMap>,
}

/// A file that was read, or the kernel's own code.
struct Known {
    layout: Layout,
    source: Source,
    /// By address as the file counts them.
    frames: HashMap<u64, Vec<NativeFrame>>,
}

/// Where names are.
enum Source {
    /// In a file, or in what it links to.
    File {
        path: PathBuf,
        /// Debug information of the same build.
        debug: Option<PathBuf>,
    },
    /// In the kernel's own image.
    Vdso(Vec<u8>),
}

impl Names {
    /// Knows nothing yet.
    pub fn new() -> Self {
        Self::with_debug_directory(Path::new(DEBUG_DIRECTORY))
    }

    fn with_debug_directory(directory: &Path) -> Self {
        let symbolizer = Symbolizer::builder().set_debug_dirs(Some([directory])).build();
        Self { symbolizer, debug_directory: directory.to_owned(), files: HashMap::new(), perf_maps: HashMap::new() }
    }

    /// Names instructions of a process that maps, or mapped, this; in the order given.
    ///
    /// The process is asked only for what its just-in-time compiler has written about its code.
    pub fn resolve(&mut self, pid: i32, mappings: &[Mapping], pcs: &[u64]) -> Vec<Code> {
        let mut jitted = false;
        let codes = pcs.iter().map(|&pc| {
            let Some(mapping) = mappings.iter().find(|mapping| (mapping.start..mapping.end).contains(&pc)) else {
                return Code { pc, frames: Vec::new(), module: format!("{pc:#x}") };
            };
            let offset = (pc - mapping.start).saturating_add(mapping.offset);
            let (symbolizer, directory) = (&self.symbolizer, &self.debug_directory);
            match known(&mut self.files, directory, &mapping.name)
                .and_then(|known| Some((known.layout.address(offset)?, known)))
            {
                Some((address, known)) => {
                    Code { pc, frames: known.frames(address, symbolizer), module: module(mapping, address) }
                }
                None => {
                    jitted = true;
                    Code { pc, frames: Vec::new(), module: module(mapping, offset) }
                }
            }
        });
        let mut codes: Vec<_> = codes.collect();
        if jitted {
            self.name_jitted(pid, &mut codes);
        }
        codes
    }

    /// Where anonymous memory among these mappings is uninitialised data of the file that is mapped below it, by that file's
    /// headers.
    pub fn uninitialised(&mut self, mappings: &[Mapping]) -> Vec<Uninitialised> {
        let mut found = Vec::new();
        for pair in mappings.windows(2) {
            let [below, above] = pair else { continue };
            let is_data = below.name.starts_with('/') && below.permissions.starts_with("rw");
            if !is_data || !above.name.is_empty() || above.start != below.end {
                continue;
            }
            let Some(known) = known(&mut self.files, &self.debug_directory, &below.name) else { continue };
            let part = below.offset..below.offset.saturating_add(below.end - below.start);
            let Some(end) = known.layout.memory_end(below.start, part).filter(|end| *end > above.start) else {
                continue;
            };
            found.push(Uninitialised { start: above.start, end, name: below.name.clone() });
        }
        found
    }

    /// Names what is in no file, from what the process' just-in-time compiler wrote.
    fn name_jitted(&mut self, pid: i32, codes: &mut [Code]) {
        // It grows with the code, and may be gone when the process is: what was read last then stays.
        let fresh = PerfMap::of(pid);
        let map = self.perf_maps.entry(pid).or_default();
        if !fresh.is_empty() {
            *map = fresh;
        }
        for code in codes.iter_mut().filter(|code| code.frames.is_empty()) {
            let function = map.function(code.pc).map(str::to_owned);
            code.frames.extend(function.map(|function| NativeFrame { function, file: None, line: None }));
        }
    }
}

/// What is known of a file, read the first time that it is asked for.
fn known<'a>(
    files: &'a mut HashMap<String, Option<Known>>,
    debug_directory: &Path,
    name: &str,
) -> Option<&'a mut Known> {
    if !files.contains_key(name) {
        files.insert(name.to_owned(), Known::read(name, debug_directory));
    }
    files.get_mut(name).and_then(Option::as_mut)
}

impl Known {
    /// Reads what a name in /proc/PID/maps stands for. What was deleted is under no name any more.
    fn read(name: &str, debug_directory: &Path) -> Option<Self> {
        if name == "[vdso]" {
            let image = elf::vdso()?;
            let layout = Image::parse(image.as_slice())?.layout();
            return Some(Self { layout, source: Source::Vdso(image), frames: HashMap::new() });
        }
        let path = name.starts_with('/').then(|| PathBuf::from(name))?;
        let (layout, build_id) = elf::with_file(&path, |image| Some((image.layout(), image.build_id())))?;
        let debug = build_id.and_then(|id| debug_file(debug_directory, &id));
        Some(Self { layout, source: Source::File { path, debug }, frames: HashMap::new() })
    }

    fn frames(&mut self, address: u64, symbolizer: &Symbolizer) -> Vec<NativeFrame> {
        let source = &self.source;
        self.frames.entry(address).or_insert_with(|| source.frames(address, symbolizer)).clone()
    }
}

impl Source {
    fn frames(&self, address: u64, symbolizer: &Symbolizer) -> Vec<NativeFrame> {
        match self {
            Self::Vdso(image) => {
                let function = Image::parse(image.as_slice()).and_then(|image| image.exported_function(address));
                function.map(|function| NativeFrame { function, file: None, line: None }).into_iter().collect()
            }
            Self::File { path, debug } => {
                let mut bare = Elf::new(path);
                bare.debug_syms = false;
                // A debug link that leads to another build makes the whole file an error: then without it.
                let mut sources = debug.iter().map(Elf::new).chain([Elf::new(path), bare]);
                let named = sources.find_map(|source| {
                    let symbol = symbolizer.symbolize_single(&source.into(), Input::VirtOffset(address)).ok()?;
                    symbol.into_sym().and_then(frames)
                });
                named.unwrap_or_default()
            }
        }
    }
}

/// The functions that a symbol stands for, the innermost inlined one first.
fn frames(symbol: Sym<'_>) -> Option<Vec<NativeFrame>> {
    // A symbol without a size is merely the nearest one.
    if symbol.name.is_empty() || (symbol.size.is_none() && symbol.offset > 0) {
        return None;
    }
    let frame = |name: Cow<'_, str>, code: Option<&CodeInfo<'_>>| NativeFrame {
        function: name.into_owned(),
        file: code.map(|code| code.to_path().display().to_string()),
        line: code.and_then(|code| code.line),
    };
    let inlined = symbol.inlined.iter().rev().map(|inlined| frame(inlined.name.clone(), inlined.code_info.as_ref()));
    let mut frames: Vec<_> = inlined.collect();
    frames.push(frame(symbol.name, symbol.code_info.as_deref()));
    Some(frames)
}

/// The debug information of a build, if a package has brought it.
fn debug_file(directory: &Path, build_id: &[u8]) -> Option<PathBuf> {
    let (first, rest) = build_id.split_first()?;
    let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    let path = directory.join(format!(".build-id/{first:02x}/{rest}.debug"));
    let same_build = elf::with_file(&path, |image| image.build_id()).as_deref() == Some(build_id);
    same_build.then_some(path)
}

/// What is mapped and the address in it, for what has no name.
fn module(mapping: &Mapping, address: u64) -> String {
    let name = match mapping.name.strip_prefix('/') {
        Some(path) => path.rsplit('/').next().unwrap_or(path),
        None if mapping.name.is_empty() => "[anonymous]",
        None => &mapping.name,
    };
    format!("{name}+{address:#x}")
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Directory, Program, code_at, mappings, run};
    use super::*;
    use std::process::Command;

    /// Says where its code is, then waits for its input.
    const FUNCTIONS: &str = r#"
#include <stdio.h>
#include <unistd.h>
#if defined(__x86_64__)
#define HERE(pc) __asm__ volatile("lea 0(%%rip), %0; nop" : "=r"(pc))
#else
#define HERE(pc) __asm__ volatile("adr %0, ." : "=r"(pc))
#endif
static inline __attribute__((always_inline)) void *inlined(void) { void *pc; HERE(pc); return pc; }
__attribute__((noinline)) void *host(void) {
    return inlined();
}
__attribute__((noinline)) void rust(void) __asm__("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE");
__attribute__((noinline)) void rust(void) { __asm__ volatile(""); }
__attribute__((noinline)) void plus(void) __asm__("_ZN5space4nameEi");
__attribute__((noinline)) void plus(void) { __asm__ volatile(""); }
__attribute__((noinline)) static void hidden(void) { __asm__ volatile(""); }
int main(void) {
    hidden(); rust(); plus();
    printf("%p %p %p %p\n", host(), (void *)rust, (void *)plus, (void *)hidden);
    fflush(stdout);
    char c;
    return read(0, &c, 1) > 5;
}
"#;

    /// The program's instructions: inlined, mangled by Rust, mangled by C++, and of a function that is not exported.
    struct Running {
        pid: i32,
        mappings: Vec<Mapping>,
        pcs: Vec<u64>,
    }

    /// Runs it until it has said where its code is. It is gone when its names are asked for.
    fn run_once(program: &Path) -> Running {
        let mut program = Program::start(&mut Command::new(program));
        let pcs = program.line().split(' ').map(|pc| u64::from_str_radix(&pc[2..], 16).unwrap()).collect();
        Running { pid: program.pid(), mappings: mappings(program.pid()), pcs }
    }

    fn resolve(names: &mut Names, running: &Running) -> Vec<Code> {
        let codes = names.resolve(running.pid, &running.mappings, &running.pcs);
        assert_eq!(codes.iter().map(|code| code.pc).collect::<Vec<_>>(), running.pcs);
        codes
    }

    fn functions(code: &Code) -> Vec<&str> {
        code.frames.iter().map(|frame| frame.function.as_str()).collect()
    }

    fn assert_all_named(codes: &[Code]) {
        assert_eq!(functions(&codes[0]), ["inlined", "host"]);
        assert!(functions(&codes[1])[0].starts_with("core::fmt::Write::write_fmt"), "{codes:?}");
        assert_eq!(functions(&codes[2]), ["space::name(int)"]);
        assert_eq!(functions(&codes[3]), ["hidden"]);
        let lines: Vec<_> = codes[0].frames.iter().map(|frame| frame.line).collect();
        assert_eq!(lines, [Some(9), Some(11)]);
        assert!(codes[0].frames[0].file.as_ref().unwrap().ends_with("/program.c"));
    }

    #[test]
    fn functions_inlined_ones_and_lines_are_named_wherever_the_program_is_loaded() {
        for flags in [&["-pie"][..], &["-no-pie"], &["-static"]] {
            let directory = Directory::new();
            let program = directory.compile(FUNCTIONS, &[&["-O2", "-g"], flags].concat());
            assert_all_named(&resolve(&mut Names::new(), &run_once(&program)));
        }
    }

    #[test]
    fn a_function_that_was_stripped_of_its_name_does_not_get_its_neighbours() {
        let directory = Directory::new();
        let running = run_once(&directory.compile(FUNCTIONS, &["-O2", "-rdynamic", "-s"]));
        let codes = resolve(&mut Names::new(), &running);
        assert_eq!(functions(&codes[0]), ["host"], "exported, so still known");
        assert_eq!(functions(&codes[3]), [""; 0]);
        assert!(codes[3].module.starts_with("program+0x"), "{codes:?}");
        let mut all = Names::new();
        let code = running.mappings.iter().find(|m| m.start <= running.pcs[0] && running.pcs[0] < m.end).unwrap();
        let named = all.resolve(running.pid, &running.mappings, &(code.start..code.end).collect::<Vec<_>>());
        let host = named.iter().filter(|code| functions(code) == ["host"]).count();
        assert!((1..64).contains(&host), "{host} bytes");
    }

    #[test]
    fn without_any_symbol_there_is_the_module_and_the_address_in_it() {
        let directory = Directory::new();
        let program = directory.compile(FUNCTIONS, &["-O2", "-static", "-no-pie", "-s"]);
        let running = run_once(&program);
        for code in resolve(&mut Names::new(), &running) {
            assert_eq!((code.frames.len(), code.module), (0, format!("program+{:#x}", code.pc)), "loaded as linked");
        }
    }

    /// Moves a program's debug information to a file of its own, compressed as Debian does.
    fn split(program: &Path, debug: &Path) {
        std::fs::create_dir_all(debug.parent().unwrap()).unwrap();
        let objcopy = || Command::new("objcopy");
        run(objcopy().args(["--only-keep-debug", "--compress-debug-sections=zlib"]).args([program, debug]));
        run(Command::new("strip").arg(program));
    }

    #[test]
    fn debug_information_of_a_package_is_found_by_build() {
        let directory = Directory::new();
        let program = directory.compile(FUNCTIONS, &["-O2", "-g", "-Wl,--build-id=0x0123456789abcdef"]);
        split(&program, &directory.path(".build-id/01/23456789abcdef.debug"));
        let mut names = Names::with_debug_directory(&directory.path(""));
        assert_all_named(&resolve(&mut names, &run_once(&program)));
        let mut without = Names::with_debug_directory(Path::new("/nonexistent"));
        assert_eq!(functions(&resolve(&mut without, &run_once(&program))[3]), [""; 0]);
    }

    #[test]
    fn debug_information_is_found_by_link_and_that_of_another_build_is_not_used() {
        let directory = Directory::new();
        let program = directory.compile(FUNCTIONS, &["-O2", "-g", "-rdynamic", "-Wl,--build-id=none"]);
        let debug = directory.path("program.debug");
        split(&program, &debug);
        run(Command::new("objcopy").arg(format!("--add-gnu-debuglink={}", debug.display())).arg(&program));
        let running = run_once(&program);
        assert_all_named(&resolve(&mut Names::new(), &running));
        std::fs::write(&debug, "of another build").unwrap();
        let codes = resolve(&mut Names::new(), &running);
        assert_eq!(functions(&codes[0]), ["host"], "what the program itself exports");
        assert_eq!(functions(&codes[3]), [""; 0]);
    }

    #[test]
    fn what_is_gone_or_in_no_mapping_has_no_name() {
        let directory = Directory::new();
        let program = directory.compile(FUNCTIONS, &["-O2"]);
        let mut running = run_once(&program);
        running.mappings.iter_mut().filter(|m| m.name.starts_with('/')).for_each(|m| m.name += " (deleted)");
        let [.., hidden] = &resolve(&mut Names::new(), &running)[..] else { panic!() };
        assert_eq!(functions(hidden), [""; 0]);
        assert!(hidden.module.starts_with("program (deleted)+0x"), "{}", hidden.module);
        let codes = Names::new().resolve(running.pid, &[], &[0, 16, u64::MAX]);
        assert_eq!(codes.iter().map(|c| c.module.as_str()).collect::<Vec<_>>(), ["0x0", "0x10", "0xffffffffffffffff"]);
    }

    #[test]
    fn a_file_of_nonsense_has_no_names() {
        let directory = Directory::new();
        let program = directory.compile(FUNCTIONS, &["-O2", "-g"]);
        let whole = std::fs::read(&program).unwrap();
        for length in [0, 1, 64, 100, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&program, &whole[..length]).unwrap();
            let pcs: Vec<_> = (0..0x4000).step_by(64).collect();
            let codes = Names::new().resolve(1, &[code_at(0, 0, 0x4000, &program)], &pcs);
            assert!(codes.iter().all(|code| code.module.starts_with("program+0x")), "{length}");
        }
    }

    #[test]
    fn code_made_just_in_time_has_the_name_its_compiler_gave_it() {
        let program = Program::start(&mut Command::new("cat"));
        let pid = program.pid();
        let map = PathBuf::from(format!("/tmp/perf-{pid}.map"));
        std::fs::write(&map, "1000 100 py::work:job.py\n").unwrap();
        let mut made = code_at(0x1000, 0, 0x1000, Path::new(""));
        made.name = String::new();
        let mut names = Names::new();
        let codes = names.resolve(pid, &[made.clone()], &[0x1010, 0x1100]);
        std::fs::remove_file(&map).unwrap();
        drop(program);
        assert_eq!((functions(&codes[0]), functions(&codes[1])), (vec!["py::work:job.py"], vec![]));
        assert_eq!(codes[1].module, "[anonymous]+0x100");
        assert_eq!(names.resolve(pid, &[made], &[0x1010, 0x1100]), codes, "remembered when the process is gone");
    }

    #[test]
    fn code_of_the_kernel_in_every_process_is_named() {
        let pid = std::process::id() as i32;
        let mappings = mappings(pid);
        let vdso = mappings.iter().find(|mapping| mapping.name == "[vdso]").unwrap();
        let codes = Names::new().resolve(pid, &mappings, &(vdso.start..vdso.end).step_by(16).collect::<Vec<_>>());
        let names: Vec<_> = codes.iter().flat_map(functions).collect();
        assert!(names.iter().any(|name| name.contains("gettime")), "{names:?}");
        assert!(codes[0].frames.is_empty() && codes[0].module == "[vdso]+0x0", "its header is no code");
    }

    #[test]
    #[ignore = "measures, claims nothing"]
    fn costs() {
        let python = std::env::var("COWBELL_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
        let mut program = Program::start(Command::new(python).args(["-c", "print(flush=True); input()"]));
        program.line();
        let mappings = mappings(program.pid());
        let mut names = Names::new();
        for mapping in mappings.iter().filter(|mapping| mapping.permissions.contains('x')) {
            let pcs: Vec<_> = (mapping.start..mapping.end).step_by(256).collect();
            let start = std::time::Instant::now();
            names.resolve(program.pid(), &mappings, &pcs[..1]);
            let first = start.elapsed();
            let codes = names.resolve(program.pid(), &mappings, &pcs);
            let (all, named) = (start.elapsed(), codes.iter().filter(|code| !code.frames.is_empty()).count());
            eprintln!("{}: first {first:?}, {} in {all:?}, {named} named", mapping.name, pcs.len());
        }
    }
}
