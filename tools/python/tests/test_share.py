"""Handles resolve to the inherited object, and only to that."""

from __future__ import annotations

from kit import run


def test_a_handle_is_small_and_resolves_in_a_forked_worker_to_the_inherited_object():
    run(
        """
        import multiprocessing, os, pickle, cowbell_fork
        data = {n: str(n) for n in range(100_000)}
        handle = cowbell_fork.share(data)
        other = cowbell_fork.share(["other"])
        assert len(pickle.dumps(handle)) < 150, len(pickle.dumps(handle))
        assert handle.get() is data and pickle.loads(pickle.dumps(handle)).get() is data
        def work(handle, n): return id(handle.get()), handle.get()[n]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            results = pool.starmap(work, [(handle, n) for n in range(100)])
            assert results == [(id(data), str(n)) for n in range(100)]
            assert pool.apply(work, (other, 0)) == (id(other.get()), "other")
        """
    )


def test_a_handle_that_was_not_inherited_is_an_error_and_no_other_object():
    run(
        """
        import os, pickle, subprocess, sys, cowbell_fork
        from kit import in_child
        early = cowbell_fork.share(["early"])
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            # Forked before the next share, which it has by a pipe; it shared something else under the same number.
            mine = cowbell_fork.share(["mine"])
            handle = pickle.loads(os.read(reader, 10_000))
            try: handle.get()
            except cowbell_fork.NotInherited as error: os._exit("before the workers are forked" not in str(error))
            os._exit(2)
        late = cowbell_fork.share(["late"])
        os.write(writer, pickle.dumps(late))
        assert os.waitpid(pid, 0)[1] == 0
        code = "import pickle, sys, cowbell_fork; cowbell_fork.share(1); cowbell_fork.share(2);"
        code += "pickle.loads(bytes.fromhex(sys.argv[1])).get()"
        done = subprocess.run([sys.executable, "-c", code, pickle.dumps(early).hex()], capture_output=True, text=True)
        assert done.returncode == 1 and "NotInherited" in done.stderr, done.stderr
        """
    )
