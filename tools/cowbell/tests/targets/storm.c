// Forks in waves, grandchildren too; each process writes pages that it shares and adds up what it finds there. Prints
// `started`, and one line more, which is right only if no store was lost. Stops at the first wave in which somebody was killed by SIGKILL,
// after checking all others.
//
// usage: storm WAVES CHILDREN
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 200 };

static long page_size;
static char *memory;

// Adds `with` to each page's count and returns the sum of all.
static uint64_t work(uint64_t with) {
    uint64_t sum = 0;
    for (int i = 0; i < PAGES; i++) {
        uint64_t *count = (uint64_t *)(memory + i * page_size);
        *count += with;
        sum += *count;
    }
    return sum;
}

int main(int count, char **arguments) {
    if (count < 3) return 2;
    int waves = atoi(arguments[1]), children = atoi(arguments[2]);
    page_size = sysconf(_SC_PAGESIZE);
    memory = mmap(NULL, PAGES * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t *found = mmap(NULL, 4096 * sizeof *found, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || found == MAP_FAILED || children * 2 > 4096) return 3;
    puts("started");
    fflush(stdout);
    uint64_t sum = 0, due = 0, base = 0;
    for (int wave = 0; wave < waves; wave++) {
        base += 1;
        sum += work(1), due += base * PAGES;
        for (int i = 0; i < children; i++) {
            pid_t pid = fork();
            if (pid < 0) return 4;
            if (pid > 0) continue;
            pid_t grandchild = i % 3 == 0 ? fork() : -1;
            if (grandchild == 0) {
                found[children + i] = work(1000);
                _exit(0);
            }
            found[i] = work(10 + i);
            int how = 0;
            if (grandchild > 0 && waitpid(grandchild, &how, 0) != grandchild) _exit(5);
            _exit(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL ? 9 : how != 0);
        }
        int status, ended = 0, killed = 0;
        while (wait(&status) > 0) {
            ended += status == 0;
            killed += (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) || (WIFEXITED(status) && WEXITSTATUS(status) == 9);
        }
        if (ended + killed != children) {
            printf("wrong: %d of %d children ended well\n", ended, children);
            return 6;
        }
        int wrong = 0;
        for (int i = 0; i < children; i++) {
            uint64_t right = (base + 10 + i) * PAGES, right_below = i % 3 == 0 ? (base + 1000) * PAGES : 0;
            sum += found[i] + found[children + i], due += right + right_below;
            wrong += (found[i] != right) + (found[children + i] != right_below);
            found[i] = found[children + i] = 0;
        }
        if (killed) {
            // A killed child takes its own grandchild's slot with it at most.
            printf(wrong <= 2 * killed ? "killed %d of %d, the others are right\n" : "wrong: %d killed of %d\n", killed, children);
            return 7;
        }
    }
    printf("%s %llu\n", sum == due ? "right" : "wrong", (unsigned long long)sum);
    return sum != due;
}
