//! multiprocessing's fork server, by the command that it is started with and that its workers inherit.

/// Tells whether a process is the fork server or was forked by it.
pub fn serves(command: &[String]) -> bool {
    command.iter().any(|word| word.contains("multiprocessing.forkserver"))
}

/// The modules that the fork server was told to load before it forks; none for other programs, and where the command does not tell.
///
/// It is started by `-c '… from multiprocessing.forkserver import main; main(5, 7, ['one', 'two'], …)'`.
pub fn preloads(command: &[String]) -> Vec<String> {
    let listed = || {
        let call = command.iter().find_map(|word| word.split_once("multiprocessing.forkserver import main; main("))?.1;
        let (descriptors, rest) = call.split_once('[')?;
        let is_number = |number: &str| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let numbers: Vec<&str> = descriptors.split(", ").collect();
        let [listener, alive, ""] = numbers[..] else { return None };
        let names = rest.split_once(']').filter(|_| is_number(listener) && is_number(alive))?.0;
        let bare = |name: &str| name.strip_prefix('\'')?.strip_suffix('\'').map(str::to_owned);
        names.split(", ").map(bare).collect::<Option<Vec<String>>>()
    };
    listed().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str) -> Vec<String> {
        preloads(&["python3", "-B", "-c", code].map(str::to_owned))
    }

    #[test]
    fn modules_are_those_of_the_servers_call() {
        let old =
            "from multiprocessing.forkserver import main; main(9, 12, ['heavy', 'json'], **{'sys_path': ['/srv']})";
        assert_eq!(of(old), ["heavy", "json"]);
        let new = "import sys; from multiprocessing.forkserver import main; main(9, 12, ['a.b'], sys_argv=sys.argv[1:], **{})";
        assert_eq!(of(new), ["a.b"]);
    }

    #[test]
    fn what_is_no_such_call_names_none() {
        for code in [
            "from multiprocessing.forkserver import main; main(9, 12, [], **{'authkey_r': 13})",
            "from multiprocessing.forkserver import main; main(9, 12, [\"it's\"], **{})",
            "from multiprocessing.forkserver import main; main(9, 12, ['cut",
            "from multiprocessing.forkserver import main; main(of, 12, ['heavy'])",
            "from multiprocessing.spawn import spawn_main; spawn_main(['heavy'])",
        ] {
            assert!(of(code).is_empty(), "{code}");
        }
    }
}
