// Signals around a child that writes pages: job control, timers and interrupted system calls. Prints what went wrong,
// or `right`.
//
// usage: control stop | timer
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 3000 };

static long page_size;
static char *memory;
static volatile int *shared; // [0]: pages written, [1]: alarms
static volatile sig_atomic_t alarms;

static int wrong(const char *what) {
    printf("wrong: %s (%s)\n", what, strerror(errno));
    return 1;
}

// Each alarm writes a page that it alone uses.
static void on_alarm(int signal) {
    (void)signal;
    memory[(PAGES + alarms % PAGES) * page_size] += 1;
    alarms++;
}

// The parent stops and continues the child, and must be told of both.
static int stop(void) {
    pid_t pid = fork();
    if (pid == 0) {
        for (int i = 0; i < PAGES; i++) {
            memory[i * page_size] += 1;
            shared[0] = i + 1;
        }
        while (shared[1] == 0) usleep(100);
        _exit(memory[(PAGES - 1) * page_size] == 2 ? 7 : 8);
    }
    int status;
    for (int i = 0; i < 10; i++) {
        if (kill(pid, SIGSTOP)) return wrong("kill");
        if (waitpid(pid, &status, WUNTRACED) != pid || !WIFSTOPPED(status)) return wrong("no stop is told of");
        if (WSTOPSIG(status) != SIGSTOP) return wrong("stopped by another signal");
        int at = shared[0];
        usleep(2000);
        if (shared[0] != at) return wrong("it went on while stopped");
        if (kill(pid, SIGCONT)) return wrong("kill");
        if (waitpid(pid, &status, WCONTINUED) != pid || !WIFCONTINUED(status)) return wrong("no continuing is told of");
    }
    shared[1] = 1;
    if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != 7) return wrong("its end");
    puts("right");
    return 0;
}

// A timer fires all the time while the child writes, reads from a pipe, and sleeps.
static int timer(void) {
    int fds[2];
    if (pipe(fds)) return wrong("pipe");
    pid_t pid = fork();
    if (pid == 0) {
        struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
        struct itimerval often = {{0, 500}, {0, 500}}, never = {{0, 0}, {0, 0}};
        sigaction(SIGALRM, &action, NULL);
        setitimer(ITIMER_REAL, &often, NULL);
        for (int i = 0; i < PAGES; i++) memory[i * page_size] += 1;
        char byte; // restarted, however often a signal comes between
        if (read(fds[0], &byte, 1) != 1 || byte != 'x') _exit(8);
        while (alarms < 20) pause();
        setitimer(ITIMER_REAL, &never, NULL);
        for (int i = 0; i < PAGES; i++)
            if (memory[i * page_size] != 2) _exit(9);
        int counted = 0;
        for (int i = PAGES; i < 2 * PAGES; i++) counted += memory[i * page_size] - 1;
        _exit(counted == alarms ? 7 : 10);
    }
    usleep(20000);
    if (write(fds[1], "x", 1) != 1) return wrong("write");
    int status;
    if (waitpid(pid, &status, 0) != pid) return wrong("waitpid");
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 7) {
        printf("wrong: the child's status is %x\n", status);
        return 1;
    }
    puts("right");
    return 0;
}

int main(int count, char **arguments) {
    page_size = sysconf(_SC_PAGESIZE);
    memory = mmap(NULL, 2 * PAGES * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    shared = mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || shared == MAP_FAILED) return wrong("mmap");
    for (int i = 0; i < 2 * PAGES; i++) memory[i * page_size] = 1;
    if (count < 2) return 2;
    return strcmp(arguments[1], "stop") ? timer() : stop();
}
