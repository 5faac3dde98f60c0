"""The system calls of Linux that the epoll modules make."""

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t

from wshub.links.link cimport iovec


cdef extern from "sys/types.h" nogil:
    ctypedef Py_ssize_t ssize_t

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epoll_fd, int operation, int descriptor, epoll_event *event)
    int epoll_wait(int epoll_fd, epoll_event *events, int count, int timeout)
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLET

cdef extern from "sys/socket.h" nogil:
    cdef struct sockaddr:
        unsigned short sa_family
    ctypedef unsigned int socklen_t
    cdef struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    int accept4(int descriptor, sockaddr *address, socklen_t *length, int flags)
    ssize_t recv(int descriptor, void *buffer, size_t length, int flags)
    ssize_t send(int descriptor, const void *buffer, size_t length, int flags)
    ssize_t sendmsg(int descriptor, const msghdr *message, int flags)
    int shutdown(int descriptor, int how)
    int getpeername(int descriptor, sockaddr *address, socklen_t *length)
    int getsockopt(int descriptor, int level, int name, void *value, socklen_t *length)
    int SOL_SOCKET, SO_ERROR
    int SOCK_NONBLOCK, SOCK_CLOEXEC, MSG_NOSIGNAL, MSG_DONTWAIT, SHUT_WR, AF_INET, AF_INET6

cdef extern from "sys/ioctl.h" nogil:
    int ioctl(int descriptor, unsigned long request, int *result)
    # Of a socket: the bytes sent that the peer has not acknowledged.
    unsigned long TIOCOUTQ

cdef extern from "unistd.h" nogil:
    int close(int descriptor)
