/*
 * The limit: a bare WebSocket server on epoll, single-threaded, with nothing above the frames.
 *
 * Left out on purpose: UTF-8 validation, extensions, keepalive, origin checks, rooms. Fragments are echoed frame by
 * frame; in broadcast mode they close the connection, since those of two senders must not interleave.
 *
 * One arena serves a whole epoll batch. A read lands at the arena's tail and is unmasked there. The reply's header is
 * shorter than the request's, and replaces its end: the reply needs no copy and no allocation. At the end of the batch
 * one call sends each connection its part of the arena. In broadcast mode that part is the same for all.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    BATCH = 1024,
    BACKLOG = 4096,
    ACCEPT_BURST = 256,
    READ_SIZE = 64 * 1024,
    ARENA_SIZE = 1024 * 1024,
    MAX_REQUEST = 8 * 1024,
    MAX_MESSAGE = 16 * 1024 * 1024,
    MAX_UNSENT = 64 * 1024 * 1024,
    MAX_CLIENT_HEADER = 14,
};

enum { CONTINUATION = 0, TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };

struct conn {
    int fd;
    uint32_t index; /* in `conns`, once open */
    bool open;      /* the 101 has been sent */
    bool closing;   /* close once everything queued is sent */
    bool dirty;
    bool writing; /* epoll watches for EPOLLOUT */
    struct conn *next;
    /* This batch's part of the arena. In broadcast mode only `start` counts: where the connection joined. */
    uint8_t *start;
    uint32_t length;
    /* An incomplete frame; `in_size` above READ_SIZE means that reads go straight into it. */
    uint32_t in_length, in_size;
    uint8_t *in;
    /* The rest that the kernel did not take. */
    uint8_t *unsent;
    uint32_t unsent_from, unsent_to, unsent_size;
};

static bool broadcasting;
static int epoll_fd;
static uint8_t *arena, *arena_start, *arena_tail;
static struct conn *dirty, *dead;
static struct conn **conns;
static uint32_t conn_count, conn_room;

static void *must(void *memory)
{
    if (!memory) {
        fprintf(stderr, "limit: out of memory\n");
        exit(1);
    }
    return memory;
}

static void watch(struct conn *c, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

/* The memory stays until the batch ends: a later event of it, or the dirty list, may still point here. */
static void drop(struct conn *c)
{
    if (c->fd < 0)
        return;
    close(c->fd);
    c->fd = -1;
    if (c->open) {
        conns[c->index] = conns[--conn_count];
        conns[c->index]->index = c->index;
    }
    free(c->in);
    free(c->unsent);
    c->in = c->unsent = NULL;
    if (!c->dirty) {
        c->next = dead;
        dead = c;
    }
}

static void keep_unsent(struct conn *c, const uint8_t *data, size_t length)
{
    size_t held = c->unsent_to - c->unsent_from;
    if (held + length > MAX_UNSENT) {
        drop(c);
        return;
    }
    if (c->unsent_to + length > c->unsent_size) {
        uint32_t size = held + length < 4096 ? 8192 : 2 * (held + length);
        uint8_t *grown = must(malloc(size));
        if (held)
            memcpy(grown, c->unsent + c->unsent_from, held);
        free(c->unsent);
        c->unsent = grown;
        c->unsent_size = size;
        c->unsent_from = 0;
        c->unsent_to = held;
    }
    memcpy(c->unsent + c->unsent_to, data, length);
    c->unsent_to += length;
}

static void transmit(struct conn *c, const uint8_t *data, size_t length)
{
    if (c->fd < 0)
        return;
    if (!c->unsent && length) {
        ssize_t sent = send(c->fd, data, length, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) {
            drop(c);
            return;
        }
        if (sent > 0) {
            data += sent;
            length -= sent;
        }
    }
    if (length)
        keep_unsent(c, data, length);
    if (c->fd < 0)
        return;
    if (c->unsent && !c->writing) {
        c->writing = true;
        /* An echo peer that does not read is not read from: that bounds what is held for it. */
        watch(c, broadcasting ? EPOLLIN | EPOLLOUT : EPOLLOUT);
    }
    if (c->closing && !c->unsent)
        drop(c);
}

static void on_writable(struct conn *c)
{
    if (!c->unsent)
        return;
    ssize_t sent = send(c->fd, c->unsent + c->unsent_from, c->unsent_to - c->unsent_from, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN)
            drop(c);
        return;
    }
    c->unsent_from += sent;
    if (c->unsent_from < c->unsent_to)
        return;
    free(c->unsent);
    c->unsent = NULL;
    c->unsent_from = c->unsent_to = c->unsent_size = 0;
    c->writing = false;
    if (c->closing)
        drop(c);
    else
        watch(c, EPOLLIN);
}

static void flush(void)
{
    if (broadcasting && arena_tail > arena_start)
        /* Backwards, because a connection that is dropped is replaced by the last one. */
        for (uint32_t i = conn_count; i-- > 0;) {
            struct conn *c = conns[i];
            const uint8_t *from = c->start ? c->start : arena_start;
            c->start = NULL;
            if (!c->closing)
                transmit(c, from, arena_tail - from);
        }
    while (dirty) {
        struct conn *c = dirty;
        dirty = c->next;
        c->dirty = false;
        if (c->fd < 0) {
            c->next = dead;
            dead = c;
            continue;
        }
        size_t length = c->length;
        c->length = 0;
        transmit(c, c->start, length);
        c->start = NULL;
    }
    arena_start = arena_tail = arena;
}

static void mark_dirty(struct conn *c)
{
    if (!c->dirty) {
        c->dirty = true;
        c->next = dirty;
        dirty = c;
    }
}

static inline void unmask(uint8_t *payload, size_t length, uint32_t key)
{
    uint64_t wide = key | (uint64_t)key << 32;
    size_t i = 0;
    for (; i + 8 <= length; i += 8) {
        uint64_t word;
        memcpy(&word, payload + i, 8);
        word ^= wide;
        memcpy(payload + i, &word, 8);
    }
    for (; i < length; i++)
        payload[i] ^= (uint8_t)(key >> 8 * (i & 3));
}

static inline size_t header_length(size_t length)
{
    return length < 126 ? 2 : length < 65536 ? 4 : 10;
}

static inline void write_header(uint8_t *at, uint8_t first, size_t length)
{
    at[0] = first;
    if (length < 126) {
        at[1] = length;
    } else if (length < 65536) {
        at[1] = 126;
        at[2] = length >> 8;
        at[3] = length;
    } else {
        at[1] = 127;
        uint64_t big = __builtin_bswap64(length);
        memcpy(at + 2, &big, 8);
    }
}

struct frame {
    uint8_t first;
    uint32_t header; /* its length, the mask included */
    uint32_t length;
    uint32_t key;
};

enum parsed { INVALID = -1, INCOMPLETE = 0, COMPLETE = 1 };

/* COMPLETE means the header only. */
static inline enum parsed parse_header(const uint8_t *data, size_t available, struct frame *frame)
{
    if (available < 2)
        return INCOMPLETE;
    uint8_t opcode = data[0] & 15;
    uint64_t length = data[1] & 127;
    uint32_t header = 6;
    if (data[0] & 0x70 || !(data[1] & 0x80) || (opcode > BINARY && opcode < CLOSE) || opcode > PONG)
        return INVALID;
    if (opcode >= CLOSE && (length > 125 || !(data[0] & 0x80)))
        return INVALID;
    if (length == 126) {
        if (available < 4)
            return INCOMPLETE;
        header = 8;
        length = (uint64_t)data[2] << 8 | data[3];
        if (length < 126)
            return INVALID;
    } else if (length == 127) {
        if (available < 10)
            return INCOMPLETE;
        header = 14;
        memcpy(&length, data + 2, 8);
        length = __builtin_bswap64(length);
        if (length < 65536 || length > MAX_MESSAGE)
            return INVALID;
    }
    if (available < header)
        return INCOMPLETE;
    frame->first = data[0];
    frame->header = header;
    frame->length = length;
    memcpy(&frame->key, data + header - 4, 4);
    return COMPLETE;
}

/* Unmasks a whole frame in place and puts the server's header before its payload; returns where that begins. */
static inline uint8_t *turn(uint8_t *data, const struct frame *frame)
{
    uint8_t *payload = data + frame->header;
    unmask(payload, frame->length, frame->key);
    uint8_t *reply = payload - header_length(frame->length);
    write_header(reply, frame->first, frame->length);
    return reply;
}

/* For what belongs to one connection while the arena belongs to all, and for frames too large for the arena. */
static void send_alone(struct conn *c, const uint8_t *data, size_t length)
{
    flush();
    transmit(c, data, length);
}

static void on_large_frame(struct conn *c)
{
    uint8_t *data = c->in;
    struct frame frame = {0};
    c->in = NULL;
    c->in_length = c->in_size = 0;
    parse_header(data, MAX_CLIENT_HEADER, &frame);
    uint8_t *reply = turn(data, &frame);
    size_t length = header_length(frame.length) + frame.length;
    if (!broadcasting) {
        send_alone(c, reply, length);
    } else if (frame.first & 0x80 && (frame.first & 15) != CONTINUATION) {
        flush();
        for (uint32_t i = conn_count; i-- > 0;)
            if (!conns[i]->closing)
                transmit(conns[i], reply, length);
    } else {
        drop(c);
    }
    free(data);
}

static void save_incomplete(struct conn *c, const uint8_t *data, size_t length, const struct frame *frame)
{
    size_t whole = frame ? (size_t)frame->header + frame->length : 0;
    c->in_size = whole > READ_SIZE ? whole : length;
    c->in_length = length;
    c->in = must(malloc(c->in_size));
    memcpy(c->in, data, length);
}

/* `data` lies at the arena's tail. Replies are moved together only from the second on. */
static void on_frames(struct conn *c, uint8_t *data, uint8_t *end)
{
    while (data < end && !c->closing && c->fd >= 0) {
        struct frame frame;
        enum parsed parsed = parse_header(data, end - data, &frame);
        if (parsed == INVALID) {
            drop(c);
            return;
        }
        if (parsed == INCOMPLETE || frame.length > (size_t)(end - data) - frame.header) {
            save_incomplete(c, data, end - data, parsed == COMPLETE ? &frame : NULL);
            return;
        }
        uint8_t *next = data + frame.header + frame.length;
        uint8_t *reply = turn(data, &frame);
        size_t length = next - reply;
        uint8_t opcode = frame.first & 15;
        data = next;
        if (opcode == PONG)
            continue;
        if (opcode == PING)
            reply[0] = 0x80 | PONG;
        if (opcode == CLOSE)
            c->closing = true;
        if (broadcasting) {
            if (opcode >= CLOSE) {
                send_alone(c, reply, length);
                continue;
            }
            if (opcode == CONTINUATION || !(frame.first & 0x80)) {
                drop(c);
                return;
            }
            if (arena_tail == arena_start)
                arena_start = arena_tail = reply;
        } else if (!c->length) {
            c->start = arena_tail = reply;
            mark_dirty(c);
        }
        if (arena_tail != reply)
            memmove(arena_tail, reply, length);
        arena_tail += length;
        c->length += length;
    }
}

static inline uint32_t rotate(uint32_t value, int by)
{
    return value << by | value >> (32 - by);
}

/* SHA-1 of at most 119 bytes, which is two blocks. */
static void sha1(const char *text, size_t length, uint8_t digest[20])
{
    uint8_t block[128] = {0};
    size_t size = length < 56 ? 64 : 128;
    uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    memcpy(block, text, length);
    block[length] = 0x80;
    block[size - 2] = length >> 5;
    block[size - 1] = length << 3;
    for (size_t at = 0; at < size; at += 64) {
        uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 16; i++) {
            memcpy(&w[i], block + at + 4 * i, 4);
            w[i] = __builtin_bswap32(w[i]);
        }
        for (int i = 16; i < 80; i++)
            w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        for (int i = 0; i < 80; i++) {
            uint32_t f = i < 20   ? ((b & c) | (~b & d)) + 0x5a827999
                         : i < 40 ? (b ^ c ^ d) + 0x6ed9eba1
                         : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8f1bbcdc
                                  : (b ^ c ^ d) + 0xca62c1d6;
            uint32_t next = rotate(a, 5) + f + e + w[i];
            e = d;
            d = c;
            c = rotate(b, 30);
            b = a;
            a = next;
        }
        h[0] += a;
        h[1] += b;
        h[2] += c;
        h[3] += d;
        h[4] += e;
    }
    for (int i = 0; i < 5; i++) {
        uint32_t big = __builtin_bswap32(h[i]);
        memcpy(digest + 4 * i, &big, 4);
    }
}

static void base64_of_20(const uint8_t in[20], char out[28])
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < 7; i++) {
        uint32_t three = in[3 * i] << 16 | in[3 * i + 1] << 8 | (i < 6 ? in[3 * i + 2] : 0);
        out[4 * i] = digits[three >> 18];
        out[4 * i + 1] = digits[three >> 12 & 63];
        out[4 * i + 2] = digits[three >> 6 & 63];
        out[4 * i + 3] = i < 6 ? digits[three & 63] : '=';
    }
}

/* Returns the value of a header that `head`, ended by an empty line, holds; or NULL. */
static const char *find_header(const char *head, const char *end, const char *name, size_t name_length)
{
    for (const char *line = memchr(head, '\n', end - head); line && ++line < end;
         line = memchr(line, '\n', end - line)) {
        if ((size_t)(end - line) > name_length && !strncasecmp(line, name, name_length)) {
            const char *value = line + name_length;
            while (*value == ' ' || *value == '\t')
                value++;
            return value;
        }
    }
    return NULL;
}

static void on_request(struct conn *c, uint8_t *data, uint8_t *end)
{
    static const char name[] = "Sec-WebSocket-Key:";
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    char answer[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    "Sec-WebSocket-Accept: ............................\r\n\r\n";
    uint8_t *head_end = memmem(data, end - data, "\r\n\r\n", 4);
    if (!head_end) {
        if (end - data > MAX_REQUEST)
            drop(c);
        else
            save_incomplete(c, data, end - data, NULL);
        return;
    }
    head_end += 4;
    const char *key = find_header((char *)data, (char *)head_end, name, sizeof name - 1);
    if (memcmp(data, "GET ", 4) || !key || (char *)head_end - key < 28) {
        drop(c);
        return;
    }
    char text[24 + sizeof guid];
    uint8_t digest[20];
    memcpy(text, key, 24);
    memcpy(text + 24, guid, sizeof guid);
    sha1(text, 24 + sizeof guid - 1, digest);
    base64_of_20(digest, answer + sizeof answer - 1 - 4 - 28);

    transmit(c, (uint8_t *)answer, sizeof answer - 1);
    if (c->fd < 0)
        return;
    if (conn_count == conn_room) {
        conn_room = conn_room ? 2 * conn_room : 64;
        conns = must(realloc(conns, conn_room * sizeof *conns));
    }
    c->open = true;
    c->index = conn_count;
    conns[conn_count++] = c;
    if (broadcasting && arena_tail > arena_start)
        c->start = arena_tail;
    on_frames(c, head_end, end);
}

static void on_readable(struct conn *c)
{
    if (c->in_size > READ_SIZE) {
        ssize_t got = recv(c->fd, c->in + c->in_length, c->in_size - c->in_length, 0);
        if (got <= 0) {
            if (got == 0 || errno != EAGAIN)
                drop(c);
            return;
        }
        c->in_length += got;
        if (c->in_length == c->in_size)
            on_large_frame(c);
        return;
    }
    if (arena + ARENA_SIZE - arena_tail < 2 * READ_SIZE)
        flush();
    uint8_t *data = arena_tail;
    size_t held = c->in_length;
    ssize_t got = recv(c->fd, data + held, READ_SIZE, 0);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN)
            drop(c);
        return;
    }
    if (held) {
        memcpy(data, c->in, held);
        free(c->in);
        c->in = NULL;
        c->in_length = c->in_size = 0;
    }
    if (c->open)
        on_frames(c, data, data + held + got);
    else
        on_request(c, data, data + held + got);
}

static void on_connections(int listener)
{
    for (int i = 0; i < ACCEPT_BURST; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EMFILE) {
                fprintf(stderr, "limit: out of file descriptors\n");
                exit(1);
            }
            return;
        }
        struct conn *c = must(calloc(1, sizeof *c));
        c->fd = fd;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

static int listen_on(int port)
{
    int one = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    /* Accepted sockets inherit it. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, BACKLOG) < 0) {
        perror("limit: listen");
        exit(1);
    }
    return fd;
}

int main(int argc, char **argv)
{
    int port = 0;
    const char *mode = "";
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--port"))
            port = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--mode"))
            mode = argv[i + 1];
    }
    broadcasting = !strcmp(mode, "broadcast");
    if (!port || (!broadcasting && strcmp(mode, "echo"))) {
        fprintf(stderr, "usage: limit --mode echo|broadcast --port N\n");
        return 2;
    }
    arena = arena_start = arena_tail = must(malloc(ARENA_SIZE));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_on(port);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);

    static struct epoll_event events[BATCH];
    for (;;) {
        int count = epoll_wait(epoll_fd, events, BATCH, -1);
        for (int i = 0; i < count; i++) {
            struct conn *c = events[i].data.ptr;
            if (!c) {
                on_connections(listener);
                continue;
            }
            if (c->fd >= 0 && events[i].events & EPOLLOUT)
                on_writable(c);
            if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP))
                on_readable(c);
        }
        flush();
        while (dead) {
            struct conn *c = dead;
            dead = c->next;
            free(c);
        }
    }
}
