//! By which name a program was executed: many are links to one file (`redis-server` to `redis-check-rdb`).

use super::baseline::page_bytes;
use crate::record::Executable;
use cowbell::sys::{procfs, remote};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// The entry of the auxiliary vector that points to the path given to `execve(2)`.
const AT_EXECFN: u64 = 31;

/// The file that a process executes, and the name it was called by. For a script the kernel keeps the script's name, which is not
/// the interpreter's: then the file itself is what it is called.
pub fn of(pid: i32) -> Option<Executable> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?.to_string_lossy().into_owned();
    let called = given(pid).filter(|called| is_same(pid, called)).unwrap_or_else(|| path.clone());
    Some(Executable { path, called })
}

fn given(pid: i32) -> Option<String> {
    let mut buffer = [0; 1024];
    let vector = procfs::signal_safe::auxiliary_vector(pid, &mut buffer).ok()?;
    let words: Vec<u64> =
        vector.chunks_exact(8).filter_map(|word| word.try_into().ok().map(u64::from_ne_bytes)).collect();
    let pointer = words.chunks_exact(2).find(|pair| pair.first() == Some(&AT_EXECFN))?.get(1).copied()?;
    // The string is near the stack's end, behind which nothing may be mapped.
    let mut bytes = vec![0; page_bytes() as usize];
    let got = remote::read_memory(pid, pointer, &mut bytes).ok()?;
    let name = bytes.get(..got)?.split(|&byte| byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

fn is_same(pid: i32, called: &str) -> bool {
    let identity = |path: String| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    let from = if called.starts_with('/') { "root" } else { "cwd" };
    let named = identity(format!("/proc/{pid}/{from}/{}", called.trim_start_matches('/')));
    named.is_some() && named == identity(format!("/proc/{pid}/exe"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    #[test]
    fn a_program_found_by_a_link_is_called_by_the_link() {
        let folder = std::env::temp_dir().join(format!("cowbell-executable-{}", std::process::id()));
        fs::create_dir(&folder).expect("a folder");
        let link = folder.join("another-name");
        std::os::unix::fs::symlink("/bin/cat", &link).expect("a link");
        let mut cat = Command::new(&link).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cat");
        // Once it answers it has been executed.
        cat.stdin.as_mut().expect("a pipe").write_all(b"x").expect("written");
        cat.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("echoed");
        let found = of(cat.id() as i32).expect("it runs");
        drop(cat.stdin.take());
        cat.wait().expect("its end");
        fs::remove_dir_all(&folder).expect("removed");
        assert_eq!(found.called, link.display().to_string());
        assert!(found.path.ends_with("/cat"), "{found:?}");
    }
}
