// A program of writers whose page, module, function, line and cause are known: it does what its plan says, and notes
// where each write went. It decides nothing; the functions that write are in the libraries that the plan names, and
// in the file that is compiled together with this one (library 0).
//
// usage: judge PLAN TRUTH
//
// The plan, one word list a line:
//   lib ID PATH                           library 0 has no line: it is the program
//   writer ID LIB BACKING PAGES FIRST STEP
//   do ACTOR OP A B C                     ops: see `enum op`
// A writer is the function w<ID> of its library; its i-th page is FIRST + i * STEP of its region. Actor 0 is the first
// process, and makes and fills all regions before anything else: it holds every page to its end, so that each page
// that another actor writes is copied. Actors run at the same time; each does its own lines in their order, then waits
// for those whom it forked, and leaves by _exit.
//
// The truth, one JSON object a line: `{"actor":A,"pid":P}` when an actor begins; for each stretch of writes
// `{"writer":W,"actor":A,"pid":P,"base":ADDRESS,"from":I,"to":J,"page":BYTES,"module":ADDRESS}` with the base of the
// region as it lay then, the pages from the I-th up to the J-th, and where the module's file begins.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LIBS = 64, WRITERS = 512, STEPS = 4096, RECORD = 64 };

enum op {
    OPEN,    // dlopen library A
    APART,   // dlmopen library A into a namespace of its own
    CLOSE,   // dlclose library A
    PUT,     // writer A writes its pages from B up to C
    THREAD,  // the same in a thread that ends right behind it
    MOVE,    // mremap of writer A's region to a place of its own
    UNMAP,   // munmap of writer A's region
    DROP,    // MADV_DONTNEED of writer A's pages from B up to C
    LAZY,    // MADV_FREE of writer A's pages from B up to C
    UNLINK,  // the file of library A is unlinked
    REPLACE, // the file of library B is renamed over that of library A
    FORK,    // actor A is forked
    SPAWN,   // posix_spawn of /bin/true
    HOLD,    // waits until actor 0 lets go
    RELEASE, // actor 0 lets go
    JIT,     // machine code that lies in memory of no file writes writer A's pages from B up to C
    NAMED,   // the same, with a /tmp/perf-PID.map that names it w<A>
    OPS
};
static const char *const op_names[OPS] = {"open",  "apart",  "close",   "put",  "thread", "move", "unmap",   "drop", "lazy",
                                          "unlink", "replace", "fork", "spawn",  "hold", "release", "jit",  "named"};

// The one signature of all writers: pages `first + i * step` of `base` for each i from `from` up to `to`; `fd` is
// /dev/zero, for those that let the kernel write.
typedef void (*Write)(char *base, long first, long step, long from, long to, long page, int fd);

struct writer {
    int lib;
    char backing[8];
    long pages, first, step;
    char *base;
    char *elsewhere; // reserved for MOVE
};

struct step {
    int actor, op;
    long a, b, c;
};

static struct writer writers[WRITERS];
static char lib_path[LIBS][256];
static void *lib_handle[LIBS];
static struct step *steps; // in shared memory: reading it copies nothing, and so does writing
static int step_count, zero_fd, truth_fd, hold_fd[2];
static long page;
static int me;

static void die(const char *what) {
    const char *why = dlerror();
    dprintf(2, "judge: actor %d: %s: %s\n", me, what, why ? why : strerror(errno));
    _exit(99);
}

static void note(const char *line, int length) {
    if (write(truth_fd, line, length) != length) die("the truth");
}

static void fill(char *base, long pages) {
    for (long at = 0; at < pages * page; at += RECORD) {
        *(char **)(base + at) = base + at;      // a pointer
        *(double *)(base + at + 8) = at * 1.5;  // a number
        *(int *)(base + at + 16) = 1;           // a state
        *(int *)(base + at + 20) = 100;
        memcpy(base + at + 24, "hello, reader", 14);
        *(long *)(base + at + 48) = 5;          // an atomic count
        *(int *)(base + at + 56) = 2;           // a reference count
    }
}

// Fenced, so that no other mapping becomes one with it, and in pages of the usual size.
static char *apart(long pages, int flags, int fd) {
    char *room = mmap(NULL, (pages + 2) * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) die("mmap");
    char *base = mmap(room + page, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | flags, fd, 0);
    if (base == MAP_FAILED) die("mmap");
    madvise(base, pages * page, MADV_NOHUGEPAGE); // refused where there are none
    return base;
}

static void *in_library(int lib, const char *name) {
    void *found = dlsym(lib ? lib_handle[lib] : RTLD_DEFAULT, name);
    if (!found) die(name);
    return found;
}

static void make(int id) {
    struct writer *w = &writers[id];
    char name[32];
    if (!strcmp(w->backing, "anon")) {
        w->base = apart(w->pages, MAP_ANONYMOUS, -1);
    } else if (!strcmp(w->backing, "memfd")) {
        int fd = memfd_create("judge", MFD_CLOEXEC);
        if (fd < 0 || ftruncate(fd, w->pages * page)) die("memfd");
        w->base = apart(w->pages, 0, fd);
        close(fd);
    } else if (!strcmp(w->backing, "data") || !strcmp(w->backing, "bss")) { // static data of a library that is open from the beginning
        snprintf(name, sizeof name, "w%d_area", id);
        w->base = in_library(w->lib, name);
    } else {
        die(w->backing);
    }
    fill(w->base, w->pages);
    w->elsewhere = apart(w->pages, MAP_ANONYMOUS, -1);
}

static void *module_of(void *code) {
    Dl_info info;
    return dladdr(code, &info) ? info.dli_fbase : NULL;
}

static void note_put(int id, long from, long to, void *module) {
    char line[256];
    int n = snprintf(line, sizeof line,
                     "{\"writer\":%d,\"actor\":%d,\"pid\":%d,\"base\":%lu,\"from\":%ld,\"to\":%ld,\"page\":%ld,\"module\":%lu}\n",
                     id, me, getpid(), (unsigned long)writers[id].base, from, to, page, (unsigned long)module);
    note(line, n);
}

struct call {
    Write write;
    struct writer *w;
    long from, to;
};

static void *called(void *argument) {
    struct call *c = argument;
    c->write(c->w->base, c->w->first, c->w->step, c->from, c->to, page, zero_fd);
    return NULL;
}

static void put(int id, long from, long to, int in_thread) {
    char name[32];
    snprintf(name, sizeof name, "w%d", id);
    struct call call = {(Write)in_library(writers[id].lib, name), &writers[id], from, to};
    note_put(id, from, to, module_of((void *)call.write));
    pthread_t thread;
    if (!in_thread) {
        called(&call);
    } else if (pthread_create(&thread, NULL, called, &call) || pthread_join(thread, NULL)) {
        die("pthread");
    }
}

static void put_by_generated_code(int id, long from, long to, int named) {
#if defined(__x86_64__)
    // for (; n; n--, p += stride) *p = 7;
    static const unsigned char code[] = {0xc6, 0x07, 0x07, 0x48, 0x01, 0xf7, 0x48, 0xff, 0xca, 0x75, 0xf5, 0xc3};
    struct writer *w = &writers[id];
    char *at = mmap(NULL, page, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) die("mmap of code");
    memcpy(at, code, sizeof code);
    if (named) {
        char path[64], line[64];
        snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
        int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        int n = snprintf(line, sizeof line, "%lx %zx w%d\n", (unsigned long)at, sizeof code, id);
        if (fd < 0 || write(fd, line, n) != n) die(path);
        close(fd);
    }
    note_put(id, from, to, at);
    ((void (*)(char *, long, long))at)(w->base + (w->first + from * w->step) * page, w->step * page, to - from);
#else
    die("machine code is written for x86-64 only");
#endif
}

static void advise(int id, long from, long to, int advice) {
    struct writer *w = &writers[id];
    for (long i = from; i < to; i++)
        if (madvise(w->base + (w->first + i * w->step) * page, page, advice)) die("madvise");
}

// Nothing else shall come to lie where a region was: an address stands for one page. Libraries may share addresses.
static void fence(char *at, long bytes) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    if (mmap(at, bytes, PROT_NONE, flags, -1, 0) == MAP_FAILED) die("mmap");
}

static void move(struct writer *w) {
    long bytes = w->pages * page;
    if (mremap(w->base, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, w->elsewhere) == MAP_FAILED) die("mremap");
    fence(w->base, bytes);
    w->base = w->elsewhere;
}

static void unmap(const struct writer *w) {
    if (munmap(w->base, w->pages * page)) die("munmap");
    fence(w->base, w->pages * page);
}

static void play(void);

static void fork_actor(int actor) {
    pid_t pid = fork();
    if (pid < 0) die("fork");
    if (pid > 0) return;
    me = actor;
    char line[64];
    note(line, snprintf(line, sizeof line, "{\"actor\":%d,\"pid\":%d}\n", me, getpid()));
    play();
}

static void spawn(void) {
    static char *const arguments[] = {"/bin/true", NULL};
    pid_t pid;
    if (posix_spawn(&pid, "/bin/true", NULL, NULL, arguments, NULL)) die("posix_spawn");
    if (waitpid(pid, NULL, 0) != pid) die("waitpid");
}

static void act(const struct step *s) {
    struct writer *w = &writers[s->a % WRITERS];
    void **handle = &lib_handle[s->a % LIBS];
    char byte;
    switch (s->op) {
    case OPEN: if (!(*handle = dlopen(lib_path[s->a], RTLD_NOW | RTLD_LOCAL))) die("dlopen"); break;
    case APART: if (!(*handle = dlmopen(LM_ID_NEWLM, lib_path[s->a], RTLD_NOW))) die("dlmopen"); break;
    case CLOSE: if (dlclose(*handle)) die("dlclose"); break;
    case PUT: put((int)s->a, s->b, s->c, 0); break;
    case THREAD: put((int)s->a, s->b, s->c, 1); break;
    case MOVE: move(w); break;
    case UNMAP: unmap(w); break;
    case DROP: advise((int)s->a, s->b, s->c, MADV_DONTNEED); break;
    case LAZY: advise((int)s->a, s->b, s->c, MADV_FREE); break;
    case UNLINK: if (unlink(lib_path[s->a])) die("unlink"); break;
    case REPLACE: if (rename(lib_path[s->b], lib_path[s->a])) die("rename"); break;
    case FORK: fork_actor((int)s->a); break;
    case SPAWN: spawn(); break;
    case HOLD:
        close(hold_fd[1]);
        if (read(hold_fd[0], &byte, 1) < 0) die("read");
        break;
    case RELEASE: close(hold_fd[1]); break;
    case JIT: put_by_generated_code((int)s->a, s->b, s->c, 0); break;
    case NAMED: put_by_generated_code((int)s->a, s->b, s->c, 1); break;
    }
}

static void play(void) {
    int mine = me; // a forked actor plays its own lines to the end and does not come back
    for (int i = 0; i < step_count; i++)
        if (steps[i].actor == mine) act(&steps[i]);
    int status;
    while (waitpid(-1, &status, 0) > 0 || errno == EINTR)
        if (status) die("an actor failed");
    _exit(0);
}

static int op_of(const char *name) {
    for (int op = 0; op < OPS; op++)
        if (!strcmp(name, op_names[op])) return op;
    die(name);
    return -1;
}

static void read_plan(const char *path) {
    FILE *plan = fopen(path, "re");
    if (!plan) die(path);
    char line[512], name[16];
    while (fgets(line, sizeof line, plan)) {
        int id, lib;
        struct writer w = {0};
        struct step s;
        if (sscanf(line, "lib %d %255s", &id, lib_path[0]) == 2 && id > 0 && id < LIBS) {
            strcpy(lib_path[id], lib_path[0]);
        } else if (sscanf(line, "writer %d %d %7s %ld %ld %ld", &id, &lib, w.backing, &w.pages, &w.first, &w.step) == 6) {
            if (id < 0 || id >= WRITERS) die("too many writers");
            w.lib = lib;
            writers[id] = w;
        } else if (sscanf(line, "do %d %15s %ld %ld %ld", &s.actor, name, &s.a, &s.b, &s.c) == 5) {
            if (step_count >= STEPS) die("too many steps");
            s.op = op_of(name);
            steps[step_count++] = s;
        } else {
            die(line);
        }
    }
    fclose(plan);
}

int main(int argc, char **argv) {
    if (argc != 3) die("usage: judge PLAN TRUTH");
    page = sysconf(_SC_PAGESIZE);
    steps = mmap(NULL, STEPS * sizeof *steps, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (steps == MAP_FAILED || pipe(hold_fd)) die("mmap, pipe");
    read_plan(argv[1]);
    truth_fd = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    zero_fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    if (truth_fd < 0 || zero_fd < 0) die("open");
    // What is open before the first fork is opened before the regions are made: some of them lie in libraries.
    int at = 0;
    for (; at < step_count && steps[at].actor == 0 && steps[at].op <= APART; at++) act(&steps[at]);
    for (int i = 0; i < at; i++) steps[i].actor = -1;
    for (int id = 0; id < WRITERS; id++)
        if (writers[id].pages) make(id);
    char line[64];
    note(line, snprintf(line, sizeof line, "{\"actor\":0,\"pid\":%d}\n", getpid()));
    play();
}
