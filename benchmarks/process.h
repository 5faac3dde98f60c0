/* Reads the time, and the figures of processes: the server's and the load generator's own. */
#ifndef PROCESS_H
#define PROCESS_H

#include <ctype.h>
#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "load: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    exit(1);
}

static void *must(void *memory)
{
    if (!memory)
        fail("out of memory");
    return memory;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* The server's CPU time, of all its threads; user and system only in clock ticks. */
struct cpu {
    double total, user, system;
};

static struct cpu server_cpu(int pid)
{
    struct cpu cpu = {0};
    char path[320], text[1024];
    if (!pid)
        return cpu;
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    if (!tasks)
        fail("the server (process %d) is gone", pid);
    for (struct dirent *task; (task = readdir(tasks));) {
        unsigned long long nanoseconds;
        if (!isdigit((unsigned char)task->d_name[0]))
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", pid, task->d_name);
        FILE *file = fopen(path, "r");
        if (!file || fscanf(file, "%llu", &nanoseconds) != 1)
            fail("cannot read %s", path);
        fclose(file);
        cpu.total += nanoseconds * 1e-9;
    }
    closedir(tasks);

    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file || !fgets(text, sizeof text, file))
        fail("cannot read %s", path);
    fclose(file);
    /* The command's name, in parentheses, may hold spaces. */
    unsigned long long user, system;
    char *after_name = strrchr(text, ')');
    if (!after_name ||
        sscanf(after_name + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &system) != 2)
        fail("cannot read %s", path);
    cpu.user = (double)user / sysconf(_SC_CLK_TCK);
    cpu.system = (double)system / sysconf(_SC_CLK_TCK);
    return cpu;
}

static long server_resident_kb(int pid)
{
    char path[64], line[256];
    long kb = -1;
    if (!pid)
        return 0;
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *file = fopen(path, "r");
    if (!file)
        fail("the server (process %d) is gone", pid);
    while (kb < 0 && fgets(line, sizeof line, file))
        sscanf(line, "VmRSS: %ld", &kb);
    fclose(file);
    if (kb < 0)
        fail("no VmRSS in %s", path);
    return kb;
}

static double own_cpu(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

#endif
