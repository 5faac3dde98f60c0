/* System calls that fail when a test asks for it. The library is loaded before the C library and called through ctypes.
 *
 * Each entry fails the requested number of times, and then passes every call on to the C library. Several threads may
 * call; the tests set up an entry on the thread whose call must fail. */

#define _GNU_SOURCE

#include <dlfcn.h>
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>

enum call { ACCEPT4, RECV, SEND, SENDMSG, EPOLL_CREATE1, EPOLL_CTL, SHUTDOWN, CALLS };

static const char *const names[CALLS] = {
    "accept4", "recv", "send", "sendmsg", "epoll_create1", "epoll_ctl", "shutdown",
};

static struct {
    int error; /* the errno to fail with */
    int skip;  /* calls that succeed before the first failure */
    int times; /* calls that still fail */
    int seen;  /* calls that have failed since the last fail_call() */
} plans[CALLS];

/* Return 0, or -1 for an unknown call. */
int
fail_call(const char *name, int error, int skip, int times)
{
    for (int call = 0; call < CALLS; call++)
        if (strcmp(names[call], name) == 0) {
            plans[call].error = error;
            plans[call].skip = skip;
            plans[call].times = times;
            plans[call].seen = 0;
            return 0;
        }
    return -1;
}

int
failed_calls(const char *name)
{
    for (int call = 0; call < CALLS; call++)
        if (strcmp(names[call], name) == 0)
            return plans[call].seen;
    return -1;
}

static int
fails(enum call call)
{
    if (plans[call].times == 0)
        return 0;
    if (plans[call].skip > 0) {
        plans[call].skip--;
        return 0;
    }
    plans[call].times--;
    plans[call].seen++;
    errno = plans[call].error;
    return 1;
}

#define REAL(call, type) ((type)dlsym(RTLD_NEXT, names[call]))

int
accept4(int descriptor, struct sockaddr *address, socklen_t *length, int flags)
{
    if (fails(ACCEPT4))
        return -1;
    return REAL(ACCEPT4, int (*)(int, struct sockaddr *, socklen_t *, int))(descriptor, address, length, flags);
}

ssize_t
recv(int descriptor, void *buffer, size_t length, int flags)
{
    if (fails(RECV))
        return -1;
    return REAL(RECV, ssize_t(*)(int, void *, size_t, int))(descriptor, buffer, length, flags);
}

ssize_t
send(int descriptor, const void *buffer, size_t length, int flags)
{
    /* Only the reactor's calls have this flag; a client in the same process does not use it. */
    if ((flags & MSG_DONTWAIT) && fails(SEND))
        return -1;
    return REAL(SEND, ssize_t(*)(int, const void *, size_t, int))(descriptor, buffer, length, flags);
}

ssize_t
sendmsg(int descriptor, const struct msghdr *message, int flags)
{
    if ((flags & MSG_DONTWAIT) && fails(SENDMSG))
        return -1;
    return REAL(SENDMSG, ssize_t(*)(int, const struct msghdr *, int))(descriptor, message, flags);
}

int
epoll_create1(int flags)
{
    if (fails(EPOLL_CREATE1))
        return -1;
    return REAL(EPOLL_CREATE1, int (*)(int))(flags);
}

int
epoll_ctl(int epoll, int operation, int descriptor, struct epoll_event *event)
{
    if (operation == EPOLL_CTL_ADD && fails(EPOLL_CTL))
        return -1;
    return REAL(EPOLL_CTL, int (*)(int, int, int, struct epoll_event *))(epoll, operation, descriptor, event);
}

int
shutdown(int descriptor, int how)
{
    if (fails(SHUTDOWN))
        return -1;
    return REAL(SHUTDOWN, int (*)(int, int))(descriptor, how);
}
