// A child that changes its mappings before it ends, so that a watch finds less at the end than was copied.
//
// usage: changes HOW PAGES [PROGRAM ARGUMENT...]
//
// unmap: the child writes all, unmaps it piece by piece. exec: it writes all, and executes /bin/true. move: it writes
// half, moves all, writes the rest, and unmaps it. free: it gives all back by MADV_FREE (which does nothing to pages that
// others share) and writes half. drop: the same by MADV_DONTNEED. pressed: the same page by page, beside a process that never rests.
// mem: it writes all through /proc/self/mem. map: PAGES mappings of one page each, of which it writes every tenth.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static size_t page;

static char *pages(size_t count) {
    char *memory = mmap(NULL, count * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || madvise(memory, count * page, MADV_NOHUGEPAGE) != 0) {
        exit(2);
    }
    return memory;
}

static void write_all(char *memory, size_t from, size_t to, char value) {
    for (size_t at = from; at < to; at++) {
        memory[at * page] = value;
    }
}

static void child(const char *how, char *memory, size_t count) {
    const size_t piece = 64;
    if (strcmp(how, "unmap") == 0) {
        for (size_t at = 0; at < count; at += piece) {
            size_t end = at + piece < count ? at + piece : count;
            write_all(memory, at, end, 2);
            munmap(memory + at * page, (end - at) * page);
        }
    } else if (strcmp(how, "exec") == 0) {
        write_all(memory, 0, count, 2);
        execl("/bin/true", "true", NULL);
        _exit(3);
    } else if (strcmp(how, "move") == 0) {
        write_all(memory, 0, count / 2, 2);
        char *place = pages(count);
        char *moved = mremap(memory, count * page, count * page, MREMAP_MAYMOVE | MREMAP_FIXED, place);
        if (moved == MAP_FAILED) {
            _exit(3);
        }
        write_all(moved, count / 2, count, 2);
        munmap(moved, count * page);
    } else if (strcmp(how, "free") == 0 || strcmp(how, "drop") == 0) {
        madvise(memory, count * page, strcmp(how, "free") == 0 ? MADV_FREE : MADV_DONTNEED);
        write_all(memory, 0, count / 2, 2);
    } else if (strcmp(how, "pressed") == 0) {
        for (size_t at = 0; at < count; at++) {
            madvise(memory + at * page, page, MADV_DONTNEED);
        }
        write_all(memory, 0, count / 2, 2);
    } else if (strcmp(how, "mem") == 0) {
        int self = open("/proc/self/mem", O_RDWR);
        for (size_t at = 0; at < count; at++) {
            if (pwrite(self, "x", 1, (off_t)(memory + at * page)) != 1) {
                _exit(errno == EIO ? 5 : 6);
            }
        }
    } else {
        for (size_t at = 0; at < count; at += 10) {
            memory[at * 2 * page] = 2;
        }
    }
    _exit(0);
}

int main(int count, char **arguments) {
    if (count < 3) {
        return 2;
    }
    page = (size_t)sysconf(_SC_PAGESIZE);
    size_t number = (size_t)atol(arguments[2]);
    int maps = strcmp(arguments[1], "map") == 0;
    char *memory = pages(maps ? 2 * number : number);
    for (size_t at = 0; at < number; at++) {
        memory[at * (maps ? 2 : 1) * page] = 1;
        // Each second page is closed, so that its neighbours are mappings of their own.
        if (maps && mprotect(memory + (2 * at + 1) * page, page, PROT_READ) != 0) {
            return 2;
        }
    }
    pid_t restless = strcmp(arguments[1], "pressed") == 0 ? fork() : -1;
    if (restless == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) {
        }
    }
    pid_t pid = fork();
    if (pid == 0) {
        child(arguments[1], memory, number);
    }
    int status = 1;
    waitpid(pid, &status, 0);
    if (restless > 0) {
        kill(restless, SIGKILL);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
