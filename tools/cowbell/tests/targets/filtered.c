// Runs a program under a seccomp filter that refuses one system call with EPERM, as a container's does.
//
// usage: filtered userfaultfd|ptrace|kcmp|nothing PROGRAM ARGUMENT...
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int count, char **arguments) {
    if (count < 3) {
        return 2;
    }
    unsigned call = strcmp(arguments[1], "userfaultfd") == 0 ? SYS_userfaultfd
                    : strcmp(arguments[1], "ptrace") == 0    ? SYS_ptrace
                    : strcmp(arguments[1], "kcmp") == 0      ? SYS_kcmp
                                                             : 0xffffffff;
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof rules / sizeof *rules, .filter = rules};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        perror("seccomp");
        return 2;
    }
    execvp(arguments[2], arguments + 2);
    perror(arguments[2]);
    return 127;
}
