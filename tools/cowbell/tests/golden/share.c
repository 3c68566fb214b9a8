/* A parent with 64 pages. `share`: a child writes 10 of them, another rewrites 6 with what they hold. `share exec`: the
 * first one's child executes a program. `share wait`: a child writes a page now and then until it is killed. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 64, PAGE = 4096 };
static char *data;

__attribute__((noinline)) static void change(int pages)
{
	for (int i = 0; i < pages; i++)
		memset(data + i * PAGE, 2, 1000);
}

__attribute__((noinline)) static void rewrite(int pages)
{
	for (int i = 0; i < pages; i++)
		((volatile char *)data)[i * PAGE] = 1;
}

static void child(void (*body)(int), int pages)
{
	if (fork() == 0) {
		body(pages);
		_exit(0);
	}
	wait(NULL);
}

static void execute(int pages)
{
	change(pages);
	execl("/bin/true", "true", (char *)NULL);
}

static void linger(int pages)
{
	for (int i = 0; i < 600; i++) {
		data[i % pages * PAGE] = 3;
		usleep(20000);
	}
}

int main(int argc, char **argv)
{
	data = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(data, 1, PAGES * PAGE);
	if (argc > 1 && !strcmp(argv[1], "exec")) {
		child(execute, 10);
	} else if (argc > 1) {
		child(linger, PAGES);
	} else {
		child(change, 10);
		child(rewrite, 6);
	}
	return 0;
}
