/* A process tree that copies known pages. The one argument is a script, one word an action:
 *   wA-B  write pages A to B of the heap        zA-B  read them
 *   fA-B  write pages A to B of a private mapping of a memfd
 *   dA-B  give pages A to B of the heap back    x     end, unreaped        e  execute cat
 *   (     fork a child that does what follows, up to its )
 *   v     make a child that runs in this memory     p     make a sibling that does
 *   D     close this process to others of its user
 *   r     reserve two tebibytes, one of them writable, and write its first and its last page
 *   n     map 64 new pages, where the kernel likes, and write them
 *   t     end the main thread, leave another
 * Each process writes its id to standard output as it starts; the first writes `ready` when all have done their
 * part. All wait for the end of standard input then. Nothing here allocates: the heap holds the script's pages only.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HEAP_PAGES = 400, FILE_PAGES = 64, NEW_PAGES = 64 };
static volatile char *heap, *file;
static long page;
static int to_parent = -1;
static char stack[1 << 16] __attribute__((aligned(16)));

static void say(const char *text) {
  if (write(1, text, strlen(text)) < 0) _exit(3);
}

static void say_pid(long pid) {
  char text[24], *at = text + sizeof text;
  *--at = 0;
  *--at = '\n';
  do *--at = '0' + pid % 10; while (pid /= 10);
  say(at);
}

static void wait_for_end(void) {
  char byte;
  while (read(0, &byte, 1) > 0) {}
  _exit(0);
}

static int in_same_memory(void *unused) {
  (void)unused;
  wait_for_end();
  return 0;
}

static void *last_thread(void *main_thread) {
  /* The main thread is gone when it can be joined. */
  pthread_join(*(pthread_t *)main_thread, NULL);
  say("ready\n");
  wait_for_end();
  return NULL;
}

/* The matching parenthesis of the one before `at`. */
static char *closing(char *at) {
  for (int open = 1; *at; at++) {
    open += (*at == '(') - (*at == ')');
    if (!open) return at;
  }
  _exit(4);
}

static void fork_child_or_go_on(char **at) {
  char byte = 0;
  int done[2];
  if (pipe2(done, O_CLOEXEC)) _exit(5);
  pid_t pid = fork();
  if (pid < 0) _exit(6);
  if (pid == 0) {
    to_parent = done[1];
    say_pid(getpid());
    return;
  }
  close(done[1]);
  /* A byte when the child waits for the end or ends, the pipe's end when it executes. */
  if (read(done[0], &byte, 1) == 1 && byte == 'x') {
    siginfo_t info;
    waitid(P_PID, pid, &info, WEXITED | WNOWAIT);
  }
  close(done[0]);
  *at = closing(*at) + 1;
}

static void tell_parent(const char *byte) {
  if (write(to_parent, byte, 1) < 0) _exit(10);
}

static void act(char **at) {
  static char *cat[] = {"cat", NULL};
  static pthread_t main_thread;
  pthread_t thread;
  char action = *(*at)++;
  if (action == ' ') return;
  if (action == '(') { fork_child_or_go_on(at); return; }
  if (action == 'x') { tell_parent("x"); _exit(0); }
  if (action == 'e') { execvp("cat", cat); _exit(7); }
  if (action == 'v' || action == 'p') {
    int parent = action == 'p' ? CLONE_PARENT : 0;
    say_pid(clone(in_same_memory, stack + sizeof stack, CLONE_VM | parent | SIGCHLD, NULL));
    return;
  }
  if (action == 'D') { prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); return; }
  if (action == 'r') {
    size_t bytes = (size_t)1 << 40;
    mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char *wide = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (wide == MAP_FAILED) _exit(11);
    wide[0] = wide[bytes - 1] = 1;
    return;
  }
  if (action == 'n') {
    char *new = mmap(NULL, NEW_PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (new == MAP_FAILED) _exit(12);
    for (long nth = 0; nth < NEW_PAGES; nth++) new[nth * page] = 1;
    return;
  }
  if (action == 't') {
    main_thread = pthread_self();
    if (pthread_create(&thread, NULL, last_thread, &main_thread)) _exit(8);
    pthread_exit(NULL);
  }
  long from = strtol(*at, at, 10), to = strtol(*at + 1, at, 10);
  if (action == 'd') madvise((void *)(heap + from * page), (to - from + 1) * page, MADV_DONTNEED);
  for (long nth = from; nth <= to; nth++) {
    if (action == 'w') heap[nth * page] += 1;
    if (action == 'z') (void)heap[nth * page];
    if (action == 'f') file[nth * page] += 1;
  }
}

int main(int count, char **arguments) {
  if (count != 2) return 2;
  page = sysconf(_SC_PAGESIZE);
  prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
  char *end = sbrk(0);
  sbrk(-(long)end & (page - 1));
  heap = sbrk(HEAP_PAGES * page);
  int memfd = memfd_create("cowbell-snapshot", 0);
  if (ftruncate(memfd, FILE_PAGES * page)) return 9;
  file = mmap(NULL, FILE_PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE, memfd, 0);
  pid_t first = getpid();
  say_pid(first);
  char *at = arguments[1];
  while (*at && *at != ')') act(&at);
  if (getpid() == first) say("ready\n");
  else tell_parent("r");
  wait_for_end();
}
