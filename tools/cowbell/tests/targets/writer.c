// A program whose writes are known: it does what its script says, step by step, and notes what its page tables showed
// before and after each step. It decides nothing: which pages must be copied is for the reader of the script to say.
//
// usage: writer SCRIPT LOG [SCRATCH-FILE]
//
// The script, one word list a line:
//   region ID KIND PAGES      kinds: anon huge shared file memfd heap data bss late latefile grown
//   step ACTOR OP REGION PAGE PAGES VALUE
// Actor 0 is the first process and leads: the others wait for their turn, so that the order is the script's. Regions
// of the kinds late, latefile and grown come into being by the step `map`. Ops are listed in `enum op`.
//
// The log, in hexadecimal numbers: `page BYTES`, `zero WORD` (how the page of zeroes shows), `process ACTOR PID`,
// `stats STEP COUNT`, `base STEP ACTOR REGION ADDRESS` whenever a region lies somewhere new (STEP counts from 1; 0 is
// before the first), and for each page of each step `seen STEP PAGE BEFORE AFTER`: words of /proc/self/pagemap.
//
// What the steps need lies in shared memory or on the stack, and no function of the library is called that could touch
// the regions. A place that was left (munmap, mremap) is fenced, so that nothing else comes to lie there.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MREMAP_FIXED
#define MREMAP_FIXED 2
#endif

enum { ACTORS = 16, REGIONS = 24, STEPS = 6000, SEEN = 60000, BASES = 1000, STATIC_PAGES = 64, PAGE_MAX = 65536 };

enum op {
    WRITE,    // a store to each page
    READ,     // a load from each page
    KWRITE,   // read(2) of a file into each page
    THREADS,  // VALUE threads store to the pages in turns
    DONTNEED, // madvise(MADV_DONTNEED)
    UNMAP,    // munmap
    MOVE,     // mremap of the whole region to a place of its own
    PROTECT,  // mprotect(PROT_READ) of the whole region
    UNLOCK,   // mprotect(PROT_READ | PROT_WRITE) of the whole region
    MAP,      // the late region comes into being
    FORK,     // actor VALUE is forked
    VFORK,    // vfork, and the child leaves at once
    SPAWN,    // posix_spawn of /bin/true
    SETTLE,   // touches what the steps themselves need, so that later steps touch nothing new
    EXIT,     // exit(VALUE)
    QUIT,     // _exit(VALUE)
    KILL,     // SIGKILL to itself
    SEGV,     // a store to address 8
    EXEC,     // execve of /bin/true
    STATS,    // actor 0 asks the kernel how many pages actor VALUE copied
    OPS
};
static const char *const op_names[OPS] = {"write", "read",   "kwrite", "threads", "dontneed", "unmap", "move",
                                          "protect", "unlock", "map",  "fork",    "vfork",    "spawn", "settle",
                                          "exit",  "quit",   "kill",   "segv",    "exec",     "stats"};

struct step {
    int actor, op, region;
    long page, pages, value;
};

struct seen {
    int step;
    long page;
    uint64_t before, after;
};

struct base {
    int step, actor, region;
    uint64_t address;
};

// In shared memory: no store to it copies anything.
struct board {
    int steps;
    struct step step[STEPS];
    int pid[ACTORS];
    int seen_len;
    struct seen seen[SEEN];
    int base_len;
    struct base base[BASES];
    int64_t stats[STEPS];
    char sink;
};

struct region {
    char kind[12];
    long pages;
    char *base;
    char *elsewhere; // reserved for MOVE
};

// An array of the data segment: its pages are the program file's until they are written.
__attribute__((aligned(PAGE_MAX))) static char data_area[STATIC_PAGES * PAGE_MAX / 16] = {1};
__attribute__((aligned(PAGE_MAX))) static char bss_area[STATIC_PAGES * PAGE_MAX / 16];
// Each process has its own, for regions move.
__attribute__((aligned(PAGE_MAX))) static struct region region[REGIONS];

static struct board *board;
static long page_size;
static int source_fd, file_fd, memfd_fd, pagemap_fd = -1;
static int go[ACTORS][2], done[ACTORS][2];
static int me;
static int last_status;

static void die(const char *what) {
    dprintf(2, "writer: actor %d: %s: %s\n", me, what, strerror(errno));
    _exit(99);
}

static uint64_t entry(const char *address) {
    uint64_t word = 0;
    if (pagemap_fd < 0) return 0;
    if (pread(pagemap_fd, &word, sizeof word, (off_t)((uintptr_t)address / page_size * sizeof word)) != sizeof word)
        die("pagemap");
    return word;
}

// A descriptor of pagemap means the process that opened it.
static void open_pagemap(void) {
    if (pagemap_fd >= 0) close(pagemap_fd);
    pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap_fd < 0) die("/proc/self/pagemap");
}

static struct seen *note(int step, long page, const char *address) {
    int n = __atomic_fetch_add(&board->seen_len, 1, __ATOMIC_SEQ_CST);
    if (n >= SEEN) die("too many steps");
    board->seen[n] = (struct seen){step, page, entry(address), 0};
    return &board->seen[n];
}

static void note_base(int step, int id) {
    int n = __atomic_fetch_add(&board->base_len, 1, __ATOMIC_SEQ_CST);
    if (n >= BASES) die("too many places");
    board->base[n] = (struct base){step, me, id, (uintptr_t)region[id].base};
}

static void *must_map(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    void *p = mmap(at, bytes, protection, flags, fd, offset);
    if (p == MAP_FAILED) die("mmap");
    return p;
}

// Anonymous pages beside each other become one mapping; these shall be mappings of their own, and movable.
static char *apart(long pages, int protection, int flags, int fd) {
    size_t bytes = pages * page_size;
    char *room = must_map(NULL, bytes + 2 * page_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return must_map(room + page_size, bytes, protection, flags | MAP_FIXED, fd, 0);
}

static void fence(char *at, long pages) {
    must_map(at, pages * page_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

static char *grow_heap(long pages) {
    uintptr_t top = (uintptr_t)sbrk(0);
    if (sbrk((page_size - top % page_size) % page_size) == (void *)-1) die("sbrk");
    char *base = sbrk(pages * page_size);
    if (base == (void *)-1) die("sbrk");
    return base;
}

static void make_region(struct region *r) {
    int both = PROT_READ | PROT_WRITE, anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
    if (!strcmp(r->kind, "anon") || !strcmp(r->kind, "late")) {
        r->base = apart(r->pages, both, anonymous, -1);
        madvise(r->base, r->pages * page_size, MADV_NOHUGEPAGE); // refused where there are none
    } else if (!strcmp(r->kind, "huge")) {
        size_t huge = 2 << 20;
        char *room = must_map(NULL, 2 * huge, both, anonymous, -1, 0);
        r->base = (char *)(((uintptr_t)room + huge - 1) / huge * huge);
        madvise(r->base, huge, MADV_HUGEPAGE);
    } else if (!strcmp(r->kind, "shared")) {
        r->base = apart(r->pages, both, MAP_SHARED | MAP_ANONYMOUS, -1);
    } else if (!strcmp(r->kind, "file") || !strcmp(r->kind, "latefile")) {
        r->base = apart(r->pages, both, MAP_PRIVATE, file_fd);
    } else if (!strcmp(r->kind, "memfd")) {
        r->base = apart(r->pages, both, MAP_PRIVATE, memfd_fd);
    } else if (!strcmp(r->kind, "heap") || !strcmp(r->kind, "grown")) {
        r->base = grow_heap(r->pages);
    } else if (!strcmp(r->kind, "data")) {
        r->base = data_area;
    } else if (!strcmp(r->kind, "bss")) {
        r->base = bss_area;
    } else {
        die(r->kind);
    }
    int is_static = !strcmp(r->kind, "data") || !strcmp(r->kind, "bss");
    if (is_static && r->pages * page_size > (long)sizeof data_area) die("a static region is too long");
}

struct work {
    char *base;
    long first, pages, stride;
};

static void *store(void *argument) {
    struct work *w = argument;
    for (long i = w->first; i < w->pages; i += w->stride) *(volatile char *)(w->base + i * page_size) += 1;
    return NULL;
}

static void by_threads(char *base, long pages, long threads) {
    pthread_t thread[8];
    struct work work[8];
    for (long t = 0; t < threads; t++) {
        work[t] = (struct work){base, t, pages, threads};
        if (pthread_create(&thread[t], NULL, store, &work[t])) die("pthread_create");
    }
    for (long t = 0; t < threads; t++) pthread_join(thread[t], NULL);
}

static void play(void);

static void fork_actor(int actor) {
    pid_t pid = fork();
    if (pid < 0) die("fork");
    if (pid > 0) return;
    me = actor;
    board->pid[actor] = getpid();
    open_pagemap();
    play();
}

static void end_here(const struct step *s) {
    static char *const arguments[] = {"/bin/true", NULL};
    switch (s->op) {
    case EXIT: exit((int)s->value);
    case QUIT: _exit((int)s->value);
    case KILL: kill(getpid(), SIGKILL); break;
    case SEGV: *(volatile char *)8 = 1; break;
    case EXEC: execve(arguments[0], arguments, NULL); break;
    }
    die("still there");
}

static int is_end(int op) { return op >= EXIT && op <= EXEC; }

static void touch_page(const struct step *s, char *at) {
    switch (s->op) {
    case WRITE: *(volatile char *)at += 1; break;
    case READ: board->sink += *(volatile char *)at; break;
    case KWRITE:
        if (pread(source_fd, at + 16, 100, 0) != 100) die("read(2) into a page");
        break;
    }
}

static void act(int index) {
    const struct step *s = &board->step[index];
    struct region *r = &region[s->region];
    char *at = r->base + s->page * page_size;
    size_t bytes = s->pages * page_size, whole = r->pages * page_size;
    struct seen *seen[256];
    switch (s->op) {
    case WRITE: case READ: case KWRITE:
        for (long i = 0; i < s->pages; i++) {
            struct seen *one = note(index, s->page + i, at + i * page_size);
            touch_page(s, at + i * page_size);
            one->after = entry(at + i * page_size);
        }
        break;
    case THREADS:
        for (long i = 0; i < s->pages; i++) seen[i] = note(index, s->page + i, at + i * page_size);
        by_threads(at, s->pages, s->value);
        for (long i = 0; i < s->pages; i++) seen[i]->after = entry(at + i * page_size);
        break;
    case DONTNEED: if (madvise(at, bytes, MADV_DONTNEED)) die("madvise"); break;
    case UNMAP:
        if (munmap(at, bytes)) die("munmap");
        fence(at, s->pages);
        break;
    case MOVE:
        if (mremap(r->base, whole, whole, MREMAP_MAYMOVE | MREMAP_FIXED, r->elsewhere) == MAP_FAILED) die("mremap");
        fence(r->base, r->pages);
        r->base = r->elsewhere;
        note_base(index + 1, s->region);
        break;
    case PROTECT: if (mprotect(r->base, whole, PROT_READ)) die("mprotect"); break;
    case UNLOCK: if (mprotect(r->base, whole, PROT_READ | PROT_WRITE)) die("mprotect"); break;
    case MAP:
        make_region(r);
        note_base(index + 1, s->region);
        break;
    case FORK: fork_actor((int)s->value); break;
    case VFORK: {
        pid_t pid = vfork();
        if (pid == 0) _exit(0);
        if (pid < 0 || waitpid(pid, NULL, 0) != pid) die("vfork");
        break;
    }
    case SPAWN: {
        static char *const arguments[] = {"/bin/true", NULL};
        pid_t pid;
        if (posix_spawn(&pid, "/bin/true", NULL, NULL, arguments, NULL)) die("posix_spawn");
        if (waitpid(pid, NULL, 0) != pid) die("waitpid");
        break;
    }
    case SETTLE: entry(r->base); break;
    default: end_here(s);
    }
}

// ---- how many pages the kernel says a task copied (taskstats, by generic netlink)

struct message {
    struct nlmsghdr head;
    struct { uint8_t command, version; uint16_t reserved; } generic;
    char body[4096];
};

static char *attribute(char *at, char *end, int type) {
    while (at + 4 <= end) {
        uint16_t len, kind;
        memcpy(&len, at, 2), memcpy(&kind, at + 2, 2);
        if ((kind & 0x3fff) == type) return at + 4;
        at += (len + 3) / 4 * 4;
    }
    return NULL;
}

static char *ask(struct message *m, int fd, int family, int command, int type, const void *value, int len) {
    uint16_t head[2] = {(uint16_t)(4 + len), (uint16_t)type};
    memset(m, 0, sizeof *m);
    memcpy(m->body, head, 4), memcpy(m->body + 4, value, len);
    m->head.nlmsg_len = 16 + 4 + 4 + (len + 3) / 4 * 4;
    m->head.nlmsg_type = (uint16_t)family;
    m->head.nlmsg_flags = NLM_F_REQUEST;
    m->generic.command = (uint8_t)command, m->generic.version = 1;
    if (send(fd, m, m->head.nlmsg_len, 0) < 0) return NULL;
    ssize_t got = recv(fd, m, sizeof *m, 0);
    if (got < 20 || m->head.nlmsg_type == NLMSG_ERROR) return NULL;
    return (char *)m + got;
}

// -1 where it cannot be told.
static int64_t copies_of(int tid) {
    static struct message m;
    int64_t count = -1;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
    char *end = fd < 0 ? NULL : ask(&m, fd, 0x10 /* GENL_ID_CTRL */, 3 /* GETFAMILY */, 2, "TASKSTATS", 10);
    char *id = end ? attribute(m.body, end, 1) : NULL;
    uint16_t family = 0, version = 0;
    if (id) memcpy(&family, id, 2);
    end = id ? ask(&m, fd, family, 1 /* TASKSTATS_CMD_GET */, 1 /* by pid */, &tid, 4) : NULL;
    char *both = end ? attribute(m.body, end, 4 /* AGGR_PID */) : NULL;
    char *stats = both ? attribute(both, end, 3 /* STATS */) : NULL;
    if (stats) memcpy(&version, stats, 2);
    // `wpcopy_count` lies at 400 since version 13; version 15 had put new fields before it.
    if (version >= 13 && version != 15) memcpy(&count, stats + 400, 8);
    if (fd >= 0) close(fd);
    return count;
}

// ---- whose turn it is

static void pass(int fd) { if (write(fd, "x", 1) != 1) die("write"); }

static void await_turn(int fd) {
    char byte;
    if (read(fd, &byte, 1) != 1) _exit(98); // actor 0 is gone
}

// Actor 0 hands the turn to another and waits until it comes back, or until that one has ended.
static void lead(int actor, int ends) {
    int pidfd = (int)syscall(SYS_pidfd_open, board->pid[actor], 0);
    if (pidfd < 0) die("pidfd_open");
    pass(go[actor][1]);
    struct pollfd polled[2] = {{pidfd, POLLIN, 0}, {done[actor][0], POLLIN, 0}};
    if (poll(polled, ends ? 1 : 2, 60000) <= 0) die("an actor does not answer");
    if (!ends) {
        if (!polled[1].revents) die("an actor has ended before its time");
        await_turn(done[actor][0]);
    }
    close(pidfd);
}

// Takes each process' turns in order; only actor 0 returns, when there are no steps left.
static void play(void) {
    static int at; // each process has its own
    for (; at < board->steps; at++) {
        const struct step *s = &board->step[at];
        if (s->op == STATS) {
            if (me == 0) board->stats[at] = copies_of(board->pid[s->value]);
            continue;
        }
        if (s->actor == me) {
            if (me != 0) await_turn(go[me][0]);
            int fork_step = s->op == FORK;
            if (fork_step) {
                at++; // the child goes on behind it
                act(at - 1);
                at--;
            } else {
                act(at);
            }
            if (me != 0) pass(done[me][1]);
        } else if (me == 0) {
            lead(s->actor, is_end(s->op));
        }
        // Who forked tells the child's id before anybody else goes on.
        if (me == 0 && s->op == FORK)
            while (!__atomic_load_n(&board->pid[s->value], __ATOMIC_SEQ_CST)) sched_yield();
    }
    if (me != 0) pause();
}

static void read_script(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) die(path);
    char line[256], word[16];
    while (fgets(line, sizeof line, file)) {
        int id, op = 0;
        struct step s = {0};
        struct region r = {0};
        if (sscanf(line, "region %d %11s %ld", &id, r.kind, &r.pages) == 3) {
            if (id < 0 || id >= REGIONS) die("too many regions");
            region[id] = r;
        } else if (sscanf(line, "step %d %15s %d %ld %ld %ld", &s.actor, word, &s.region, &s.page, &s.pages,
                          &s.value) == 6) {
            while (op < OPS && strcmp(op_names[op], word)) op++;
            if (op == OPS || board->steps == STEPS) die(line);
            s.op = op;
            board->step[board->steps++] = s;
        } else {
            die(line);
        }
    }
    fclose(file);
}

static void make_files(const char *scratch) {
    long bytes = 256 * page_size;
    char *fill = malloc(bytes);
    memset(fill, 7, bytes);
    file_fd = open(scratch, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    memfd_fd = memfd_create("writer", MFD_CLOEXEC);
    if (file_fd < 0 || memfd_fd < 0) die(scratch);
    if (write(file_fd, fill, bytes) != bytes || write(memfd_fd, fill, bytes) != bytes) die("write");
    free(fill);
    source_fd = file_fd;
}

static void write_log(const char *path) {
    FILE *file = fopen(path, "w");
    if (!file) die(path);
    volatile char *untouched = must_map(NULL, page_size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    board->sink += *untouched;
    fprintf(file, "page %lx\nzero %llx\n", page_size, (unsigned long long)entry((char *)untouched));
    for (int i = 0; i < ACTORS; i++)
        if (board->pid[i]) fprintf(file, "process %x %x\n", i, board->pid[i]);
    for (int i = 0; i < board->steps; i++)
        if (board->step[i].op == STATS) fprintf(file, "stats %x %llx\n", i, (unsigned long long)board->stats[i]);
    for (int i = 0; i < board->seen_len; i++) {
        struct seen *s = &board->seen[i];
        fprintf(file, "seen %x %lx %llx %llx\n", s->step, s->page, (unsigned long long)s->before,
                (unsigned long long)s->after);
    }
    for (int i = 0; i < board->base_len; i++) {
        struct base *b = &board->base[i];
        fprintf(file, "base %x %x %x %llx\n", b->step, b->actor, b->region, (unsigned long long)b->address);
    }
    if (fclose(file)) die(path);
}

int main(int count, char **arguments) {
    if (count < 4) {
        dprintf(2, "usage: writer SCRIPT LOG SCRATCH-FILE\n");
        return 2;
    }
    page_size = sysconf(_SC_PAGESIZE);
    board = must_map(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    board->pid[0] = getpid();
    read_script(arguments[1]);
    make_files(arguments[3]);
    for (int i = 0; i < ACTORS; i++)
        if (pipe2(go[i], O_CLOEXEC) || pipe2(done[i], O_CLOEXEC)) die("pipe");
    open_pagemap();
    // The pages that a CPU made last are held by a batch of its own, and are then copied though nobody else has them.
    // One CPU for all, and the kernel looks through its batch.
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(sched_getcpu(), &set);
    if (sched_setaffinity(0, sizeof set, &set)) die("sched_setaffinity");
    for (int i = 0; i < REGIONS; i++) {
        struct region *r = &region[i];
        if (!r->pages) continue;
        r->elsewhere = apart(r->pages, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
        int late = !strcmp(r->kind, "late") || !strcmp(r->kind, "latefile") || !strcmp(r->kind, "grown");
        if (late) continue;
        make_region(r);
        note_base(0, i);
    }
    play();
    while (waitpid(-1, &last_status, 0) > 0) {}
    write_log(arguments[2]);
    return 0;
}
